"""Score the baselines of a generator and compare the generator with each, item by item.

stages/predict/baselines.py describes them. All standard errors come from the same bootstrap samples
of records, so that those of differences are paired.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.evaluate import text_scores
from stages.evaluate.text_metrics import CorpusScore, MeteorJar
from stages.shared.data.tokenization import TokenizerName
from stages.shared.metrics.common import (
    bootstrap_standard_errors,
    describe_difference,
    judge_difference,
)
from stages.shared.runtime.stage import InputError

BASELINE_NAMES = {
    "nearest_image": "the nearest training text by image",
    "nearest_topic": "the nearest training text by topic",
    "consensus": "the consensus of the nearest training images",
    "shuffled_images": "itself with shuffled images",
}
COMPARED_SCORES = {"cider": "CIDEr", "rouge_l": "ROUGE-L"}  # both are means over items


@dataclass(frozen=True)
class BaselineTexts:
    """What stages/predict writes for the baselines of a run."""

    model_name: str
    rows: list[dict]  # BASELINES
    omitted: dict[str, str]  # the reason by baseline


def compute_statistics(totals: np.ndarray) -> np.ndarray:
    """Mean scores of all systems, then the first one's minus each.

    totals: sum of the scores and number of items (draws, S, 2)  -> (draws, 2 * S)
    """
    means = totals[..., 0] / totals[..., 1]
    return np.concatenate([means, means[:, :1] - means], axis=1)


def compare_systems(
    scores: np.ndarray, records: list[str], draws: int, seed: int
) -> list[dict[str, Any]]:
    """The mean score of each system, and the difference of the first one and it.

    scores (items, S); records: of each item, the unit of the bootstrap; draws: its samples
    """
    names, rows = np.unique(records, return_inverse=True)
    sums = np.zeros((len(names), scores.shape[1], 2))
    np.add.at(sums[..., 0], rows, scores)
    np.add.at(sums[..., 1], rows, 1)
    values = compute_statistics(sums.sum(0)[None])[0].reshape(2, -1).tolist()
    errors = bootstrap_standard_errors(sums, compute_statistics, draws, seed)
    errors = errors.reshape(2, -1).tolist()
    means, differences = (
        [{"value": value, "standard_error": error} for value, error in zip(*part, strict=True)]
        for part in zip(values, errors, strict=True)
    )
    return [
        mean | {"difference": difference}
        for mean, difference in zip(means, differences, strict=True)
    ]


def group_rows(texts: BaselineTexts, model_rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each baseline in the order of the model's rows.

    Raises InputError if a baseline has other items than the model.
    """
    by_key: dict[str, dict[tuple, dict]] = {}
    for row in texts.rows:
        by_key.setdefault(row["baseline"], {})[row["record"], row["position"]] = row
    keys = [(row["record"], row["position"]) for row in model_rows]
    for rows in by_key.values():
        if rows.keys() != set(keys):
            raise InputError(
                "baselines.parquet has other items than predictions.parquet: run `dvc repro`"
            )
    return {name: [rows[key] for key in keys] for name, rows in by_key.items()}


def choose_compared_score(systems: list[dict[str, CorpusScore]]) -> str:
    """The first of COMPARED_SCORES that is available for all systems."""
    return next(name for name in COMPARED_SCORES if all(s[name].value is not None for s in systems))


def compute_baselines(
    texts: BaselineTexts,
    model_rows: list[dict],
    model_scores: dict[str, CorpusScore],
    tokenizers: dict[str, TokenizerName],
    meteor_jar: MeteorJar,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """`baselines` of metrics.json: scores, differences to the model, and a sentence for each.

    model_rows: predictions of the test items; model_scores: their token scores; draws, seed: of
    the bootstrap. `comparison` is about the baseline with the highest compared score; it is absent
    without baselines.
    """
    scores = {
        name: text_scores.compute_token_scores(rows, tokenizers, meteor_jar)
        for name, rows in group_rows(texts, model_rows).items()
    }
    if not scores:
        return {"scores": {}, "omitted": texts.omitted}
    systems = [model_scores, *scores.values()]
    compared = choose_compared_score(systems)
    matrix = np.array([system[compared].item_scores for system in systems], float).T
    model, *others = compare_systems(matrix, [row["record"] for row in model_rows], draws, seed)
    results = {
        name: text_scores.summarize_scores(scores[name])
        | result
        | {
            "verdict": judge_difference(result["difference"]),
            "sentence": describe_difference(
                texts.model_name,
                f"{BASELINE_NAMES[name]} in {COMPARED_SCORES[compared]}",
                result["difference"],
            ),
        }
        for name, result in zip(scores, others, strict=True)
    }
    strongest = max(results, key=lambda name: results[name]["value"])
    keys = ("difference", "verdict", "sentence")
    return {
        "score": compared,
        "model": {name: model[name] for name in ("value", "standard_error")},
        "scores": results,
        "comparison": {"baseline": strongest} | {key: results[strongest][key] for key in keys},
        "omitted": texts.omitted,
    }
