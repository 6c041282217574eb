"""Metrics of MM-ORIENT: each task, and the mean over tasks.

Only labeled items are scored. With one label per item, accuracy equals micro-F1, which the paper
reports; weighted F1 is the metric of Memotion 2 and 3, macro F1 that of the public code.
`behaviour` has the density of the graphs and the normalized entropy of the attention, where 1 means
uniform, that is, collapsed attention.
"""

from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.evaluate_classifier.common import (
    EvaluateClassifierConfig,
    compute_single_modality,
    compute_task_metrics,
    count_correct_labels,
)
from stages.shared.core import schemas
from stages.shared.metrics.common import clustered_standard_error, compare_to_ceiling, compute_skill
from stages.shared.runtime.stage import InputError

MODEL_NAME = "MM-ORIENT"
Rows = list[dict]
AVERAGED_METRICS = ("accuracy", "weighted_f1", "macro_f1")


def load_labels(folder: Path) -> Rows:
    """Labeled rows of LABEL_PREDICTIONS. Raises InputError if there is none."""
    path = folder / "labels.parquet"
    rows = [row for row in schemas.read_parquet(path, schemas.LABEL_PREDICTIONS) if row["gold"]]
    if not rows:
        raise InputError(
            f"{path} has neither a test nor a validation item with a label: add records of one of "
            "these splits to the corpus"
        )
    return rows


def group_by_task(rows: Rows, split: str, inputs: str) -> dict[str, Rows]:
    """The rows of one split and input mode by task, sorted by record."""
    by_task: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: row["record"]):
        if (row["split"], row["inputs"]) == (split, inputs):
            by_task.setdefault(row["task"], []).append(row)
    return by_task


def compute_split_metrics(
    by_task: dict[str, Rows], ceilings: dict, config: EvaluateClassifierConfig
) -> dict[str, Any]:
    """Metrics of each task from both inputs, and their means."""
    tasks = {}
    for task, rows in by_task.items():
        tasks[task] = {"items": len(rows), **compute_task_metrics(rows, config)}
        if task_ceilings := ceilings.get(task):
            score = tasks[task]["score"]
            realised = {inputs: values["realised"] for inputs, values in task_ceilings.items()}
            skill = compute_skill(score["value"], score["standard_error"], realised)
            tasks[task] |= {"ceilings": task_ceilings, "skill": skill}
    records = {row["record"] for rows in by_task.values() for row in rows}
    result = {"items": len(records), "score": mean_score(by_task)}
    result |= {
        name: {"value": fmean(metrics[name]["value"] for metrics in tasks.values())}
        for name in AVERAGED_METRICS
    }
    if all("skill" in metrics for metrics in tasks.values()):
        result |= {"skill": mean_skill(by_task, tasks), "ceilings": mean_ceilings(ceilings, tasks)}
    return result | {"tasks": tasks}


def is_correct(row: dict) -> float:
    return float(row["gold"] == row["predicted"])


def mean_score(by_task: dict[str, Rows]) -> dict[str, Any]:
    """The mean accuracy over tasks; its standard error is clustered by record."""
    value = fmean(fmean(map(is_correct, rows)) for rows in by_task.values())
    return {
        "metric": "accuracy",
        "value": value,
        "standard_error": compute_standard_error(by_task, {}),
    }


def compute_standard_error(by_task: dict[str, Rows], room: dict[str, float]) -> float:
    """Standard error of the mean over tasks of accuracy / room (1 if a task has no room).

    Clustered by record, since the tasks share their items.
    """
    values, records = [], []
    total = sum(map(len, by_task.values()))
    for task, rows in by_task.items():
        mean = fmean(map(is_correct, rows))
        scale = total / (len(by_task) * len(rows) * room.get(task, 1.0))
        values += [(is_correct(row) - mean) * scale for row in rows]
        records += [row["record"] for row in rows]
    return clustered_standard_error(values, records)


def mean_skill(by_task: dict[str, Rows], tasks: dict[str, Any]) -> dict[str, float]:
    """The mean skill over tasks; NaN if one input alone reaches the ceiling of a task."""
    room = {
        task: metrics["ceilings"]["both"]["realised"]
        - max(metrics["ceilings"][inputs]["realised"] for inputs in ("text", "picture"))
        for task, metrics in tasks.items()
    }
    if min(room.values()) <= 0:
        return {"value": nan, "standard_error": nan}
    value = fmean(metrics["skill"]["value"] for metrics in tasks.values())
    return {"value": value, "standard_error": compute_standard_error(by_task, room)}


def mean_ceilings(ceilings: dict, tasks: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The ceilings of each input mode, averaged over tasks."""
    return {
        inputs: {
            side: fmean(ceilings[task][inputs][side] for task in tasks)
            for side in ("expected", "realised")
        }
        for inputs in ("text", "picture", "both")
    }


def compute_single_modality_by_task(
    by_task: dict[str, Rows], ceilings: dict, inputs: str, config: EvaluateClassifierConfig
) -> dict[str, Any]:
    """The score from one input, of each task and averaged, compared to the ceilings."""
    tasks = {
        task: compute_single_modality(rows, ceilings.get(task, {}).get(inputs), config)
        for task, rows in by_task.items()
    }
    mean = mean_score(by_task)
    value, error = mean["value"], mean["standard_error"]
    result = {"value": value, "standard_error": error}
    if all(task in ceilings for task in tasks):
        ceiling = fmean(ceilings[task][inputs]["realised"] for task in tasks)
        bounds = config.max_below_ceiling, config.max_above_ceiling_standard_errors
        result |= compare_to_ceiling(value, error, ceiling, *bounds)
    return result | {"tasks": tasks}


def mean_diagnostics(folder: Path) -> dict[str, float]:
    """The mean of each quantity in DIAGNOSTICS, over items of the scored split."""
    by_name: dict[str, list[float]] = {}
    for row in schemas.read_parquet(folder / "behaviour.parquet", schemas.DIAGNOSTICS):
        by_name.setdefault(row["name"], []).append(row["value"])
    return {name: fmean(values) for name, values in sorted(by_name.items())}


def compute_metrics(
    predictions: Path, ceilings: dict[str, Any], config: EvaluateClassifierConfig
) -> tuple[dict[str, Any], Rows]:
    """The content of metrics.json and the rows of items.parquet."""
    rows = load_labels(predictions)
    split = "test" if group_by_task(rows, "test", "both") else "validation"
    split_ceilings = ceilings.get(split, {})
    result: dict[str, Any] = {"task": "memes", "split": split}
    result |= compute_split_metrics(group_by_task(rows, split, "both"), split_ceilings, config)
    for inputs in ("text", "picture"):
        if by_task := group_by_task(rows, split, inputs):
            single = compute_single_modality_by_task(by_task, split_ceilings, inputs, config)
            result.setdefault("single_modality", {})[inputs] = single
    result |= {
        "behaviour": mean_diagnostics(predictions),
        "parameters": schemas.read_json(predictions / "parameters.json"),
    }
    if by_task := group_by_task(rows, "validation", "both"):
        validation_ceilings = ceilings.get("validation", {})
        result["validation"] = compute_split_metrics(by_task, validation_ceilings, config)
    return result, item_rows(rows)


def item_rows(rows: Rows) -> Rows:
    """LABEL_SCORES: one row of items.parquet for each row of labels.parquet."""
    return [
        dict.fromkeys(schemas.LABEL_SCORES.names)
        | {name: row[name] for name in ("record", "split", "inputs", "task", "cut")}
        | count_correct_labels(row)
        for row in rows
    ]
