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
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from stages.shared.core.config import Field, config_class
from stages.shared.data.cache import Store, batched
from stages.shared.llm.endpoint import API_KEY_ENV, BASE_URL_ENV, Endpoint, load_endpoint
from stages.shared.runtime.stage import InputError, work_dir
from stages.shared.torch_setup.devices import get_device, inference_context

if TYPE_CHECKING:  # half a second to import, for nothing where no model is named
    from openai import APIStatusError, AsyncOpenAI

_MAX_MESSAGE_LENGTH = 200  # characters of a server's message that are shown


@config_class
class EmbeddingServerConfig:
    """Of the embeddings of `openai:MODEL`."""

    batch_size: int  # texts of a request
    concurrency: int
    max_retries: int
    timeout: float  # seconds


@config_class
class RewardConfig:
    """The section `rewards`."""

    max_tokens: int = Field(ge=2, le=512)  # [CLS] and [SEP]; the positions that MiniLM knows
    openai: EmbeddingServerConfig


def join_paragraphs(paragraphs: Sequence[str]) -> str:
    """The text of an article, or of a part of one, as it is rewarded."""
    return "\n".join(paragraphs)


def join_references(chunks: Sequence[dict]) -> list[str]:
    """References of the text about these chunks: as many as each of them has."""
    return list(map(join_paragraphs, zip(*(chunk["references"] for chunk in chunks), strict=False)))


def levenshtein_similarity(written: str, references: Sequence[str]) -> float:
    """1 - distance / length of the longer text, in characters, in [0, 1]."""
    return max(Levenshtein.normalized_similarity(written, text) for text in references)


class Embedder(ABC):
    """The meaning of a text as a vector. languages: ISO 639-1 codes of what it reads; None: any."""

    languages: list[str] | None

    def __init__(self) -> None:
        self.cache: dict[str, Tensor] = {}  # references recur at every epoch

    def supports_language(self, language: str | None) -> bool:
        return self.languages is None or language in self.languages

    def embed_cached(self, texts: Sequence[str]) -> list[Tensor]:
        """As `rows`, remembered."""
        missing = list(dict.fromkeys(text for text in texts if text not in self.cache))
        if missing:
            self.cache |= dict(zip(missing, self.embed_normalized(missing), strict=True))
        return [self.cache[text] for text in texts]

    def embed_normalized(self, texts: Sequence[str]) -> Tensor:
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
    rows = embedder.embed_normalized(written)
    best = []
    for row, texts in zip(rows, references, strict=True):
        cosines = [(row * other).sum().item() for other in embedder.embed_cached(texts)]
        best.append(max(cosines))
    return best


def load_embedder(
    name: str, languages: Sequence[str | None], params: RewardConfig
) -> Embedder | None:
    """The embedder `name` (minilm | openai:MODEL | none) if it reads most of these texts.

    languages: of every text of a corpus. None, and a line that says why, where it does not.
    Raises WrongInput for another name.
    """
    found = _create_embedder(name, params)
    if found is None:
        return None
    unread = [str(language) for language in languages if not found.supports_language(language)]
    if 2 * len(unread) < len(languages):
        return found
    print(
        f"rewards: {name} does not read most of the texts ({', '.join(sorted(set(unread)))}): "
        "the semantic reward is unavailable, the literal one stands alone",
        file=sys.stderr,
    )
    return None


def _create_embedder(name: str, params: RewardConfig) -> Embedder | None:
    if name == "none":
        return None
    if name == "minilm":
        return MiniLMEmbedder(params.max_tokens)
    kind, _, model = name.partition(":")
    if kind == "openai" and model:
        return OpenAIEmbedder(model, params.openai)
    raise InputError(
        f"params.yaml: the semantic reward is {name!r}: give minilm, openai:MODEL or none"
    )


class MiniLMEmbedder(Embedder):
    """The mean over the last hidden states of a text's tokens; longer texts are cut.

    One text at a time: padded beside others its last bits would depend on them, and on one core a
    batch of longer texts is no faster.
    """

    languages: ClassVar = ["en"]

    def __init__(self, max_tokens: int):
        from stages.shared.pretrained import minilm  # half a second to import, too

        super().__init__()
        self.model, self.tokenizer = minilm.load_minilm()
        self.max_tokens, self.num_truncated = max_tokens, 0

    def embed(self, texts: list[str]) -> Tensor:
        return torch.stack([self._embed_one(text) for text in texts])

    def _embed_one(self, text: str) -> Tensor:
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > self.max_tokens:
            self._warn_truncated(len(ids))
            ids = [*ids[: self.max_tokens - 1], ids[-1]]  # the last one is [SEP]
        with inference_context():
            states = self.model(torch.tensor([ids], device=get_device())).last_hidden_state
        return states[0].mean(0).float().cpu()

    def _warn_truncated(self, tokens: int) -> None:
        if not self.num_truncated:
            print(
                f"rewards: a text of {tokens} tokens is cut at {self.max_tokens} "
                "(rewards.max_tokens) before MiniLM reads it, as are others that long",
                file=sys.stderr,
            )
        self.num_truncated += 1


class _EmbeddingRow(BaseModel):
    index: int
    embedding: list[float] = Field(min_length=1)


class _EmbeddingResponse(BaseModel):
    """What is read of a server's answer (OpenAI API reference, embeddings)."""

    data: list[_EmbeddingRow]


class OpenAIEmbedder(Embedder):
    """A model of the embeddings API. Rows are stored by model and text under POLYMUSE_HOME."""

    languages = None

    def __init__(self, model: str, numbers: EmbeddingServerConfig):
        super().__init__()
        self.name, self.model, self.config = f"openai:{model}", model, numbers
        # Without the address: a server that moves is asked nothing anew.
        self.store = Store(
            work_dir() / "store", f"embeddings-{sha256(model.encode()).hexdigest()[:32]}"
        )

    def embed(self, texts: list[str]) -> Tensor:
        keys = [sha256(text.encode()).hexdigest() for text in texts]
        text_of = dict(zip(keys, texts, strict=True))
        if missing := self.store.missing_keys(keys):
            asyncio.run(self._request_missing({key: text_of[key] for key in missing}))
        rows = [
            torch.frombuffer(bytearray(row), dtype=torch.float32) for row in self.store.read(keys)
        ]
        if len({len(row) for row in rows}) > 1:
            raise self._unusable_error("its rows differ in length")
        return torch.stack(rows)

    async def _request_missing(self, texts: dict[str, str]) -> None:
        """Ask for texts by their keys. What is under way at the first fault is still stored."""
        from openai import AsyncOpenAI

        server, slots = (
            load_endpoint("the semantic reward", "minilm"),
            asyncio.Semaphore(self.config.concurrency),
        )
        faults: list[Exception] = []
        # It waits before a retry as long as Retry-After says.
        async with AsyncOpenAI(
            base_url=server.base_url,
            api_key=server.api_key,
            max_retries=self.config.max_retries,
            timeout=self.config.timeout,
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

            await asyncio.gather(*map(ask, batched(texts, self.config.batch_size)))
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
            raise self._unusable_error(f"no answer in {self.config.timeout:g} s") from None
        except openai.APIConnectionError:
            raise InputError(
                f"{BASE_URL_ENV}: nothing answers there: start that server, or give another address"
            ) from None
        except openai.APIStatusError as error:
            raise self._status_error(error, server) from None
        try:
            rows = _EmbeddingResponse.model_validate(json.loads(answer.http_response.content)).data
        except ValueError:  # no JSON, or other JSON
            raise self._unusable_error("what it answers is no list of embeddings") from None
        rows = sorted(rows, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise self._unusable_error(f"{len(rows)} embeddings for {len(texts)} texts")
        values = [row.embedding for row in rows]
        if not all(map(_has_direction, values)):
            raise self._unusable_error("an embedding without a direction")
        return [torch.tensor(value, dtype=torch.float32).numpy().tobytes() for value in values]

    def _status_error(self, error: "APIStatusError", server: Endpoint) -> InputError:
        reason = f"HTTP {error.status_code}"
        if error.status_code in (401, 403):  # servers repeat parts of a key
            return InputError(
                f"{API_KEY_ENV}: the server does not take it ({reason}): give a valid one"
            )
        message = error.message.removeprefix(f"Error code: {error.status_code} - ")
        return self._unusable_error(f"{reason}: {server.redact(message)[:_MAX_MESSAGE_LENGTH]}")

    def _unusable_error(self, reason: str) -> InputError:
        return InputError(
            f"the semantic reward {self.name} cannot be used ({reason}): check the name, "
            f"rewards.openai and {BASE_URL_ENV}, and run again; what was embedded is kept"
        )


def _has_direction(row: list[float]) -> bool:
    length = sum(value * value for value in row)
    return math.isfinite(length) and length > 0
