"""Scores of MM-ORIENT: each task, and their mean.

Only what somebody judged is scored. Of a task with one label an item accuracy is micro-F1, which
the paper reports; weighted F1 is that of Memotion 2 and 3, macro F1 that of the public code.
`behaviour` says how dense its graphs are, and how even its attention: 1 is a mean, and collapsed.
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

Rows = list[dict]
AVERAGED_METRICS = ("accuracy", "weighted_f1", "macro_f1")


def load_labels(folder: Path) -> Rows:
    """LABELS that somebody judged. Raises WrongInput if there is no item to score."""
    path = folder / "labels.parquet"
    rows = [row for row in schemas.read_parquet(path, schemas.LABEL_PREDICTIONS) if row["gold"]]
    if not rows:
        raise InputError(
            f"{path} holds neither a test nor a validation item with a label: give the corpus"
            " records of one of these splits"
        )
    return rows


def group_by_task(rows: Rows, split: str, inputs: str) -> dict[str, Rows]:
    """The rows of one split from these inputs, by task, each in the order of the records."""
    found: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: row["record"]):
        if (row["split"], row["inputs"]) == (split, inputs):
            found.setdefault(row["task"], []).append(row)
    return found


def compute_split_metrics(
    by_task: dict[str, Rows], ceilings: dict, params: EvaluateClassifierConfig
) -> dict[str, Any]:
    """Figures of each task from both inputs, and the mean of all."""
    tasks = {}
    for task, rows in by_task.items():
        tasks[task] = {"items": len(rows), **compute_task_metrics(rows, params)}
        if known := ceilings.get(task):
            score = tasks[task]["score"]
            realised = {inputs: values["realised"] for inputs, values in known.items()}
            of_task = compute_skill(score["value"], score["standard_error"], realised)
            tasks[task] |= {"ceilings": known, "skill": of_task}
    records = {row["record"] for rows in by_task.values() for row in rows}
    result = {"items": len(records), "score": mean_score(by_task)}
    result |= {
        name: {"value": fmean(found[name]["value"] for found in tasks.values())}
        for name in AVERAGED_METRICS
    }
    if all("skill" in found for found in tasks.values()):
        result |= {"skill": mean_skill(by_task, tasks), "ceilings": mean_ceilings(ceilings, tasks)}
    return result | {"tasks": tasks}


def is_correct(row: dict) -> float:
    return float(row["gold"] == row["predicted"])


def mean_score(by_task: dict[str, Rows]) -> dict[str, Any]:
    """The mean accuracy of the tasks; its error knows that tasks share their items."""
    value = fmean(fmean(map(is_correct, rows)) for rows in by_task.values())
    return {"metric": "accuracy"} | {
        "value": value,
        "standard_error": compute_standard_error(by_task, {}),
    }


def compute_standard_error(by_task: dict[str, Rows], room: dict[str, float]) -> float:
    """The standard error of the mean over tasks of accuracy, each divided by its room.

    What an item adds to it, in all of its tasks, goes together.
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
    room = {
        task: of_task["ceilings"]["both"]["realised"]
        - max(of_task["ceilings"][one]["realised"] for one in ("text", "picture"))
        for task, of_task in tasks.items()
    }
    if min(room.values()) <= 0:  # of one task one input allows all
        return {"value": nan, "standard_error": nan}
    value = fmean(of_task["skill"]["value"] for of_task in tasks.values())
    return {"value": value, "standard_error": compute_standard_error(by_task, room)}


def mean_ceilings(ceilings: dict, tasks: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        inputs: {
            side: fmean(ceilings[task][inputs][side] for task in tasks)
            for side in ("expected", "realised")
        }
        for inputs in ("text", "picture", "both")
    }


def compute_single_modality_by_task(
    by_task: dict[str, Rows], ceilings: dict, inputs: str, params: EvaluateClassifierConfig
) -> dict[str, Any]:
    """The score of each task from one input beside its ceiling, and of their mean."""
    tasks = {
        task: compute_single_modality(rows, ceilings.get(task, {}).get(inputs), params)
        for task, rows in by_task.items()
    }
    mean = mean_score(by_task)
    value, error = mean["value"], mean["standard_error"]
    found = {"value": value, "standard_error": error}
    if all(task in ceilings for task in tasks):
        ceiling = fmean(ceilings[task][inputs]["realised"] for task in tasks)
        bounds = params.max_below_ceiling, params.max_above_ceiling_standard_errors
        found |= compare_to_ceiling(value, error, ceiling, *bounds)
    return found | {"tasks": tasks}


def mean_diagnostics(folder: Path) -> dict[str, float]:
    """The mean of each figure of BEHAVIOUR, which is of the scored split alone."""
    found: dict[str, list[float]] = {}
    for row in schemas.read_parquet(folder / "behaviour.parquet", schemas.DIAGNOSTICS):
        found.setdefault(row["name"], []).append(row["value"])
    return {name: fmean(values) for name, values in sorted(found.items())}


def compute_metrics(
    folder: Path, known: dict[str, Any], params: EvaluateClassifierConfig
) -> tuple[dict[str, Any], Rows]:
    """The content of metrics.json and the rows of items.parquet."""
    rows = load_labels(folder)
    split = "test" if group_by_task(rows, "test", "both") else "validation"
    ceilings = known.get(split, {})
    result = {"task": "memes", "split": split}
    result |= compute_split_metrics(group_by_task(rows, split, "both"), ceilings, params)
    for inputs in ("text", "picture"):
        if by_task := group_by_task(rows, split, inputs):
            found = compute_single_modality_by_task(by_task, ceilings, inputs, params)
            result.setdefault("single_modality", {})[inputs] = found
    result |= {
        "behaviour": mean_diagnostics(folder),
        "parameters": schemas.read_json(folder / "parameters.json"),
    }
    if by_task := group_by_task(rows, "validation", "both"):
        result["validation"] = compute_split_metrics(by_task, known.get("validation", {}), params)
    return result, item_rows(rows)


def item_rows(rows: Rows) -> Rows:
    """One row of items.parquet for each row of labels.parquet."""
    return [
        dict.fromkeys(schemas.LABEL_SCORES.names)
        | {name: row[name] for name in ("record", "split", "inputs", "task", "cut")}
        | count_correct_labels(row)
        for row in rows
    ]
