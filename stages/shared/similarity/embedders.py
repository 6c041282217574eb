"""How similar a generated text is to its references, in letters and in meaning.

Of several references the best counts. The text of an article is its paragraphs joined by line
breaks. Embeddings come from MiniLM, on this machine, or from a model behind an OpenAI-compatible
server. An empty text has no meaning: its cosine is 0. No number is given for a text in a language
that the embedder does not read.
"""

import asyncio
import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from stages.shared.data.cache import Store, batched
from stages.shared.llm.endpoint import ADDRESS, KEY, Endpoint, endpoint
from stages.shared.runtime.stage import WrongInput, home
from stages.shared.torch_setup.devices import device, inference

if TYPE_CHECKING:  # half a second to import, for nothing where no model is named
    from openai import APIStatusError, AsyncOpenAI

_SAID = 200  # characters of a server's message that are shown


@dataclass(frozen=True)
class Server:
    """Of the embeddings of `openai:MODEL`."""

    batch: int  # texts of a request
    concurrency: int
    retries: int
    timeout: float  # seconds


@dataclass(frozen=True)
class Params:
    """The section `rewards`."""

    max_tokens: int  # of a text that MiniLM reads
    openai: Server

    def __post_init__(self) -> None:
        if not 2 <= self.max_tokens <= 512:  # [CLS] and [SEP]; the positions that MiniLM knows
            raise WrongInput("rewards: max_tokens must be from 2 to 512, what MiniLM can read")


def article(paragraphs: Sequence[str]) -> str:
    """The text of an article, or of a part of one, as it is rewarded."""
    return "\n".join(paragraphs)


def article_references(chunks: Sequence[dict]) -> list[str]:
    """References of the text about these chunks: as many as each of them has."""
    return list(map(article, zip(*(chunk["references"] for chunk in chunks), strict=False)))


def levenshtein_similarity(written: str, references: Sequence[str]) -> float:
    """1 - distance / length of the longer text, in characters, in [0, 1]."""
    return max(Levenshtein.normalized_similarity(written, text) for text in references)


class Embedder(ABC):
    """The meaning of a text as a vector. languages: ISO 639-1 codes of what it reads; None: any."""

    languages: list[str] | None

    def __init__(self) -> None:
        self.known: dict[str, Tensor] = {}  # references recur at every epoch

    def reads(self, language: str | None) -> bool:
        return self.languages is None or language in self.languages

    def references(self, texts: Sequence[str]) -> list[Tensor]:
        """As `rows`, remembered."""
        missing = list(dict.fromkeys(text for text in texts if text not in self.known))
        if missing:
            self.known |= dict(zip(missing, self.rows(missing), strict=True))
        return [self.known[text] for text in texts]

    def rows(self, texts: Sequence[str]) -> Tensor:
        """-> (B, D) of unit length, zeros for a text of nothing but blanks"""
        unique = list(dict.fromkeys(text for text in texts if text.strip()))
        if not unique:
            return torch.zeros(len(texts), 1)
        found = F.normalize(self.embed(unique), dim=-1)
        row_of = dict(zip(unique, found, strict=True))
        return torch.stack([row_of.get(text, torch.zeros_like(found[0])) for text in texts])

    @abstractmethod
    def embed(self, texts: list[str]) -> Tensor:
        """Texts with words, each once -> (B, D), float32 on the CPU"""


def cosine_similarity(
    embedder: Embedder, written: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Cosine of the embeddings of each text and its closest reference, in [-1, 1]."""
    rows = embedder.rows(written)
    best = []
    for row, texts in zip(rows, references, strict=True):
        cosines = [(row * other).sum().item() for other in embedder.references(texts)]
        best.append(max(cosines))
    return best


def read_by(name: str, languages: Sequence[str | None], params: Params) -> Embedder | None:
    """The embedder `name` (minilm | openai:MODEL | none) if it reads most of these texts.

    languages: of every text of a corpus. None, and a line that says why, where it does not.
    Raises WrongInput for another name.
    """
    found = _embedder(name, params)
    if found is None:
        return None
    unread = [str(language) for language in languages if not found.reads(language)]
    if 2 * len(unread) < len(languages):
        return found
    print(
        f"rewards: {name} does not read most of the texts ({', '.join(sorted(set(unread)))}): "
        "the semantic reward is unavailable, the literal one stands alone",
        file=sys.stderr,
    )
    return None


def _embedder(name: str, params: Params) -> Embedder | None:
    if name == "none":
        return None
    if name == "minilm":
        return MiniLM(params.max_tokens)
    kind, _, model = name.partition(":")
    if kind == "openai" and model:
        return OpenAIEmbedder(model, params.openai)
    raise WrongInput(
        f"params.yaml: the semantic reward is {name!r}: give minilm, openai:MODEL or none"
    )


class MiniLM(Embedder):
    """The mean over the last hidden states of a text's tokens; longer texts are cut.

    One text at a time: padded beside others its last bits would depend on them, and on one core a
    batch of longer texts is no faster.
    """

    languages: ClassVar = ["en"]

    def __init__(self, max_tokens: int):
        from stages.shared.pretrained import minilm  # half a second to import, too

        super().__init__()
        self.model, self.tokenizer = minilm.load()
        self.max_tokens, self.cut = max_tokens, 0

    def embed(self, texts: list[str]) -> Tensor:
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> Tensor:
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > self.max_tokens:
            self._tell(len(ids))
            ids = [*ids[: self.max_tokens - 1], ids[-1]]  # the last one is [SEP]
        with inference():
            states = self.model(torch.tensor([ids], device=device())).last_hidden_state
        return states[0].mean(0).float().cpu()

    def _tell(self, tokens: int) -> None:
        if not self.cut:
            print(
                f"rewards: a text of {tokens} tokens is cut at {self.max_tokens} "
                "(rewards.max_tokens) before MiniLM reads it, as are others that long",
                file=sys.stderr,
            )
        self.cut += 1


class _Row(BaseModel):
    index: int
    embedding: list[float] = Field(min_length=1)


class _Rows(BaseModel):
    """What is read of a server's answer (OpenAI API reference, embeddings)."""

    data: list[_Row]


class OpenAIEmbedder(Embedder):
    """A model of the embeddings API. Rows are stored by model and text under POLYMUSE_HOME."""

    languages = None

    def __init__(self, model: str, numbers: Server):
        super().__init__()
        self.name, self.model, self.numbers = f"openai:{model}", model, numbers
        # Without the address: a server that moves is asked nothing anew.
        self.store = Store(
            home() / "store", f"embeddings-{sha256(model.encode()).hexdigest()[:32]}"
        )

    def embed(self, texts: list[str]) -> Tensor:
        keys = [sha256(text.encode()).hexdigest() for text in texts]
        text_of = dict(zip(keys, texts, strict=True))
        if missing := self.store.missing(keys):
            asyncio.run(self._fill({key: text_of[key] for key in missing}))
        rows = [
            torch.frombuffer(bytearray(row), dtype=torch.float32) for row in self.store.rows(keys)
        ]
        if len({len(row) for row in rows}) > 1:
            raise self._unusable("its rows differ in length")
        return torch.stack(rows)

    async def _fill(self, texts: dict[str, str]) -> None:
        """Ask for texts by their keys. What is under way at the first fault is still stored."""
        from openai import AsyncOpenAI

        server, slots = (
            endpoint("the semantic reward", "minilm"),
            asyncio.Semaphore(self.numbers.concurrency),
        )
        faults: list[Exception] = []
        # It waits before a retry as long as Retry-After says.
        async with AsyncOpenAI(
            base_url=server.address,
            api_key=server.key,
            max_retries=self.numbers.retries,
            timeout=self.numbers.timeout,
        ) as client:

            async def ask(keys: list[str]) -> None:
                async with slots:
                    if faults:
                        return
                    try:
                        rows = await self._request(client, server, [texts[key] for key in keys])
                        self.store.write(zip(keys, rows, strict=True))
                    except Exception as error:
                        faults.append(error)

            await asyncio.gather(*map(ask, batched(texts, self.numbers.batch)))
        if faults:
            raise faults[0]

    async def _request(
        self, client: "AsyncOpenAI", server: Endpoint, texts: list[str]
    ) -> list[bytes]:
        """One row of float32 a text. Raises WrongInput."""
        import openai

        try:
            raw = client.embeddings.with_raw_response
            answer = await raw.create(model=self.model, input=texts, encoding_format="float")
        except openai.APITimeoutError:
            raise self._unusable(f"no answer in {self.numbers.timeout:g} s") from None
        except openai.APIConnectionError:
            raise WrongInput(
                f"{ADDRESS}: nothing answers there: start that server, or give another address"
            ) from None
        except openai.APIStatusError as error:
            raise self._refused(error, server) from None
        try:
            rows = _Rows.model_validate(json.loads(answer.http_response.content)).data
        except ValueError:  # no JSON, or other JSON
            raise self._unusable("what it answers is no list of embeddings") from None
        rows = sorted(rows, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise self._unusable(f"{len(rows)} embeddings for {len(texts)} texts")
        values = [row.embedding for row in rows]
        if not all(map(_has_direction, values)):
            raise self._unusable("an embedding without a direction")
        return [torch.tensor(value, dtype=torch.float32).numpy().tobytes() for value in values]

    def _refused(self, error: "APIStatusError", server: Endpoint) -> WrongInput:
        reason = f"HTTP {error.status_code}"
        if error.status_code in (401, 403):  # servers repeat parts of a key
            return WrongInput(f"{KEY}: the server does not take it ({reason}): give a valid one")
        message = error.message.removeprefix(f"Error code: {error.status_code} - ")
        return self._unusable(f"{reason}: {server.clean(message)[:_SAID]}")

    def _unusable(self, reason: str) -> WrongInput:
        return WrongInput(
            f"the semantic reward {self.name} cannot be used ({reason}): check the name, "
            f"rewards.openai and {ADDRESS}, and run again; what was embedded is kept"
        )


def _has_direction(row: list[float]) -> bool:
    length = sum(value * value for value in row)
    return math.isfinite(length) and length > 0
