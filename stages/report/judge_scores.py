"""What a language model gave the articles of a run, as a table shows it.

reads   13_judge/<run>/judge.json
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.shared.core import schemas

LABELS = {
    "style_consistency": "style consistency",
    "context_consistency": "context consistency",
    "creativity": "creativity",
    "richness": "richness",
    "coherence": "coherence",
}
REFERENCES = {"free": "reference-free", "aware": "reference-aware"}
Figure = dict[str, Any]  # mean and standard_error; empty where nothing is asked


@dataclass(frozen=True)
class Judged:
    found: dict[str, Any]  # judge.json

    @property
    def unavailable(self) -> str:
        """Why there are no scores; "" where there are."""
        return self.found.get("unavailable", "")

    @cached_property
    def phases(self) -> dict[str, dict[str, Any]]:
        """The figures of each phase, in the order of training."""
        final = {self.found["phase"]: self.found}
        return {"sft": self.found["sft"]} | final if "sft" in self.found else final

    def columns(self) -> list[str]:
        return [f"{phase}, {label}" for phase in self.phases for label in REFERENCES.values()]

    def rows(self) -> list[tuple[str, list[Figure]]]:
        """Label and a figure for each column: the ten, then incoherence."""
        ten = [
            (label, [phase[name][key] for phase in self.phases.values() for name in REFERENCES])
            for key, label in LABELS.items()
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


def read(path: Path) -> Judged:
    """Raises WrongInput if the file is missing."""
    return Judged(schemas.read_json(path))
