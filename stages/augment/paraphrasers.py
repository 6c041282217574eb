"""Paraphrasers of meme texts: rules, or a language model.

    paraphraser = load_paraphraser(config.backend, config.openai, prompt, count, seed)
    results = paraphraser.paraphrase([ParaphraseInput("a1", "When ...", "en")])

`rules` is stages/augment/rule_paraphraser.py; it works offline and only for English. `openai:MODEL`
is a model behind an OpenAI-compatible server, asked by stages/shared/llm/client.py or through its
Batch API.
"""

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from string import Template
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from stages.augment import batch_client, rule_paraphraser
from stages.shared.core.config import Field, config_class, params_file_of
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import Question, Reply
from stages.shared.llm.config import ChatConfig
from stages.shared.runtime.stage import InputError

CONFIG_SECTION, BACKEND_KEY = "augment.openai", "augment.backend"  # of params.yaml
TOKENS_PER_PRICE = 1_000_000


@config_class
class OpenAIParaphraserConfig:
    """How a language model is asked; a ChatConfig without the model, prompt and prices."""

    num_few_shot: int = Field(ge=0, description="examples of prompt.yaml in the prompt")
    temperature: float | None = Field(description="sampling temperature; null: the server's own")
    max_completion_tokens: int = Field(ge=1, description="tokens per answer, including reasoning")
    concurrency: int = Field(ge=1, description="questions in flight")
    max_retries: int = Field(ge=0, description="per request that meets a busy server")
    timeout: float = Field(gt=0, description="per answer, seconds")
    max_attempts: int = Field(ge=1, description="answers per question until one fits the schema")
    max_failed_fraction: float = Field(ge=0, description="failed questions that stop the stage")
    max_total_tokens: int = Field(ge=0, description="sent and received, with stored answers")
    input_token_price: float | None = Field(description="per million tokens; null: unknown")
    output_token_price: float | None = Field(description="per million tokens; null: unknown")
    use_batch_api: bool = Field(description="OpenAI's Batch API: cheaper, within a day")
    batch: batch_client.BatchRequestConfig = Field(description="limits of the Batch API")

    def to_chat_config(self, model: str) -> ChatConfig:
        names = {field.name for field in fields(ChatConfig)}
        values = {name: value for name, value in vars(self).items() if name in names}
        return ChatConfig(model=model, **values)

    def compute_cost(self, sent: int, received: int) -> float | None:
        """The price of these numbers of tokens; None if a price is unknown."""
        if self.input_token_price is None or self.output_token_price is None:
            return None
        return (
            sent * self.input_token_price + received * self.output_token_price
        ) / TOKENS_PER_PRICE


@dataclass(frozen=True)
class PromptExample:
    """A text and its paraphrases."""

    text: str
    paraphrases: list[str]


@dataclass(frozen=True)
class ParaphrasePrompt:
    """The prompt of stages/augment/prompt.yaml."""

    instruction: str  # contains $count
    examples: list[PromptExample]

    def render(self, count: int, num_few_shot: int) -> str:
        """The prompt for `count` paraphrases with its first `num_few_shot` examples.

        Raises InputError if there are too few examples or paraphrases, or for an unknown variable.
        """
        examples = self.examples[:num_few_shot]
        is_short = any(len(example.paraphrases) < count for example in examples)
        if len(examples) < num_few_shot or is_short:
            sizes = (len(example.paraphrases) for example in self.examples)
            raise InputError(
                f"{params_file_of(CONFIG_SECTION)}: {CONFIG_SECTION}.num_few_shot is "
                f"{num_few_shot} and augment.num_paraphrases {count}: prompt.yaml has "
                f"{len(self.examples)} examples with {min(sizes, default=0)} paraphrases: add "
                "more, or lower these numbers"
            )
        try:
            instruction = Template(self.instruction).substitute(count=count)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"prompt.yaml: instruction: {error} cannot be filled in: use $count, and $$ for a "
                "dollar sign"
            ) from None
        schema = build_answer_schema(count)
        shots = [
            f"{llm_client.quote_data(text=example.text)}\n"
            f"{schema(paraphrases=example.paraphrases[:count]).model_dump_json()}"
            for example in examples
        ]
        return "\n\n".join([instruction.strip(), *(["Examples:"] if shots else []), *shots])


@dataclass(frozen=True)
class ParaphraseInput:
    """The text of a record. language: ISO 639-1."""

    record_id: str
    text: str
    language: str


@dataclass(frozen=True)
class ParaphraseResult:
    """Unfiltered paraphrases of one text. failure: why there are none, else ""."""

    texts: list[str]
    failure: str = ""


class Paraphraser(ABC):
    """name: value of the column text_source. uses_llm: whether it is a language model."""

    name: str
    uses_llm: bool

    @abstractmethod
    def paraphrase(self, texts: list[ParaphraseInput]) -> list[ParaphraseResult]:
        """Paraphrase each text; results in the order of the texts."""

    def compute_statistics(self) -> dict[str, Any]:
        """Statistics of the last call, for summary.json."""
        return {"backend": self.name, "llm": self.uses_llm}


class NoParaphraser(Paraphraser):
    name, uses_llm = "none", False

    def paraphrase(self, texts: list[ParaphraseInput]) -> list[ParaphraseResult]:
        return [ParaphraseResult([]) for _ in texts]


class RuleParaphraser(Paraphraser):
    name, uses_llm = "rules", False

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def paraphrase(self, texts: list[ParaphraseInput]) -> list[ParaphraseResult]:
        return [self._paraphrase_text(text) for text in texts]

    def _paraphrase_text(self, text: ParaphraseInput) -> ParaphraseResult:
        if text.language != rule_paraphraser.LANGUAGE:
            return ParaphraseResult([], f"the rules do not know the language: {text.language}")
        name = f"{self.seed} {text.record_id}"
        return ParaphraseResult(rule_paraphraser.paraphrase_with_rules(text.text, self.count, name))


class LLMParaphraser(Paraphraser):
    uses_llm = True

    def __init__(
        self, model: str, config: OpenAIParaphraserConfig, prompt: ParaphrasePrompt, count: int
    ):
        self.name, self.config = model, config
        self.instruction = prompt.render(count, config.num_few_shot)
        self.schema = build_answer_schema(count)
        self.replies: list[Reply] = []

    def paraphrase(self, texts: list[ParaphraseInput]) -> list[ParaphraseResult]:
        questions = [
            Question(self.instruction, llm_client.quote_data(text=text.text), self.schema)
            for text in texts
        ]
        chat_config = self.config.to_chat_config(self.name)
        if self.config.use_batch_api:
            replies = batch_client.ask_questions(
                CONFIG_SECTION, chat_config, self.config.batch, questions, BACKEND_KEY
            )
        else:
            replies = llm_client.ask_questions(CONFIG_SECTION, chat_config, questions, BACKEND_KEY)
        # Memes with the same text share one question, which is counted once.
        self.replies = list(dict(zip(questions, replies, strict=True)).values())
        return [
            ParaphraseResult(reply.value.model_dump()["paraphrases"])
            if reply.value
            else ParaphraseResult([], reply.failure)
            for reply in replies
        ]

    def compute_statistics(self) -> dict[str, Any]:
        received = sum(reply.completion_tokens for reply in self.replies)
        sent = sum(reply.total_tokens for reply in self.replies) - received
        failures = Counter(reply.failure for reply in self.replies if reply.value is None)
        structured = all(reply.structured for reply in self.replies)
        return super().compute_statistics() | {
            "answered_by": sorted({name for reply in self.replies for name in reply.models}),
            "answers": "by JSON schema" if structured else "by prompt alone",
            "questions": len(self.replies),
            "failed_questions": dict(sorted(failures.items())),
            "tokens": {"sent": sent, "received": received},
            "cost": self.config.compute_cost(sent, received),
        }


def build_answer_schema(count: int) -> type[BaseModel]:
    """The schema of an answer: exactly `count` paraphrases."""
    closed = ConfigDict(json_schema_extra={"additionalProperties": False})  # required by OpenAI
    size = Field(min_length=count, max_length=count)
    return create_model(f"paraphrases_{count}", __config__=closed, paraphrases=(list[str], size))


def load_prompt(path: Path) -> ParaphrasePrompt:
    """Read a prompt file. Raises InputError if it is not a valid prompt."""
    try:
        return TypeAdapter(ParaphrasePrompt).validate_python(
            yaml.safe_load(path.read_text(encoding="utf-8"))
        )
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{path.name} is not YAML in UTF-8: restore it from git") from None
    except ValidationError as error:
        keys = sorted({".".join(map(str, fault["loc"])) or "all" for fault in error.errors()})
        raise InputError(
            f"{path.name}: missing or wrong: {', '.join(keys)}: give an instruction, and examples "
            "with a text and its paraphrases each"
        ) from None


def load_paraphraser(
    backend: str, config: OpenAIParaphraserConfig, prompt: ParaphrasePrompt, count: int, seed: int
) -> Paraphraser:
    """The paraphraser rules | none | openai:MODEL. Raises InputError for another backend."""
    kind, _, model = backend.partition(":")
    if kind == "openai" and model:
        return LLMParaphraser(model, config, prompt, count)
    if backend == "rules":
        return RuleParaphraser(count, seed)
    if backend == "none":
        return NoParaphraser()
    raise InputError(
        f"params.yaml: {BACKEND_KEY} is {backend!r}: give rules, openai:MODEL, or none for no "
        "paraphrases"
    )
