"""Who words the text of a meme anew: rules without a language model, or a language model.

    found = load(params.backend, params, prompt).paraphrase([Text("a1", "When ...", "en")])

`rules` is stages/augment/rule_paraphraser.py, works offline and knows English alone. `openai:MODEL` is a
model behind an OpenAI-compatible server, asked by stages/shared/llm/client.py, or by its Batch API.
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
from stages.shared.core.config import Field, config_class
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import Question, Reply
from stages.shared.runtime.stage import InputError

CONFIG_SECTION, BACKEND_KEY = "augment.openai", "augment.backend"  # of params.yaml
TOKENS_PER_PRICE = 1_000_000  # tokens


@config_class
class OpenAIParaphraserConfig:
    """How a language model is asked; see llm.Settings."""

    num_few_shot: int = Field(ge=0)  # of the prompt's, that are shown
    temperature: float | None
    max_completion_tokens: int = Field(ge=1)
    concurrency: int = Field(ge=1)
    max_retries: int = Field(ge=0)
    timeout: float = Field(gt=0)  # seconds
    max_attempts: int = Field(ge=1)
    max_failed_fraction: float = Field(ge=0)  # share of the questions
    max_total_tokens: int = Field(ge=0)
    input_token_price: float | None  # of a million tokens; None: unknown
    output_token_price: float | None
    use_batch_api: bool
    batch: batch_client.BatchRequestConfig

    def to_llm_settings(self, model: str) -> llm_client.ChatConfig:
        names = {field.name for field in fields(llm_client.ChatConfig)}
        given = {name: value for name, value in vars(self).items() if name in names}
        return llm_client.ChatConfig(model=model, **given)

    def compute_cost(self, sent: int, received: int) -> float | None:
        """What these tokens cost, where both prices are known."""
        if self.input_token_price is None or self.output_token_price is None:
            return None
        return (
            sent * self.input_token_price + received * self.output_token_price
        ) / TOKENS_PER_PRICE


@dataclass(frozen=True)
class PromptExample:
    text: str
    paraphrases: list[str]


@dataclass(frozen=True)
class ParaphrasePrompt:
    """What a language model is told; stages/augment/prompt.yaml."""

    instruction: str  # with $count
    examples: list[PromptExample]

    def render(self, count: int, shown: int) -> str:
        """What a model is told. Raises WrongInput where something is missing."""
        examples = self.examples[:shown]
        if len(examples) < shown or any(len(one.paraphrases) < count for one in examples):
            raise InputError(
                f"params.yaml: {CONFIG_SECTION}.num_few_shot is {shown} and augment.num_paraphrases {count}: the "
                f"prompt has {len(self.examples)} examples of "
                f"{min((len(one.paraphrases) for one in self.examples), default=0)} paraphrases, "
                "so write more of them there, or ask for less"
            )
        try:
            told = Template(self.instruction).substitute(count=count)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"the prompt's instruction: {error} cannot be filled in: there is $count, and $$ "
                "for a dollar"
            ) from None
        schema = build_answer_schema(count)
        said = [
            f"{llm_client.quote_data(text=one.text)}\n"
            f"{schema(paraphrases=one.paraphrases[:count]).model_dump_json()}"
            for one in examples
        ]
        return "\n\n".join([told.strip(), *(["Examples:"] if said else []), *said])


@dataclass(frozen=True)
class ParaphraseInput:
    """Of a record."""

    record_id: str
    text: str
    language: str


@dataclass(frozen=True)
class ParaphraseResult:
    """Paraphrases of one text, unchecked. failure: why there are none, else ""."""

    texts: list[str]
    failure: str = ""


class Paraphraser(ABC):
    """name: what stands in text_source. llm: whether a language model writes."""

    name: str
    uses_llm: bool

    @abstractmethod
    def paraphrase(self, texts: list[ParaphraseInput]) -> list[ParaphraseResult]:
        """Of each text, in their order."""

    def compute_statistics(self) -> dict[str, Any]:
        """What summary.json says of the last call."""
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
        return ParaphraseResult(
            rule_paraphraser.paraphrase_with_rules(
                text.text, self.count, f"{self.seed} {text.record_id}"
            )
        )


class LLMParaphraser(Paraphraser):
    uses_llm = True

    def __init__(
        self, model: str, numbers: OpenAIParaphraserConfig, prompt: ParaphrasePrompt, count: int
    ):
        self.name, self.config = model, numbers
        self.instruction = prompt.render(count, numbers.num_few_shot)
        self.schema = build_answer_schema(count)
        self.replies: list[Reply] = []

    def paraphrase(self, texts: list[ParaphraseInput]) -> list[ParaphraseResult]:
        questions = [
            Question(self.instruction, llm_client.quote_data(text=one.text), self.schema)
            for one in texts
        ]
        settings = self.config.to_llm_settings(self.name)
        if self.config.use_batch_api:
            replies = batch_client.ask_questions(
                CONFIG_SECTION, settings, self.config.batch, questions, BACKEND_KEY
            )
        else:
            replies = llm_client.ask_questions(CONFIG_SECTION, settings, questions, BACKEND_KEY)
        # Memes of one text are one question, paid once.
        self.replies = list(dict(zip(questions, replies, strict=True)).values())
        return [
            ParaphraseResult(reply.value.paraphrases)
            if reply.value
            else ParaphraseResult([], reply.failure)
            for reply in replies
        ]

    def compute_statistics(self) -> dict[str, Any]:
        received = sum(reply.completion_tokens for reply in self.replies)
        sent = sum(reply.total_tokens for reply in self.replies) - received
        failures = Counter(reply.failure for reply in self.replies if reply.value is None)
        return super().compute_statistics() | {
            "answered_by": sorted({name for reply in self.replies for name in reply.models}),
            "answers": "by JSON schema"
            if all(reply.structured for reply in self.replies)
            else "by prompt alone",
            "questions": len(self.replies),
            "failed_questions": dict(sorted(failures.items())),
            "tokens": {"sent": sent, "received": received},
            "cost": self.config.compute_cost(sent, received),
        }


def build_answer_schema(count: int) -> type[BaseModel]:
    """The schema of an answer."""
    closed = ConfigDict(json_schema_extra={"additionalProperties": False})  # OpenAI asks for it
    many = Field(min_length=count, max_length=count)
    return create_model(f"paraphrases_{count}", __config__=closed, paraphrases=(list[str], many))


def load_prompt(path: Path) -> ParaphrasePrompt:
    """Raises WrongInput if the file is no prompt."""
    try:
        return TypeAdapter(ParaphrasePrompt).validate_python(
            yaml.safe_load(path.read_text(encoding="utf-8"))
        )
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError(f"{path.name} is no YAML in UTF-8: restore it from git") from None
    except ValidationError as error:
        places = sorted({".".join(map(str, fault["loc"])) or "all" for fault in error.errors()})
        raise InputError(
            f"{path.name}: missing or wrong: {', '.join(places)}: give an instruction, and "
            "examples of a text and its paraphrases each"
        ) from None


def load_paraphraser(
    backend: str, numbers: OpenAIParaphraserConfig, prompt: ParaphrasePrompt, count: int, seed: int
) -> Paraphraser:
    """rules | none | openai:MODEL. Raises WrongInput for another one."""
    kind, _, model = backend.partition(":")
    if kind == "openai" and model:
        return LLMParaphraser(model, numbers, prompt, count)
    if backend == "rules":
        return RuleParaphraser(count, seed)
    if backend == "none":
        return NoParaphraser()
    raise InputError(
        f"params.yaml: {BACKEND_KEY} is {backend!r}: give rules, openai:MODEL, or none for no "
        "paraphrases"
    )
