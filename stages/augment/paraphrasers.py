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
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from stages.augment import batch_client, rule_paraphraser
from stages.shared.core.config import at_least
from stages.shared.llm import client as llm_client
from stages.shared.llm.client import Question, Reply
from stages.shared.runtime.stage import WrongInput

SECTION, NAMED_BY = "augment.openai", "augment.backend"  # of params.yaml
PER_PRICE = 1_000_000  # tokens


@dataclass(frozen=True)
class OpenAI:
    """How a language model is asked; see llm.Settings."""

    examples: int  # of the prompt's, that are shown
    temperature: float | None
    answer_tokens: int
    concurrency: int
    retries: int
    timeout: float  # seconds
    attempts: int
    max_failed: float  # share of the questions
    max_tokens_total: int
    price_sent: float | None  # of a million tokens; None: unknown
    price_received: float | None
    batch_api: bool
    batch: batch_client.Numbers

    def __post_init__(self) -> None:
        """Raises ValueError."""
        at_least(self, examples=0)
        self.settings("any")  # which know the bounds of theirs

    def settings(self, model: str) -> llm_client.Settings:
        names = {field.name for field in fields(llm_client.Settings)}
        given = {name: value for name, value in vars(self).items() if name in names}
        return llm_client.Settings(model=model, **given)

    def cost(self, sent: int, received: int) -> float | None:
        """What these tokens cost, where both prices are known."""
        if self.price_sent is None or self.price_received is None:
            return None
        return (sent * self.price_sent + received * self.price_received) / PER_PRICE


@dataclass(frozen=True)
class Example:
    text: str
    paraphrases: list[str]


@dataclass(frozen=True)
class Prompt:
    """What a language model is told; stages/augment/prompt.yaml."""

    instruction: str  # with $count
    examples: list[Example]

    def filled(self, count: int, shown: int) -> str:
        """What a model is told. Raises WrongInput where something is missing."""
        examples = self.examples[:shown]
        if len(examples) < shown or any(len(one.paraphrases) < count for one in examples):
            raise WrongInput(
                f"params.yaml: {SECTION}.examples is {shown} and augment.paraphrases {count}: the "
                f"prompt has {len(self.examples)} examples of "
                f"{min((len(one.paraphrases) for one in self.examples), default=0)} paraphrases, "
                "so write more of them there, or ask for less"
            )
        try:
            told = Template(self.instruction).substitute(count=count)
        except (KeyError, ValueError) as error:
            raise WrongInput(
                f"the prompt's instruction: {error} cannot be filled in: there is $count, and $$ "
                "for a dollar"
            ) from None
        schema = answers(count)
        said = [
            f"{llm_client.quote(text=one.text)}\n"
            f"{schema(paraphrases=one.paraphrases[:count]).model_dump_json()}"
            for one in examples
        ]
        return "\n\n".join([told.strip(), *(["Examples:"] if said else []), *said])


@dataclass(frozen=True)
class Text:
    """Of a record."""

    record: str
    text: str
    language: str


@dataclass(frozen=True)
class Found:
    """Paraphrases of one text, unchecked. failure: why there are none, else ""."""

    texts: list[str]
    failure: str = ""


class Paraphraser(ABC):
    """name: what stands in text_source. llm: whether a language model writes."""

    name: str
    llm: bool

    @abstractmethod
    def paraphrase(self, texts: list[Text]) -> list[Found]:
        """Of each text, in their order."""

    def figures(self) -> dict[str, Any]:
        """What summary.json says of the last call."""
        return {"backend": self.name, "llm": self.llm}


class Nobody(Paraphraser):
    name, llm = "none", False

    def paraphrase(self, texts: list[Text]) -> list[Found]:
        return [Found([]) for _ in texts]


class Rules(Paraphraser):
    name, llm = "rules", False

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed

    def paraphrase(self, texts: list[Text]) -> list[Found]:
        return [self._one(text) for text in texts]

    def _one(self, text: Text) -> Found:
        if text.language != rule_paraphraser.LANGUAGE:
            return Found([], f"the rules do not know the language: {text.language}")
        return Found(rule_paraphraser.reword(text.text, self.count, f"{self.seed} {text.record}"))


class LanguageModel(Paraphraser):
    llm = True

    def __init__(self, model: str, numbers: OpenAI, prompt: Prompt, count: int):
        self.name, self.numbers = model, numbers
        self.instruction = prompt.filled(count, numbers.examples)
        self.schema = answers(count)
        self.replies: list[Reply] = []

    def paraphrase(self, texts: list[Text]) -> list[Found]:
        questions = [
            Question(self.instruction, llm_client.quote(text=one.text), self.schema)
            for one in texts
        ]
        settings = self.numbers.settings(self.name)
        if self.numbers.batch_api:
            replies = batch_client.ask(SECTION, settings, self.numbers.batch, questions, NAMED_BY)
        else:
            replies = llm_client.ask(SECTION, settings, questions, NAMED_BY)
        # Memes of one text are one question, paid once.
        self.replies = list(dict(zip(questions, replies, strict=True)).values())
        return [
            Found(reply.value.paraphrases) if reply.value else Found([], reply.failure)
            for reply in replies
        ]

    def figures(self) -> dict[str, Any]:
        received = sum(reply.received for reply in self.replies)
        sent = sum(reply.tokens for reply in self.replies) - received
        failures = Counter(reply.failure for reply in self.replies if reply.value is None)
        return super().figures() | {
            "answered_by": sorted({name for reply in self.replies for name in reply.models}),
            "answers": "by JSON schema"
            if all(reply.structured for reply in self.replies)
            else "by prompt alone",
            "questions": len(self.replies),
            "failed_questions": dict(sorted(failures.items())),
            "tokens": {"sent": sent, "received": received},
            "cost": self.numbers.cost(sent, received),
        }


def answers(count: int) -> type[BaseModel]:
    """The schema of an answer."""
    closed = ConfigDict(json_schema_extra={"additionalProperties": False})  # OpenAI asks for it
    many = Field(min_length=count, max_length=count)
    return create_model(f"paraphrases_{count}", __config__=closed, paraphrases=(list[str], many))


def read_prompt(path: Path) -> Prompt:
    """Raises WrongInput if the file is no prompt."""
    try:
        return TypeAdapter(Prompt).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise WrongInput(f"{path.name} is no YAML in UTF-8: restore it from git") from None
    except ValidationError as error:
        places = sorted({".".join(map(str, fault["loc"])) or "all" for fault in error.errors()})
        raise WrongInput(
            f"{path.name}: missing or wrong: {', '.join(places)}: give an instruction, and "
            "examples of a text and its paraphrases each"
        ) from None


def load(backend: str, numbers: OpenAI, prompt: Prompt, count: int, seed: int) -> Paraphraser:
    """rules | none | openai:MODEL. Raises WrongInput for another one."""
    kind, _, model = backend.partition(":")
    if kind == "openai" and model:
        return LanguageModel(model, numbers, prompt, count)
    if backend == "rules":
        return Rules(count, seed)
    if backend == "none":
        return Nobody()
    raise WrongInput(
        f"params.yaml: {NAMED_BY} is {backend!r}: give rules, openai:MODEL, or none for no "
        "paraphrases"
    )
