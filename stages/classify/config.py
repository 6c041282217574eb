"""The section `label` of params.yaml."""

from dataclasses import dataclass

from stages.shared.core.config import at_least


@dataclass(frozen=True)
class Params:
    examples: int
    drawn: int
    samples: int
    embedded: int
    seed: int

    def __post_init__(self) -> None:
        at_least(self, examples=0, drawn=0, samples=0, embedded=0)
