"""What a language model gave the articles of a run, as a table shows it.

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
JudgeScore = dict[str, Any]  # mean and standard_error; empty where nothing is asked


@dataclass(frozen=True)
class JudgeScores:
    results: dict[str, Any]  # judge.json

    @property
    def unavailable_reason(self) -> str:
        """Why there are no scores; "" where there are."""
        return self.results.get("unavailable", "")

    @cached_property
    def phases(self) -> dict[str, dict[str, Any]]:
        """The figures of each phase, in the order of training."""
        final = {self.results["phase"]: self.results}
        return {"sft": self.results["sft"]} | final if "sft" in self.results else final

    def columns(self) -> list[str]:
        return [f"{phase}, {label}" for phase in self.phases for label in REFERENCE_LABELS.values()]

    def rows(self) -> list[tuple[str, list[JudgeScore]]]:
        """Label and a figure for each column: the ten, then incoherence."""
        ten = [
            (
                label,
                [phase[name][key] for phase in self.phases.values() for name in REFERENCE_LABELS],
            )
            for key, label in PERSPECTIVE_LABELS.items()
        ]
        beside = [cell for phase in self.phases.values() for cell in (phase["incoherence"], {})]
        return [*ten, ("incoherence, lower is better", beside)]

    def notes(self) -> list[str]:
        """Of each phase: how many articles were judged, and what failed."""
        return [
            f"{name}: {phase['judged']['free']} articles without and {phase['judged']['aware']} "
            f"with reference, failed questions: {sum(phase['failures'].values())}"
            for name, phase in self.phases.items()
        ]


def load_judge_scores(path: Path) -> JudgeScores:
    """Raises WrongInput if the file is missing."""
    return JudgeScores(schemas.read_json(path))
