"""What every paper's objective is given: its configs, and the files it reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.shared.generation.generator import GeneratorRun
from stages.shared.similarity.embedders import RewardConfig


@dataclass(frozen=True)
class PhaseConfig:
    """The sections of the parameter files that the stage reads."""

    run: GeneratorRun
    objective: Any  # the paper's PreferenceConfig
    rewards: RewardConfig  # for an objective with a semantic reward
    checkpoint_interval_seconds: float


@dataclass(frozen=True)
class PhaseInputs:
    """The files and folders that the stage reads, see its `__main__`."""

    ingest: Path
    pairs: Path
    chunks: Path
    features: Path
    sft: Path

    @property
    def paths(self) -> list[Path]:
        """All of them, in the order above."""
        return [self.ingest, self.pairs, self.chunks, self.features, self.sft]
