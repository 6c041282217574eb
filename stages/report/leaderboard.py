"""Leaderboards: all runs on a corpus in one table. Scores on different corpora do not compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.report.classifier_section import ClassifierSection
from stages.report.generator_section import GeneratorSection, get_nested


class MetricPaths(NamedTuple):
    """Dotted paths in the metrics of a phase or split; "" where there is nothing."""

    value: str
    standard_error: str = ""
    ceiling: str = ""


def _with_error(path: str, ceiling: str = "", value: str = "value") -> MetricPaths:
    return MetricPaths(f"{path}.{value}", f"{path}.standard_error", ceiling)


GENERATOR_COLUMNS = {
    "skill": _with_error("skill"),
    "share of ceiling": _with_error("share_of_ceiling"),
    "grounding": _with_error("grounding", value="total"),
    "ROUGE-L": MetricPaths("rouge_l"),
    "METEOR": MetricPaths("meteor"),
    "METEOR, exact and stem matches": MetricPaths("meteor_exact_stem"),
    "CIDEr": MetricPaths("cider"),
    "BERTScore": MetricPaths("bert_score"),
    "literal reward": MetricPaths("rewards.literal"),
    "semantic reward": MetricPaths("rewards.semantic"),
}
_BOTH_CEILING, _TEXT_CEILING, _IMAGE_CEILING = (
    f"ceilings.{inputs}.realised" for inputs in ("both", "text", "picture")
)
CLASSIFIER_COLUMNS = {
    "skill": _with_error("skill"),
    "lenient F1": _with_error("lenient", _BOTH_CEILING, value="f1"),
    "strict F1": _with_error("strict", value="f1"),
    "span F1": _with_error("spans", value="f1"),
    "accuracy": _with_error("accuracy", _BOTH_CEILING),
    "weighted F1": _with_error("weighted_f1"),
    "macro F1": _with_error("macro_f1"),
    "text only": _with_error("single_modality.text", _TEXT_CEILING),
    "image only": _with_error("single_modality.picture", _IMAGE_CEILING),
    "caption loss": MetricPaths("regularisers.caption_nats.value"),
    "image loss": MetricPaths("regularisers.drawing_bits.value"),
    "trained parameters": MetricPaths("parameters.trained"),
}
LeaderboardCell = dict[str, Any]  # value, standard_error and ceiling; None where there is none


@dataclass(frozen=True)
class LeaderboardRow:
    run: str
    part: str  # the phase or split
    cells: list[LeaderboardCell]


@dataclass(frozen=True)
class Leaderboard:
    """The generators or the classifiers on one corpus."""

    corpus: str
    part: str  # what a row is of a run: phase | split
    columns: list[str]  # those with a value in any row
    rows: list[LeaderboardRow]

    @property
    def has_ceilings(self) -> bool:
        return any(cell["ceiling"] is not None for row in self.rows for cell in row.cells)

    @property
    def has_decoder_losses(self) -> bool:
        return bool({"caption loss", "image loss"} & set(self.columns))


def build_leaderboards(
    generators: list[GeneratorSection], classifiers: Sequence[ClassifierSection]
) -> list[Leaderboard]:
    """One leaderboard for each corpus, in the order of the first run; generators come first."""
    return [
        _build_leaderboard(
            corpus,
            part,
            columns,
            {name: parts for run_corpus, name, parts in runs if run_corpus == corpus},
        )
        for part, columns, runs in [
            (
                "phase",
                GENERATOR_COLUMNS,
                [(run.params["corpus"], run.name, run.phases) for run in generators],
            ),
            (
                "split",
                CLASSIFIER_COLUMNS,
                [(run.params["corpus"], run.name, run.splits) for run in classifiers],
            ),
        ]
        for corpus in dict.fromkeys(corpus for corpus, _, _ in runs)
    ]


def _build_leaderboard(
    corpus: str, part: str, columns: dict[str, MetricPaths], runs: dict[str, dict[str, Any]]
) -> Leaderboard:
    """runs: run -> phase or split -> metrics."""
    parts = [(run, name, metrics) for run, parts in runs.items() for name, metrics in parts.items()]
    used_columns = {
        title: paths
        for title, paths in columns.items()
        if any(get_nested(metrics, paths.value) is not None for _, _, metrics in parts)
    }
    rows = [
        LeaderboardRow(run, name, [_build_cell(metrics, paths) for paths in used_columns.values()])
        for run, name, metrics in parts
    ]
    return Leaderboard(corpus, part, list(used_columns), rows)


def _build_cell(metrics: dict[str, Any], paths: MetricPaths) -> LeaderboardCell:
    return {
        name: get_nested(metrics, path) if path else None for name, path in paths._asdict().items()
    }
