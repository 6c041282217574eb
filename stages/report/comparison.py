"""Runs side by side, a table for each corpus: figures of different texts compare nothing."""

from dataclasses import dataclass
from typing import Any

from stages.report.run import Phase, Run, at

COLUMNS = {  # title -> where it stands in a phase's metrics, and its standard error if it has one
    "skill": ("skill.value", "skill.standard_error"),
    "share of ceiling": ("share_of_ceiling.value", "share_of_ceiling.standard_error"),
    "grounding": ("grounding.total", "grounding.standard_error"),
    "ROUGE-L": ("rouge_l", ""),
    "METEOR": ("meteor", ""),
    "METEOR, exact and stem only": ("meteor_exact_stem", ""),
    "CIDEr": ("cider", ""),
    "BERTScore": ("bert_score", ""),
    "literal reward": ("rewards.literal", ""),
    "semantic reward": ("rewards.semantic", ""),
}
Figure = dict[str, Any]  # value and standard_error, None where there is none


@dataclass(frozen=True)
class Comparison:
    """The runs on one corpus; each row the name of a run, a phase of it, and its figures."""

    corpus: str
    columns: list[str]  # that any of the runs has a figure for
    rows: list[tuple[str, str, list[Figure]]]


def comparisons(runs: list[Run]) -> list[Comparison]:
    """One for each corpus, in the order of its first run."""
    corpora = dict.fromkeys(run.params["corpus"] for run in runs)
    return [_comparison(name, [r for r in runs if r.params["corpus"] == name]) for name in corpora]


def _comparison(corpus: str, runs: list[Run]) -> Comparison:
    phases = [(run.name, name, phase) for run in runs for name, phase in run.phases.items()]
    columns = [
        title
        for title, (value, _) in COLUMNS.items()
        if any(at(phase, value) is not None for _, _, phase in phases)
    ]
    rows = [
        (run, name, [_figure(phase, title) for title in columns]) for run, name, phase in phases
    ]
    return Comparison(corpus, columns, rows)


def _figure(phase: Phase, title: str) -> Figure:
    value, error = COLUMNS[title]
    return {"value": at(phase, value), "standard_error": at(phase, error) if error else None}
