"""The summary table of all evaluated runs that params.yaml names.

reads   data/12_evaluate/RUN/metrics.json, data/12_evaluate_classifier/RUN/metrics.json
"""

import json
from pathlib import Path
from typing import Any

from stages.shared.core import config

REPORT_PATH = Path("data/14_report/index.html")
GENERATOR_METRICS_DIR = Path("data/12_evaluate")
CLASSIFIER_METRICS_DIR = Path("data/12_evaluate_classifier")
MetricPath = tuple[str, ...]  # nested keys of metrics.json
COLUMNS: dict[str, list[MetricPath]] = {  # title -> candidate paths, the first existing one is used
    "skill": [("skill", "value")],
    "of ceiling": [("share_of_ceiling", "value")],  # of captions, which have no topics
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
    """One row of formatted metrics for each evaluated run of the current folder.

    Columns without a value in any row are left out.
    """
    metrics = _metrics_by_title()
    titles = [title for title in COLUMNS if any(title in values for values in metrics.values())]
    return [
        {"run": run, **{title: _format_value(values.get(title)) for title in titles}}
        for run, values in metrics.items()
    ]


def format_table() -> str:
    """The rows as an aligned table, followed by the warnings and the path of the report."""
    rows = build_rows()
    if not rows:
        return "No run has been evaluated yet."
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    lines += list_warnings()
    if REPORT_PATH.exists():
        lines += ["", f"report: {REPORT_PATH.absolute()}"]
    return "\n".join(lines)


def list_warnings() -> list[str]:
    """One line for each warning about the final phase of a run."""
    return [
        f"{run}: {warning}"
        for run, metrics in load_metrics().items()
        for warning in metrics.get("warnings", {}).values()
    ]


def collect_metrics() -> dict[str, float]:
    """The metrics of the table by dotted name, e.g. flexmuse.skill.value."""
    return {
        ".".join([run, *path]): _get_nested(metrics, path)
        for run, metrics in load_metrics().items()
        for paths in COLUMNS.values()
        if (path := _first_path(metrics, paths))
    }


def _metrics_by_title() -> dict[str, dict[str, float]]:
    """run -> title -> value; metrics that do not apply to a corpus are missing."""
    return {
        run: {
            title: _get_nested(metrics, path)
            for title, paths in COLUMNS.items()
            if (path := _first_path(metrics, paths))
        }
        for run, metrics in load_metrics().items()
    }


def _first_path(metrics: dict[str, Any], paths: list[MetricPath]) -> MetricPath | None:
    """The first of `paths` that has a value in `metrics`."""
    return next((path for path in paths if _get_nested(metrics, path) is not None), None)


def load_metrics() -> dict[str, dict[str, Any]]:
    """run -> metrics.json of the runs in params.yaml; deleted runs may still have files."""
    params = config.read_params()
    files = {
        run: folder / run / "metrics.json"
        for section, folder in {
            "generators": GENERATOR_METRICS_DIR,
            "classifiers": CLASSIFIER_METRICS_DIR,
        }.items()
        for run in params.get(section, {})
    }
    return {
        run: json.loads(file.read_text(encoding="utf-8"))
        for run, file in files.items()
        if file.exists()
    }


def _get_nested(metrics: dict[str, Any], path: MetricPath) -> float | None:
    value: Any = metrics
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None  # or "unavailable"


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
