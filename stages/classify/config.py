"""The section `label` of params.yaml."""

from stages.shared.core.config import Field, config_class


@config_class
class ClassifyConfig:
    num_examples: int = Field(ge=0)
    num_generation_examples: int = Field(ge=0)
    num_images_per_prompt: int = Field(ge=0)
    num_projection_samples: int = Field(ge=0)
    seed: int
