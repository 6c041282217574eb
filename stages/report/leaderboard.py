"""Runs side by side, a table for each corpus: figures of different texts compare nothing."""

from dataclasses import dataclass
from typing import Any

from stages.report.classifier_section import ClassifierSection
from stages.report.generator_section import GeneratorSection, get_nested

# Title -> where its value stands in the metrics of a phase or split, then its standard error and
# its ceiling, "" where there is none.
LeaderboardColumns = dict[str, tuple[str, str, str]]
GENERATOR_COLUMNS: LeaderboardColumns = {
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
_BOTH_CEILING, _TEXT_CEILING, _IMAGE_CEILING = (
    f"ceilings.{inputs}.realised" for inputs in ("both", "text", "picture")
)
_TEXT_METRICS, _IMAGE_METRICS = (f"single_modality.{inputs}" for inputs in ("text", "picture"))
CLASSIFIER_COLUMNS: LeaderboardColumns = {
    "skill": ("skill.value", "skill.standard_error", ""),
    "F1, lenient": ("lenient.f1", "lenient.standard_error", _BOTH_CEILING),
    "F1, strict": ("strict.f1", "strict.standard_error", ""),
    "F1 of places": ("spans.f1", "spans.standard_error", ""),
    "accuracy": ("accuracy.value", "accuracy.standard_error", _BOTH_CEILING),
    "weighted F1": ("weighted_f1.value", "weighted_f1.standard_error", ""),
    "macro F1": ("macro_f1.value", "macro_f1.standard_error", ""),
    "text alone": (f"{_TEXT_METRICS}.value", f"{_TEXT_METRICS}.standard_error", _TEXT_CEILING),
    "picture alone": (
        f"{_IMAGE_METRICS}.value",
        f"{_IMAGE_METRICS}.standard_error",
        _IMAGE_CEILING,
    ),
    "nats per token": ("regularisers.caption_nats.value", "", ""),
    "bits per dimension": ("regularisers.drawing_bits.value", "", ""),
    "trained weights": ("parameters.trained", "", ""),
}
LeaderboardCell = dict[str, Any]  # value, standard_error and ceiling, None where there is none


@dataclass(frozen=True)
class Leaderboard:
    """The runs on one corpus; each row the name of a run, a phase or split of it, its figures."""

    corpus: str
    part: str  # of a run that a row is: phase | split
    columns: list[str]  # that any of the runs has a figure for
    rows: list[tuple[str, str, list[LeaderboardCell]]]

    @property
    def has_ceilings(self) -> bool:
        """Whether any figure stands beside its ceiling."""
        return any(one["ceiling"] is not None for _, _, row in self.rows for one in row)


def build_leaderboards(
    runs: list[GeneratorSection], readers: list[ClassifierSection]
) -> list[Leaderboard]:
    """One for each corpus, in the order of its first run; writers before readers."""
    written = [(run.params["corpus"], run.name, run.phases) for run in runs]
    labelled = [(reader.params["corpus"], reader.name, reader.splits) for reader in readers]
    return [
        _build_leaderboard(corpus, part, columns, [run[1:] for run in runs if run[0] == corpus])
        for part, columns, runs in [
            ("phase", GENERATOR_COLUMNS, written),
            ("split", CLASSIFIER_COLUMNS, labelled),
        ]
        for corpus in dict.fromkeys(corpus for corpus, _, _ in runs)
    ]


def _build_leaderboard(
    corpus: str, part: str, known: LeaderboardColumns, runs: list[tuple[str, dict[str, Any]]]
) -> Leaderboard:
    parts = [(run, name, found) for run, parts in runs for name, found in parts.items()]
    columns = {
        title: places
        for title, places in known.items()
        if any(get_nested(found, places[0]) is not None for _, _, found in parts)
    }
    rows = [
        (run, name, [_build_cell(found, *places) for places in columns.values()])
        for run, name, found in parts
    ]
    return Leaderboard(corpus, part, list(columns), rows)


def _build_cell(found: dict[str, Any], *places: str) -> LeaderboardCell:
    names = ("value", "standard_error", "ceiling")
    return {
        name: get_nested(found, place) if place else None
        for name, place in zip(names, places, strict=True)
    }
