"""How a language model is asked."""

from stages.shared.core.config import Field, config_class

NO_MODEL = "none"  # the `model` that disables the language model


@config_class
class ChatConfig:
    """How a language model is asked; part of the section that asks it."""

    model: str = Field(description="model name on the server, or none: no questions")
    temperature: float | None = Field(description="sampling temperature; null: the server's own")
    max_completion_tokens: int = Field(ge=1, description="tokens per answer, including reasoning")
    concurrency: int = Field(ge=1, description="questions in flight")
    max_retries: int = Field(ge=0, description="per request that meets a busy server")
    timeout: float = Field(gt=0, description="per answer, seconds")
    max_attempts: int = Field(ge=1, description="answers per question until one fits the schema")
    max_total_tokens: int = Field(ge=0, description="sent and received, with stored answers")
    max_failed_fraction: float = Field(ge=0, description="failed questions that stop the stage")
