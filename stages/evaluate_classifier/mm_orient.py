"""Scores of MM-ORIENT: each task, and their mean.

Only what somebody judged is scored. Of a task with one label an item accuracy is micro-F1, which
the paper reports; weighted F1 is that of Memotion 2 and 3, macro F1 that of the public code.
`behaviour` says how dense its graphs are, and how even its attention: 1 is a mean, and collapsed.
"""

from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.evaluate_classifier.common import Params, label_counts, single_modality, task_figures
from stages.shared.core import schemas
from stages.shared.metrics.common import beside_ceiling, clustered_standard_error, skill
from stages.shared.runtime.stage import WrongInput

Rows = list[dict]
AVERAGED = ("accuracy", "weighted_f1", "macro_f1")


def read_labels(folder: Path) -> Rows:
    """LABELS that somebody judged. Raises WrongInput if there is no item to score."""
    path = folder / "labels.parquet"
    rows = [row for row in schemas.read(path, schemas.LABELS) if row["gold"]]
    if not rows:
        raise WrongInput(
            f"{path} holds neither a test nor a validation item with a label: give the corpus"
            " records of one of these splits"
        )
    return rows


def of(rows: Rows, split: str, inputs: str) -> dict[str, Rows]:
    """The rows of one split from these inputs, by task, each in the order of the records."""
    found: dict[str, Rows] = {}
    for row in sorted(rows, key=lambda row: row["record"]):
        if (row["split"], row["inputs"]) == (split, inputs):
            found.setdefault(row["task"], []).append(row)
    return found


def figures_of_split(by_task: dict[str, Rows], ceilings: dict, params: Params) -> dict[str, Any]:
    """Figures of each task from both inputs, and the mean of all."""
    tasks = {}
    for task, rows in by_task.items():
        tasks[task] = {"items": len(rows), **task_figures(rows, params)}
        if known := ceilings.get(task):
            score = tasks[task]["score"]
            realised = {inputs: values["realised"] for inputs, values in known.items()}
            of_task = skill(score["value"], score["standard_error"], realised)
            tasks[task] |= {"ceilings": known, "skill": of_task}
    records = {row["record"] for rows in by_task.values() for row in rows}
    result = {"items": len(records), "score": mean_score(by_task)}
    result |= {
        name: {"value": fmean(found[name]["value"] for found in tasks.values())}
        for name in AVERAGED
    }
    if all("skill" in found for found in tasks.values()):
        result |= {"skill": mean_skill(by_task, tasks), "ceilings": mean_ceilings(ceilings, tasks)}
    return result | {"tasks": tasks}


def right(row: dict) -> float:
    return float(row["gold"] == row["predicted"])


def mean_score(by_task: dict[str, Rows]) -> dict[str, Any]:
    """The mean accuracy of the tasks; its error knows that tasks share their items."""
    value = fmean(fmean(map(right, rows)) for rows in by_task.values())
    return {"metric": "accuracy"} | {"value": value, "standard_error": error_of(by_task, {})}


def error_of(by_task: dict[str, Rows], room: dict[str, float]) -> float:
    """The standard error of the mean over tasks of accuracy, each divided by its room.

    What an item adds to it, in all of its tasks, goes together.
    """
    values, records = [], []
    total = sum(map(len, by_task.values()))
    for task, rows in by_task.items():
        mean = fmean(map(right, rows))
        scale = total / (len(by_task) * len(rows) * room.get(task, 1.0))
        values += [(right(row) - mean) * scale for row in rows]
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
    return {"value": value, "standard_error": error_of(by_task, room)}


def mean_ceilings(ceilings: dict, tasks: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        inputs: {
            side: fmean(ceilings[task][inputs][side] for task in tasks)
            for side in ("expected", "realised")
        }
        for inputs in ("text", "picture", "both")
    }


def alone(by_task: dict[str, Rows], ceilings: dict, inputs: str, params: Params) -> dict[str, Any]:
    """The score of each task from one input beside its ceiling, and of their mean."""
    tasks = {
        task: single_modality(rows, ceilings.get(task, {}).get(inputs), params)
        for task, rows in by_task.items()
    }
    mean = mean_score(by_task)
    value, error = mean["value"], mean["standard_error"]
    found = {"value": value, "standard_error": error}
    if all(task in ceilings for task in tasks):
        ceiling = fmean(ceilings[task][inputs]["realised"] for task in tasks)
        bounds = params.ceiling_below, params.ceiling_above
        found |= beside_ceiling(value, error, ceiling, *bounds)
    return found | {"tasks": tasks}


def behaviour(folder: Path) -> dict[str, float]:
    """The mean of each figure of BEHAVIOUR, which is of the scored split alone."""
    found: dict[str, list[float]] = {}
    for row in schemas.read(folder / "behaviour.parquet", schemas.BEHAVIOUR):
        found.setdefault(row["name"], []).append(row["value"])
    return {name: fmean(values) for name, values in sorted(found.items())}


def score(folder: Path, known: dict[str, Any], params: Params) -> tuple[dict[str, Any], Rows]:
    """The content of metrics.json and the rows of items.parquet."""
    rows = read_labels(folder)
    split = "test" if of(rows, "test", "both") else "validation"
    ceilings = known.get(split, {})
    result = {"task": "memes", "split": split}
    result |= figures_of_split(of(rows, split, "both"), ceilings, params)
    for inputs in ("text", "picture"):
        if by_task := of(rows, split, inputs):
            found = alone(by_task, ceilings, inputs, params)
            result.setdefault("single_modality", {})[inputs] = found
    result |= {
        "behaviour": behaviour(folder),
        "parameters": schemas.read_json(folder / "parameters.json"),
    }
    if by_task := of(rows, "validation", "both"):
        result["validation"] = figures_of_split(by_task, known.get("validation", {}), params)
    return result, item_rows(rows)


def item_rows(rows: Rows) -> Rows:
    """One row of items.parquet for each row of labels.parquet."""
    return [
        dict.fromkeys(schemas.LABEL_SCORES.names)
        | {name: row[name] for name in ("record", "split", "inputs", "task", "cut")}
        | label_counts(row)
        for row in rows
    ]
