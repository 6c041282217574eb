"""Runs side by side, a table for each corpus: figures of different texts compare nothing."""

from dataclasses import dataclass
from typing import Any

from stages.report.reader import Reader
from stages.report.run import Run, at

Columns = dict[str, tuple[str, str]]
WRITERS: Columns = {  # title -> where it stands in a phase's metrics, and its standard error if any
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
READERS: Columns = {  # the same of a split's metrics
    "skill": ("skill.value", "skill.standard_error"),
    "F1, lenient": ("lenient.f1", "lenient.standard_error"),
    "F1, strict": ("strict.f1", "strict.standard_error"),
    "F1 of places": ("spans.f1", "spans.standard_error"),
    "accuracy": ("accuracy.value", "accuracy.standard_error"),
    "weighted F1": ("weighted_f1.value", "weighted_f1.standard_error"),
    "macro F1": ("macro_f1.value", "macro_f1.standard_error"),
    "text alone": ("single_modality.text.value", "single_modality.text.standard_error"),
    "ceiling of text": ("ceilings.text.realised", ""),
    "picture alone": ("single_modality.picture.value", "single_modality.picture.standard_error"),
    "ceiling of picture": ("ceilings.picture.realised", ""),
    "ceiling of both": ("ceilings.both.realised", ""),
    "nats per token": ("regularisers.caption_nats.value", ""),
    "bits per dimension": ("regularisers.drawing_bits.value", ""),
    "trained weights": ("parameters.trained", ""),
}
Figure = dict[str, Any]  # value and standard_error, None where there is none


@dataclass(frozen=True)
class Comparison:
    """The runs on one corpus; each row the name of a run, a phase or split of it, its figures."""

    corpus: str
    part: str  # of a run that a row is: phase | split
    columns: list[str]  # that any of the runs has a figure for
    rows: list[tuple[str, str, list[Figure]]]


def comparisons(runs: list[Run], readers: list[Reader]) -> list[Comparison]:
    """One for each corpus, in the order of its first run; writers before readers."""
    written = [(run.params["corpus"], run.name, run.phases) for run in runs]
    labelled = [(reader.params["corpus"], reader.name, reader.splits) for reader in readers]
    return [
        _comparison(corpus, part, columns, [run[1:] for run in runs if run[0] == corpus])
        for part, columns, runs in [("phase", WRITERS, written), ("split", READERS, labelled)]
        for corpus in dict.fromkeys(corpus for corpus, _, _ in runs)
    ]


def _comparison(
    corpus: str, part: str, known: Columns, runs: list[tuple[str, dict[str, Any]]]
) -> Comparison:
    parts = [(run, name, found) for run, parts in runs for name, found in parts.items()]
    columns = {
        title: places
        for title, places in known.items()
        if any(at(found, places[0]) is not None for _, _, found in parts)
    }
    rows = [
        (run, name, [_figure(found, *places) for places in columns.values()])
        for run, name, found in parts
    ]
    return Comparison(corpus, part, list(columns), rows)


def _figure(found: dict[str, Any], value: str, error: str) -> Figure:
    return {"value": at(found, value), "standard_error": at(found, error) if error else None}
