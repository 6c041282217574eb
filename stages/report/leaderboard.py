"""Runs side by side, a table for each corpus: figures of different texts compare nothing."""

from dataclasses import dataclass
from typing import Any

from stages.report.classifier_section import Reader
from stages.report.generator_section import Run, at

# Title -> where its value stands in the metrics of a phase or split, then its standard error and
# its ceiling, "" where there is none.
Columns = dict[str, tuple[str, str, str]]
WRITERS: Columns = {
    "skill": ("skill.value", "skill.standard_error", ""),
    "share of ceiling": ("share_of_ceiling.value", "share_of_ceiling.standard_error", ""),
    "grounding": ("grounding.total", "grounding.standard_error", ""),
    "ROUGE-L": ("rouge_l", "", ""),
    "METEOR": ("meteor", "", ""),
    "METEOR, exact and stem only": ("meteor_exact_stem", "", ""),
    "CIDEr": ("cider", "", ""),
    "BERTScore": ("bert_score", "", ""),
    "literal reward": ("rewards.literal", "", ""),
    "semantic reward": ("rewards.semantic", "", ""),
}
_OF_BOTH, _OF_TEXT, _OF_PICTURE = (
    f"ceilings.{inputs}.realised" for inputs in ("both", "text", "picture")
)
_TEXT, _PICTURE = (f"single_modality.{inputs}" for inputs in ("text", "picture"))
READERS: Columns = {
    "skill": ("skill.value", "skill.standard_error", ""),
    "F1, lenient": ("lenient.f1", "lenient.standard_error", _OF_BOTH),
    "F1, strict": ("strict.f1", "strict.standard_error", ""),
    "F1 of places": ("spans.f1", "spans.standard_error", ""),
    "accuracy": ("accuracy.value", "accuracy.standard_error", _OF_BOTH),
    "weighted F1": ("weighted_f1.value", "weighted_f1.standard_error", ""),
    "macro F1": ("macro_f1.value", "macro_f1.standard_error", ""),
    "text alone": (f"{_TEXT}.value", f"{_TEXT}.standard_error", _OF_TEXT),
    "picture alone": (f"{_PICTURE}.value", f"{_PICTURE}.standard_error", _OF_PICTURE),
    "nats per token": ("regularisers.caption_nats.value", "", ""),
    "bits per dimension": ("regularisers.drawing_bits.value", "", ""),
    "trained weights": ("parameters.trained", "", ""),
}
Figure = dict[str, Any]  # value, standard_error and ceiling, None where there is none


@dataclass(frozen=True)
class Comparison:
    """The runs on one corpus; each row the name of a run, a phase or split of it, its figures."""

    corpus: str
    part: str  # of a run that a row is: phase | split
    columns: list[str]  # that any of the runs has a figure for
    rows: list[tuple[str, str, list[Figure]]]

    @property
    def has_ceilings(self) -> bool:
        """Whether any figure stands beside its ceiling."""
        return any(one["ceiling"] is not None for _, _, row in self.rows for one in row)


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


def _figure(found: dict[str, Any], *places: str) -> Figure:
    names = ("value", "standard_error", "ceiling")
    return {
        name: at(found, place) if place else None for name, place in zip(names, places, strict=True)
    }
