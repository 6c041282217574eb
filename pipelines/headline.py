"""The figures that a run ends with, one row a run, from data/12_evaluate/RUN/metrics.json."""

import json
from pathlib import Path
from typing import Any

REPORT = Path("data/14_report/index.html")
METRICS = Path("data/12_evaluate")
COLUMNS = {  # title -> where it stands in metrics.json
    "skill": ("skill", "value"),
    "± se": ("skill", "standard_error"),
    "grounding": ("grounding", "total"),
    "ceiling": ("ceilings", "both", "realised"),
    "ROUGE-L": ("rouge_l",),
    "CIDEr": ("cider",),
    "BERTScore": ("bert_score",),
}


def rows() -> list[dict[str, str]]:
    """One row for each run of the current folder that was evaluated, as text."""
    return [
        {"run": run, **{title: _text(found.get(title)) for title in COLUMNS}}
        for run, found in _figures().items()
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
        ".".join([run, *COLUMNS[title]]): value
        for run, found in _figures().items()
        for title, value in found.items()
    }


def _figures() -> dict[str, dict[str, float]]:
    """run -> title -> figure; what a corpus cannot be scored on is missing."""
    figures: dict[str, dict[str, float]] = {}
    for run, every in _files().items():
        found = {title: _at(every, place) for title, place in COLUMNS.items()}
        figures[run] = {title: x for title, x in found.items() if x is not None}
    return figures


def _files() -> dict[str, dict[str, Any]]:
    """run -> its metrics.json"""
    files = sorted(METRICS.glob("*/metrics.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def _at(metrics: dict[str, Any], place: tuple[str, ...]) -> float | None:
    value: Any = metrics
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None  # or "unavailable"


def _text(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"
