"""The section `classify` of params.yaml."""

from stages.shared.core.config import Field, config_class


@config_class
class ClassifyConfig:
    num_examples: int = Field(
        ge=0, description="items whose exchange, caption or attention is kept"
    )
    num_generation_examples: int = Field(ge=0, description="of these, items with sampled images")
    num_images_per_prompt: int = Field(ge=0, description="sampled images of an item")
    num_projection_samples: int = Field(ge=0, description="items whose embeddings are kept")
    seed: int = Field(description="seed of image sampling")
