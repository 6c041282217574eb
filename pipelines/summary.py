"""The figures that a run ends with, one row a run, from the metrics.json of evaluate or score.

Only the runs that params.yaml names are shown.
"""

import json
from pathlib import Path
from typing import Any

from stages.shared.core import config

REPORT_PATH = Path("data/14_report/index.html")
GENERATOR_METRICS_DIR = Path("data/12_evaluate")  # of writers
CLASSIFIER_METRICS_DIR = Path("data/12_evaluate_classifier")  # of readers
MetricPath = tuple[str, ...]  # keys of metrics.json, one inside the other
COLUMNS: dict[str, list[MetricPath]] = {  # title -> where it may stand, the first that does counts
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


def build_rows() -> list[dict[str, str]]:
    """One row for each run of the current folder that was evaluated, as text.

    A column that no run has a figure in is left out.
    """
    figures = _metrics_by_title()
    titles = [title for title in COLUMNS if any(title in found for found in figures.values())]
    return [
        {"run": run, **{title: _format_value(found.get(title)) for title in titles}}
        for run, found in figures.items()
    ]


def format_table() -> str:
    """The rows as aligned text, and where the report is."""
    found = build_rows()
    if not found:
        return "No run is evaluated yet."
    lines = [list(found[0]), *(list(row.values()) for row in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    text += list_warnings()
    if REPORT_PATH.exists():
        text += ["", f"report: {REPORT_PATH.absolute()}"]
    return "\n".join(text)


def list_warnings() -> list[str]:
    """A line for each warning about a run's final phase."""
    return [
        f"{run}: {sentence}"
        for run, every in _load_metrics().items()
        for sentence in every.get("warnings", {}).values()
    ]


def collect_metrics() -> dict[str, float]:
    """The same figures by run and place, e.g. flexmuse.skill.value, for the MLflow parent."""
    return {
        ".".join([run, *place]): value
        for run, every in _load_metrics().items()
        for places in COLUMNS.values()
        for place, value in _first_value(every, places)
    }


def _metrics_by_title() -> dict[str, dict[str, float]]:
    """run -> title -> figure; what a corpus cannot be scored on is missing."""
    return {
        run: {
            title: found[0][1]
            for title, places in COLUMNS.items()
            if (found := _first_value(every, places))
        }
        for run, every in _load_metrics().items()
    }


def _first_value(every: dict[str, Any], places: list[MetricPath]) -> list[tuple[MetricPath, float]]:
    """The first of the places with a figure, if there is one."""
    found = [(place, value) for place in places if (value := _get_nested(every, place)) is not None]
    return found[:1]


def _load_metrics() -> dict[str, dict[str, Any]]:
    """run -> its metrics.json; those of rows that were deleted may lie there still."""
    named = config.read_params()
    files = {
        run: folder / run / "metrics.json"
        for family, folder in {
            "generators": GENERATOR_METRICS_DIR,
            "classifiers": CLASSIFIER_METRICS_DIR,
        }.items()
        for run in named.get(family, {})
    }
    found = {run: file for run, file in files.items() if file.exists()}
    return {run: json.loads(file.read_text(encoding="utf-8")) for run, file in found.items()}


def _get_nested(metrics: dict[str, Any], place: MetricPath) -> float | None:
    value: Any = metrics
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None  # or "unavailable"


def _format_value(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"
