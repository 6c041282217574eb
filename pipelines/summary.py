"""The figures that a run ends with, one row a run, from the metrics.json of evaluate or score.

Only the runs that params.yaml names are shown.
"""

import json
from pathlib import Path
from typing import Any

from stages.shared.core import config

REPORT = Path("data/14_report/index.html")
METRICS = Path("data/12_evaluate")  # of writers
SCORES = Path("data/12_evaluate_classifier")  # of readers
Place = tuple[str, ...]  # keys of metrics.json, one inside the other
COLUMNS: dict[str, list[Place]] = {  # title -> where it may stand, the first that does counts
    "skill": [("skill", "value")],
    "of ceiling": [("share_of_ceiling", "value")],  # where no topic tells anything
    "± se": [("skill", "standard_error"), ("share_of_ceiling", "standard_error")],
    "grounding": [("grounding", "total")],
    "ceiling": [("ceilings", "both", "realised"), ("ceilings", "picture", "realised")],
    "ROUGE-L": [("rouge_l",)],
    "CIDEr": [("cider",)],
    "BERTScore": [("bert_score",)],
    "literal": [("rewards", "literal")],
    "semantic": [("rewards", "semantic")],
    "F1": [("lenient", "f1")],
    "accuracy": [("accuracy", "value")],
    "weighted F1": [("weighted_f1", "value")],
}


def rows() -> list[dict[str, str]]:
    """One row for each run of the current folder that was evaluated, as text.

    A column that no run has a figure in is left out.
    """
    figures = _figures()
    titles = [title for title in COLUMNS if any(title in found for found in figures.values())]
    return [
        {"run": run, **{title: _text(found.get(title)) for title in titles}}
        for run, found in figures.items()
    ]


def table() -> str:
    """The rows as aligned text, and where the report is."""
    found = rows()
    if not found:
        return "No run is evaluated yet."
    lines = [list(found[0]), *(list(row.values()) for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    text += warnings()
    if REPORT.exists():
        text += ["", f"report: {REPORT.absolute()}"]
    return "\n".join(text)


def warnings() -> list[str]:
    """A line for each warning about a run's final phase."""
    return [
        f"{run}: {sentence}"
        for run, every in _files().items()
        for sentence in every.get("warnings", {}).values()
    ]


def metrics() -> dict[str, float]:
    """The same figures by run and place, e.g. flexmuse.skill.value, for the MLflow parent."""
    return {
        ".".join([run, *place]): value
        for run, every in _files().items()
        for places in COLUMNS.values()
        for place, value in _standing(every, places)
    }


def _figures() -> dict[str, dict[str, float]]:
    """run -> title -> figure; what a corpus cannot be scored on is missing."""
    return {
        run: {
            title: found[0][1]
            for title, places in COLUMNS.items()
            if (found := _standing(every, places))
        }
        for run, every in _files().items()
    }


def _standing(every: dict[str, Any], places: list[Place]) -> list[tuple[Place, float]]:
    """The first of the places with a figure, if there is one."""
    found = [(place, value) for place in places if (value := _at(every, place)) is not None]
    return found[:1]


def _files() -> dict[str, dict[str, Any]]:
    """run -> its metrics.json; those of rows that were deleted may lie there still."""
    named = config.read()
    files = {
        run: folder / run / "metrics.json"
        for family, folder in {"writers": METRICS, "readers": SCORES}.items()
        for run in named.get(family, {})
    }
    found = {run: file for run, file in files.items() if file.exists()}
    return {run: json.loads(file.read_text(encoding="utf-8")) for run, file in found.items()}


def _at(metrics: dict[str, Any], place: Place) -> float | None:
    value: Any = metrics
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None  # or "unavailable"


def _text(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"
