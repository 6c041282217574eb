"""Scores that a language model gave the articles of a generator, as a table.

reads   13_judge/<run>/judge.json
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.shared.core import schemas

PERSPECTIVE_LABELS = {
    "style_consistency": "style consistency",
    "context_consistency": "context consistency",
    "creativity": "creativity",
    "richness": "richness",
    "coherence": "coherence",
}
REFERENCE_LABELS = {"free": "reference-free", "aware": "reference-aware"}
JudgeScore = dict[str, Any]  # mean and standard_error; empty for a score that is not asked for


@dataclass(frozen=True)
class JudgeScores:
    results: dict[str, Any]  # judge.json

    @property
    def unavailable_reason(self) -> str:
        """Why there are no scores; "" if there are."""
        return self.results.get("unavailable", "")

    @cached_property
    def phases(self) -> dict[str, dict[str, Any]]:
        """The scores of each phase, in training order."""
        final = {self.results["phase"]: self.results}
        return {"sft": self.results["sft"]} | final if "sft" in self.results else final

    def columns(self) -> list[str]:
        return [f"{phase}, {label}" for phase in self.phases for label in REFERENCE_LABELS.values()]

    def rows(self) -> list[tuple[str, list[JudgeScore]]]:
        """Label and a score for each column: the five perspectives, then incoherence."""
        perspectives = [
            (
                label,
                [phase[name][key] for phase in self.phases.values() for name in REFERENCE_LABELS],
            )
            for key, label in PERSPECTIVE_LABELS.items()
        ]
        incoherence = [
            score for phase in self.phases.values() for score in (phase["incoherence"], {})
        ]
        return [*perspectives, ("incoherence, lower is better", incoherence)]

    def notes(self) -> list[str]:
        """How many articles were judged in each phase, and how many requests failed."""
        return [
            f"{name}: {phase['judged']['free']} articles judged without and"
            f" {phase['judged']['aware']} with the reference, {sum(phase['failures'].values())}"
            " failed requests"
            for name, phase in self.phases.items()
        ]


def load_judge_scores(path: Path) -> JudgeScores:
    """Raises InputError if the file is missing."""
    return JudgeScores(schemas.read_json(path))
