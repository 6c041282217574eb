"""Scores that papers published on a corpus, beside those of a run on the same corpus."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stages.report.generator_section import get_nested
from stages.shared.core.config import config_class
from stages.shared.runtime.stage import InputError

FILE = Path(__file__).with_name("published_scores.yaml")


@config_class
class PublishedCorpus:
    """One entry of published_scores.yaml, which describes the fields."""

    corpus: str
    columns: dict[str, str]
    scale: list[float]
    source: str
    note: str
    systems: dict[str, list[float | None]]


@dataclass(frozen=True)
class PublishedTable:
    """rows: the published systems, then the run; scores in the scale of the publication."""

    entry: PublishedCorpus
    rows: list[dict[str, Any]]


@cache
def load_entries() -> dict[str, PublishedCorpus]:
    """The entries of published_scores.yaml by name."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: PublishedCorpus(**values) for name, values in content.items()}


def check_names(published: dict[str, str | None], runs: list[str]) -> None:
    """Raises InputError if `report.published` has an entry for what is no run, or no such entry."""
    for run, name in published.items():
        if name is None:
            continue
        if run not in runs:
            raise InputError(f"params.yaml: report.published names {run!r}, which is no run")
        if name not in load_entries():
            raise InputError(
                f"params.yaml: report.published.{run} is {name!r}: give one of "
                f"{', '.join(load_entries())}"
            )


def build_table(name: str | None, run: str, metrics: dict[str, Any]) -> PublishedTable | None:
    """The table of the entry `name`; None without one. metrics: metrics.json of the run."""
    if name is None:
        return None
    entry = load_entries()[name]
    rows = [{"label": label, "scores": scores} for label, scores in entry.systems.items()]
    own = [
        value * scale if isinstance(value := get_nested(metrics, path), int | float) else None
        for path, scale in zip(entry.columns, entry.scale, strict=True)
    ]
    return PublishedTable(entry, [*rows, {"label": run, "scores": own, "total": True}])
