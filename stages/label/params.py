"""The section `label` of params.yaml."""

from dataclasses import dataclass

from stages.shared.stage import WrongInput


@dataclass(frozen=True)
class Params:
    examples: int
    drawn: int
    samples: int
    embedded: int
    seed: int

    def __post_init__(self) -> None:
        """Raises WrongInput if a number of items is below 0."""
        for name in ("examples", "drawn", "samples", "embedded"):
            if getattr(self, name) < 0:
                raise WrongInput(
                    f"params.yaml: label.{name} is {getattr(self, name)}: give 0 or more"
                )
