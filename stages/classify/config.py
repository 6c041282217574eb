"""The section `label` of params.yaml."""

from dataclasses import dataclass

from stages.shared.core.config import check_at_least


@dataclass(frozen=True)
class ClassifyConfig:
    num_examples: int
    num_generation_examples: int
    num_images_per_prompt: int
    num_projection_samples: int
    seed: int

    def __post_init__(self) -> None:
        check_at_least(self, examples=0, drawn=0, samples=0, embedded=0)
