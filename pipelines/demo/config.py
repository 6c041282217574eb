"""The section `cli_demo`."""

from stages.shared.core.config import Field, config_class


@config_class
class DemoConfig:
    port: int = Field(ge=0, le=65535, description="port of the page; 0: any free one")
    max_request_megabytes: int = Field(
        ge=1, description="size of a request at most, with its images in base64"
    )
    num_examples: int = Field(ge=0, description="examples of the test split per model")
    max_image_size: int = Field(
        ge=1, description="longest side of a drawn mask or exchange map, pixels"
    )
