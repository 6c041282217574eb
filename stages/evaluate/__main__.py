"""Score what each phase of a run wrote, beside the ceilings where the corpus knows them.

python -m stages.evaluate --run RUN --ingest INGEST --predictions PREDICTIONS --output OUTPUT

reads   INGEST/slots.json, facts.parquet, boxes.parquet, ceilings.json   sample corpora only
        PREDICTIONS/predictions.parquet, foils.parquet, gates.parquet, fusions.parquet,
        attentions.parquet
writes  TARGET/metrics.json    the final phase on top, `sft` beneath when preference followed it
        TARGET/items.parquet   the scores of each written text
        TARGET/rewards.parquet   the rewards of whole written articles, at most so many

Figures are of the test split with both inputs, but for `validation` (what is cheap, to choose
settings by), `single_modality` (the same weights shown the topic or the picture alone) and `foils`.
`gain` is what the preference phase changed, by pairs of the same article or chunk in both phases.
"""

import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.evaluate import reward_gains, text_metrics, text_scores
from stages.evaluate.text_metrics import CorpusScore, TokenizerName
from stages.shared.core import schemas
from stages.shared.core.config import config_class, load_config
from stages.shared.metrics import attention, diagnostics
from stages.shared.metrics.common import (
    PHASES,
    clustered_standard_error,
    compare_to_ceiling,
    compute_skill,
    flatten_metrics,
    round_metrics,
)
from stages.shared.metrics.diagnostics import AttentionTraces
from stages.shared.metrics.grounding import (
    SceneSlots,
    load_facts,
    load_slots,
    mean_slot_score,
    score_slots,
)
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError, atomic_output_dir, run_stage
from stages.shared.similarity.embedders import Embedder, RewardConfig, load_embedder


@config_class
class EvaluateConfig:
    tokenizers: dict[str, list[TokenizerName]]  # by language; the first gives the main figures
    max_bertscore_samples: int
    max_reward_samples: int
    meteor_timeout: float
    max_below_ceiling: float
    max_above_ceiling_standard_errors: float
    max_masked_fraction: float
    max_attention_entropy: float
    min_attention_spread: float

    def __post_init__(self) -> None:
        for language, names in self.tokenizers.items():
            if not names:
                raise ValueError(f"tokenizers.{language} is empty: name one")


@dataclass(frozen=True)
class SampleGroundTruth:
    """What a sample corpus knows: its slots, their values and boxes by (record, position), the
    ceilings.

    ceilings: split -> inputs -> expected | realised -> slot or total; of captions, whose texts no
    topic decides, for the picture alone.
    """

    slots: SceneSlots
    facts: dict[tuple[str, int], dict[str, str]]
    ceilings: dict[str, dict[str, dict]]
    boxes: dict[tuple[str, int], dict[str, attention.NormalizedBox]]

    def score_rows(self, rows: list[dict]) -> list[dict[str, int]]:
        """For each row its slots: 1 stated correctly, 0 not."""
        keys = ((row["record"], row["position"]) for row in rows)
        return [
            score_slots(row["text"], self.facts[key], self.slots)
            for row, key in zip(rows, keys, strict=True)
        ]


def load_ground_truth(ingest: Path) -> SampleGroundTruth | None:
    """The truth of a sample corpus; None of any other."""
    slots = load_slots(ingest)
    if slots is None:
        return None
    path = ingest / "ceilings.json"
    ceilings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    splits = ("validation", "test")
    of_split = {split: ceilings.get(split, {}) for split in splits}
    return SampleGroundTruth(slots, load_facts(ingest), of_split, diagnostics.load_boxes(ingest))


def summarize_grounding(grounding: list[dict[str, int]], rows: list[dict]) -> dict[str, Any]:
    """Mean over the items, in total and by slot; standard error clustered by record."""
    totals = [mean_slot_score(item) for item in grounding]
    error = clustered_standard_error(totals, [row["record"] for row in rows])
    slots = dict.fromkeys(slot for item in grounding for slot in item)
    by_slot = {slot: fmean(item[slot] for item in grounding if slot in item) for slot in slots}
    return {"total": fmean(totals), "standard_error": error, "by_slot": by_slot}


def compare_to_ceilings(grounding: dict[str, Any], ceilings: dict[str, dict]) -> dict[str, dict]:
    """{"skill": ...}; {"share_of_ceiling": ...} where no topic tells anything, and one modality is
    all there is; nothing where the ceilings are unknown."""
    realised = {inputs: ceiling["realised"]["total"] for inputs, ceiling in ceilings.items()}
    value, error = grounding["total"], grounding["standard_error"]
    if "topic" in realised:
        return {"skill": compute_skill(value, error, realised)}
    if not realised:
        return {}
    best = realised["picture"]
    return {"share_of_ceiling": {"value": value / best, "standard_error": error / best}}


def compare_modality_to_ceiling(
    grounding: dict[str, Any], ceilings: dict[str, dict], params: EvaluateConfig
) -> dict[str, Any]:
    """Grounding from one modality beside its realised ceiling."""
    value, error = grounding["total"], grounding["standard_error"]
    ceiling = ceilings["realised"]["total"]
    bounds = params.max_below_ceiling, params.max_above_ceiling_standard_errors
    return {"grounding": value} | compare_to_ceiling(value, error, ceiling, *bounds)


def build_item_rows(
    rows: list[dict], scores: dict[str, CorpusScore], grounding: list[dict[str, int]] | None
) -> list[dict]:
    """One row of items.parquet for each prediction row."""
    names = schemas.ITEM_SCORES.names
    key = ["record", "position", "split", "phase", "inputs"]
    out = []
    for i, row in enumerate(rows):
        found = {name: scored.item_scores[i] for name, scored in scores.items() if name in names}
        if grounding is not None:
            found["grounding"] = mean_slot_score(grounding[i])
            found["right"] = [slot for slot, right in grounding[i].items() if right]
            found["wrong"] = [slot for slot, right in grounding[i].items() if not right]
        out.append(dict.fromkeys(names) | {name: row[name] for name in key} | found)
    return out


def score_test(
    rows: list[dict], truth: SampleGroundTruth | None, params: EvaluateConfig
) -> tuple[dict[str, Any], list[dict]]:
    """Every figure of the test items of one phase with both inputs, and its item rows."""
    chosen = text_scores.select_primary_tokenizers(params.tokenizers)
    scores = text_scores.compute_token_scores(rows, chosen, params.meteor_timeout)
    scores["bert_score"] = text_scores.compute_sampled_bert_score(
        rows, params.max_bertscore_samples
    )
    result: dict[str, Any] = {
        "items": len(rows),
        "records": len({row["record"] for row in rows}),
        **text_scores.summarize_scores(scores),
        "measured_by": text_scores.describe_scorers(rows, chosen, scores),
    }
    others = text_scores.compute_extra_tokenizer_scores(
        rows, params.tokenizers, params.meteor_timeout
    )
    result |= {"by_tokenizer": others} if others else {}
    if truth is None:
        return result, build_item_rows(rows, scores, None)
    grounding = truth.score_rows(rows)
    ceilings = truth.ceilings["test"]
    result["grounding"] = summarize_grounding(grounding, rows)
    result |= compare_to_ceilings(result["grounding"], ceilings)
    result["ceilings"] = {
        inputs: {rule: values["total"] for rule, values in ceiling.items()}
        for inputs, ceiling in ceilings.items()
    }
    return result, build_item_rows(rows, scores, grounding)


def score_validation(
    rows: list[dict], truth: SampleGroundTruth | None, params: EvaluateConfig
) -> tuple[dict[str, Any], list[dict]]:
    """What is cheap: ROUGE-L, grounding and skill of the validation items."""
    items = text_scores.tokenize_rows(
        rows, text_scores.select_primary_tokenizers(params.tokenizers)
    )
    scores = {"rouge_l": text_metrics.compute_rouge_l(items)}
    result: dict[str, Any] = {"items": len(rows), **text_scores.summarize_scores(scores)}
    if truth is None:
        return result, build_item_rows(rows, scores, None)
    grounding = truth.score_rows(rows)
    result["grounding"] = summarize_grounding(grounding, rows)
    result |= compare_to_ceilings(result["grounding"], truth.ceilings["validation"])
    return result, build_item_rows(rows, scores, grounding)


def score_single_modality(
    rows: list[dict], inputs: str, truth: SampleGroundTruth, params: EvaluateConfig
) -> tuple[dict[str, Any], list[dict]]:
    """Grounding from one modality beside its ceiling, and its item rows."""
    grounding = truth.score_rows(rows)
    ceilings = truth.ceilings["test"][inputs]
    found = compare_modality_to_ceiling(summarize_grounding(grounding, rows), ceilings, params)
    return found, build_item_rows(rows, {}, grounding)


def compute_diagnostics(
    traces: AttentionTraces, truth: SampleGroundTruth | None, params: EvaluateConfig
) -> dict[str, Any]:
    """What gate, fusion and the decoder's attention do, and what of it is suspicious.

    Only of what the run has: not every paper gates its topics.
    """
    result: dict[str, Any] = {}
    if traces.gates:
        result["gate"] = diagnostics.summarize_gate(traces.gates)
    if traces.fusions:
        result["fusion"] = diagnostics.summarize_fusion(traces.fusions)
    if truth is not None:
        found = diagnostics.compute_object_attention(
            traces.attentions, truth.slots, truth.facts, truth.boxes
        )
        result |= {"object_attention": found} if found else {}
    limits = diagnostics.WarningThresholds(
        params.max_masked_fraction, params.max_attention_entropy, params.min_attention_spread
    )
    warnings = diagnostics.build_warnings(result.get("gate"), result.get("fusion"), limits)
    return result | ({"warnings": warnings} if warnings else {})


def score_phase(
    rows: list[dict],
    foils: list[dict],
    traces: AttentionTraces,
    truth: SampleGroundTruth | None,
    params: EvaluateConfig,
) -> tuple[dict[str, Any], list[dict]]:
    """The metrics of one phase and its item rows."""

    def select(split: str, inputs: str) -> list[dict]:
        return [row for row in rows if (row["split"], row["inputs"]) == (split, inputs)]

    test = select("test", "both")
    result, items = score_test(test, truth, params)
    # Where no topic tells anything, a picture alone is both.
    apart = truth is not None and "topic" in truth.ceilings["test"]
    for inputs in ("topic", "picture"):
        if apart and (single := select("test", inputs)):
            found, more = score_single_modality(single, inputs, truth, params)
            result.setdefault("single_modality", {})[inputs] = found
            items += more
    tested = {(row["record"], row["position"]) for row in test}
    if foils := [row for row in foils if (row["record"], row["position"]) in tested]:
        result["foils"] = text_metrics.compute_foil_error(foils)
    result |= compute_diagnostics(traces, truth, params)
    if validation := select("validation", "both"):
        result["validation"], more = score_validation(validation, truth, params)
        items += more
    return result, items


def build_reward_rows(rows: list[dict], at_most: int, embedder: Embedder | None) -> list[dict]:
    """Rows of REWARDS: at most so many articles of each split, the same of each phase."""
    found = []
    for phase, split in product(PHASES, ("test", "validation")):
        written = reward_gains.collect_articles(select_rows(rows, phase, split), at_most)
        key = {"phase": phase, "split": split}
        found += [key | row for row in reward_gains.compute_article_rewards(written, embedder)]
    return found


def select_rows(rows: list[dict], phase: str, split: str) -> list[dict]:
    key = phase, split, "both"
    return [row for row in rows if (row["phase"], row["split"], row["inputs"]) == key]


def add_rewards(result: dict[str, Any], rewards: list[dict], phase: str) -> dict[str, Any]:
    """The metrics of one phase and the means of its rewards, of test and validation."""
    of_split = {
        split: [row for row in rewards if (row["phase"], row["split"]) == (phase, split)]
        for split in ("test", "validation")
    }
    result |= {"rewards": reward_gains.summarize_rewards(of_split["test"])}
    result["measured_by"] |= reward_gains.describe_rewards(of_split["test"])
    if "validation" in result:
        result["validation"] |= {"rewards": reward_gains.summarize_rewards(of_split["validation"])}
    return result


def compute_phase_gains(items: list[dict], rewards: list[dict], split: str) -> dict[str, dict]:
    """What the preference phase changed of the rewards and of the grounding of one split."""
    articles = [
        [row for row in rewards if (row["phase"], row["split"]) == (phase, split)]
        for phase in ("sft", "preference")
    ]
    chunks = [select_rows(items, phase, split) for phase in ("sft", "preference")]
    return reward_gains.compute_gains(
        *articles, [*reward_gains.REWARD_DESCRIPTIONS]
    ) | reward_gains.compute_gains(*chunks, ["grounding"])


def evaluate_predictions(
    rows: list[dict],
    foils: list[dict],
    traces: AttentionTraces,
    truth: SampleGroundTruth | None,
    embedder: Embedder | None,
    params: EvaluateConfig,
) -> tuple[dict[str, Any], dict[str, list[dict]]]:
    """The content of metrics.json, and the rows of items and rewards."""
    rewards = build_reward_rows(rows, params.max_reward_samples, embedder)
    by_phase, items = {}, []
    for phase in PHASES:
        if of_phase := [row for row in rows if row["phase"] == phase]:
            of_foils = [row for row in foils if row["phase"] == phase]
            result, more = score_phase(
                of_phase, of_foils, traces.select_phase(phase), truth, params
            )
            by_phase[phase] = add_rewards(result, rewards, phase)
            items += more
    final, *earlier = by_phase
    top = by_phase[final]
    if earlier:
        top["gain"] = compute_phase_gains(items, rewards, "test")
        if "validation" in top:
            top["validation"]["gain"] = compute_phase_gains(items, rewards, "validation")
    found = {"phase": final, **top, **{name: by_phase[name] for name in earlier}}
    return found, {"items": items, "rewards": rewards}


def main(
    params: EvaluateConfig, reading: RewardConfig, run: str, folders: list[Path], target: Path
) -> None:
    ingest, predictions = folders
    rows = schemas.read_predictions(predictions)
    foils = schemas.read_parquet(predictions / "foils.parquet", schemas.FOIL_SCORES)
    traces = diagnostics.load_traces(predictions)
    embedder = load_embedder("minilm", [row["language"] for row in rows], reading)
    with tracking.start_run(
        stage="evaluate", name=run, params={"evaluate": asdict(params)}
    ) as tracked:
        with atomic_output_dir(target) as folder:
            truth = load_ground_truth(ingest)
            result, found = evaluate_predictions(rows, foils, traces, truth, embedder, params)
            result = round_metrics(result)
            text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
            (folder / "metrics.json").write_text(f"{text}\n", encoding="utf-8")
            schemas.write_parquet(folder / "items.parquet", found["items"], schemas.ITEM_SCORES)
            schemas.write_parquet(folder / "rewards.parquet", found["rewards"], schemas.REWARDS)
        tracked.log_metrics(dict(flatten_metrics(result)), step=0)
        tracked.log_artifact_hash(target / "metrics.json", "metrics.json")


def cli(run: str, ingest: Path, predictions: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    rewards = load_config(RewardConfig, "rewards")
    main(load_config(EvaluateConfig, "evaluate"), rewards, run, [ingest, predictions], output)


if __name__ == "__main__":
    run_stage(cli)
