"""Score the baselines of a classifier and compare the classifier with each, item by item.

Every score is the mean over tasks of an F1 of summed counts, which for one label per item is the
accuracy: 2 correct / (predicted + gold) = correct / items. All standard errors come from the same
bootstrap samples of records, so that those of differences are paired.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluate_classifier.common import EvaluateClassifierConfig, count_correct_labels
from stages.shared.core import schemas
from stages.shared.metrics.classification import ENTITY_RULES, EntityRule, compute_f1
from stages.shared.metrics.common import (
    bootstrap_standard_errors,
    describe_difference,
    judge_difference,
)
from stages.shared.runtime.stage import InputError

System = tuple[str, str]  # baseline, inputs
MODEL: System = ("model", "both")
MAJORITY = "majority"
BASELINE_NAMES = {
    MAJORITY: "the majority class",
    "logistic_regression": "logistic regression",
    "decision_fusion": "decision fusion",
    "crf": "a linear-chain CRF",
}
FEATURE_NAMES = {"both": "same", "text": "text", "picture": "image"}  # by inputs, most first


def count_item(row: dict, rule: EntityRule) -> tuple[int, int, int]:
    """Correct, predicted and gold entities of an item, or 1 or 0, 1 and 1 for its label."""
    if row["task"] == "entities":
        gold, predicted = map(ENTITY_RULES[rule], (row["gold"], row["predicted"]))
        return len(gold & predicted), len(predicted), len(gold)
    counts = count_correct_labels(row)
    return counts["right"], counts["predicted"], counts["gold"]


def count_items(
    rows: dict[System, list[dict]], tasks: list[str], rule: EntityRule, source: Path
) -> tuple[list[System], np.ndarray]:
    """The systems, the model first, and their counts (records, tasks, systems, 3).

    rows: labeled items of one split by system. Raises InputError if a baseline has other items than
    the model; source: the folder of the baselines, for the message.
    """
    items = {
        system: {(row["record"], row["task"]): row for row in part} for system, part in rows.items()
    }
    expected = {key: row["gold"] for key, row in items[MODEL].items()}
    for by_key in items.values():
        if {key: row["gold"] for key, row in by_key.items()} != expected:
            raise InputError(
                f"{source / 'labels.parquet'} has other items than the predictions of the model: "
                "run `dvc repro`"
            )
    systems = [MODEL, *(system for system in items if system != MODEL)]
    records = sorted({record for record, _ in expected})
    counts = np.zeros((len(records), len(tasks), len(systems), 3), np.int64)
    row_of = {record: number for number, record in enumerate(records)}
    for column, system in enumerate(systems):
        for (record, task), row in items[system].items():
            counts[row_of[record], tasks.index(task), column] = count_item(row, rule)
    return systems, counts


def compute_statistics(totals: np.ndarray) -> np.ndarray:
    """Scores, and differences of the model and each system, by task and averaged.

    totals: counts (draws, T, S, 3)  -> (draws, 2 * (T + 1) * S), in the order of these axes
    """
    by_task = compute_f1(totals)  # (draws, T, S)
    scores = np.concatenate([by_task, by_task.mean(1, keepdims=True)], axis=1)
    return np.stack([scores, scores[..., :1] - scores], axis=1).reshape(len(totals), -1)


def score_systems(
    counts: np.ndarray, tasks: list[str], config: EvaluateClassifierConfig
) -> list[dict[str, Any]]:
    """The score of each system and its difference to the model, in total and by task."""
    draws, seed = config.num_bootstrap_samples, config.seed
    shape = 2, len(tasks) + 1, counts.shape[2]
    values = compute_statistics(counts.sum(0)[None]).reshape(shape).tolist()
    errors = bootstrap_standard_errors(counts, compute_statistics, draws, seed)
    errors = errors.reshape(shape).tolist()

    def metric(side: int, task: int, system: int) -> dict[str, float]:
        error = errors[side][task][system]
        return {"value": values[side][task][system], "standard_error": error}

    def entry(task: int, system: int) -> dict[str, Any]:
        """The score of a system; that of a baseline with the difference to the model."""
        score = metric(0, task, system)
        return score | {"difference": metric(1, task, system)} if system else score

    results = []
    for system in range(shape[2]):
        result = entry(len(tasks), system)
        if len(tasks) > 1:
            result["tasks"] = {task: entry(number, system) for number, task in enumerate(tasks)}
        results.append(result)
    return results


def choose_baseline(systems: Iterable[System]) -> System:
    """The baseline that the sentence is about: on both inputs, else on one, else the majority."""
    fitted = [system for system in systems if system[0] not in (MAJORITY, MODEL[0])]
    order = list(FEATURE_NAMES)
    return min(fitted, key=lambda system: order.index(system[1]), default=(MAJORITY, "none"))


def describe_baseline(system: System, same_image_features: bool) -> str:
    """E.g. `logistic regression on the same features`."""
    baseline, inputs = system
    if baseline == MAJORITY:
        return BASELINE_NAMES[baseline]
    if inputs == "both" and not same_image_features:
        return f"{BASELINE_NAMES[baseline]} on frozen features"
    return f"{BASELINE_NAMES[baseline]} on the {FEATURE_NAMES[inputs]} features"


def compute_baselines(
    predictions: Path,
    baselines: Path,
    split: str,
    model_name: str,
    config: EvaluateClassifierConfig,
) -> dict[str, Any]:
    """`baselines` of metrics.json: scores by baseline and inputs, and a comparison in words.

    predictions: folder of stages/classify; baselines: folder of stages/fit_baselines; split: the
    scored one. Raises InputError if a file is missing or has other items.
    """
    rows: dict[System, list[dict]] = {MODEL: []}
    for row in schemas.read_parquet(predictions / "labels.parquet", schemas.LABEL_PREDICTIONS):
        if (row["split"], row["inputs"]) == (split, "both") and row["gold"]:
            rows[MODEL].append(row)
    for row in schemas.read_parquet(baselines / "labels.parquet", schemas.BASELINE_PREDICTIONS):
        if row["split"] == split and row["gold"]:
            rows.setdefault((row["baseline"], row["inputs"]), []).append(row)
    summary = schemas.read_json(baselines / "summary.json")
    tasks = list(dict.fromkeys(row["task"] for row in rows[MODEL]))
    systems, counts = count_items(rows, tasks, config.entity_rule, baselines)
    results = dict(zip(systems, score_systems(counts, tasks, config), strict=True))
    scores: dict[str, dict[str, Any]] = {}
    for (baseline, inputs), result in results.items():
        if baseline != MODEL[0]:
            verdict = {"verdict": judge_difference(result["difference"])}
            scores.setdefault(baseline, {})[inputs] = result | verdict
    compared = choose_baseline(systems)
    difference = results[compared]["difference"]
    name = describe_baseline(compared, summary["same_image_features"])
    return {
        "scores": scores,
        "comparison": {
            "baseline": compared[0],
            "inputs": compared[1],
            "difference": difference,
            "verdict": judge_difference(difference),
            "sentence": describe_difference(model_name, name, difference),
        },
        "omitted": summary["omitted"],
    }
