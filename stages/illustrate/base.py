"""Illustrators: V = T2I(T), an image for a text that has none (FlexMUSE, arXiv:2508.16230).

`load_illustrator(backend, config, gallery)` loads the illustrator of a backend: `retrieve`
(retrieval.py), `diffusers:NAME` (diffusion.py) or `openai:MODEL` (openai_images.py). The libraries
of a backend are imported only then.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class
from stages.shared.data import image_store
from stages.shared.data.cache import Store
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError, work_dir

if TYPE_CHECKING:
    from stages.shared.encoders.base import Encoder

BACKEND_KINDS = ("retrieve", "diffusers", "openai")
BACKEND_HINT = "give retrieve, diffusers:NAME or openai:MODEL"


@config_class
class DiffusersIllustratorConfig:
    """The section `illustrate.diffusers`."""

    num_inference_steps: int = Field(description="denoising steps")
    guidance_scale: float = Field(description="strength of guidance; 1 or less: unguided")
    image_size: int = Field(description="side of an image, pixels")


@config_class
class OpenAIIllustratorConfig:
    """The section `illustrate.openai`."""

    size: str = Field(description="image size as the API names it")
    concurrency: int = Field(description="requests at the same time")
    max_retries: int = Field(description="retries of a request")
    timeout: float = Field(description="timeout of a request, seconds")
    max_pixels: int = Field(description="a larger image is rejected")


@config_class
class IllustrateConfig:
    """The section `illustrate`."""

    backend: str = Field(description="retrieve | diffusers:NAME | openai:MODEL")
    seed: int = Field(description="seed of generated images")
    num_shards: int = Field(description="Parquet files that hold the images")
    diffusers: DiffusersIllustratorConfig = Field(description="options of diffusers:NAME")
    openai: OpenAIIllustratorConfig = Field(description="options of openai:MODEL")

    def __post_init__(self) -> None:
        if not is_backend(self.backend):
            raise ValueError(f"backend is {self.backend!r}: {BACKEND_HINT}")


@dataclass(frozen=True)
class Illustration:
    """An image file and its source.

    source: record/position of an image of the corpus, or fingerprint/index of a generated image.
    """

    content: bytes
    source: str


class Illustrator(ABC):
    """Finds or generates images for texts.

    name: the backend, without machine-specific paths. unavailable_reason: why it cannot illustrate
    anything here, in a few words, or None.
    """

    name: str
    unavailable_reason: str | None = None

    @abstractmethod
    def illustrate(self, texts: list[str], count: int, seed: int) -> list[list[Illustration]]:
        """At most `count` different images per text, the best first.

        The images of a text depend on the text, `count` and `seed` only.
        """


@dataclass(frozen=True)
class ImageRequest:
    """An image to generate: number `index` (from 0) for this text and seed."""

    text: str
    index: int
    seed: int

    @property
    def key(self) -> str:
        """Cache key: sha256 of text, index and seed."""
        return sha256(json.dumps([self.text, self.index, self.seed]).encode()).hexdigest()


class GeneratingIllustrator(Illustrator):
    """Generates images and caches them under POLYMUSE_HOME, so that none is generated twice.

    fingerprint: a hash of everything besides text, index and seed that an image depends on.
    """

    fingerprint: str

    @abstractmethod
    def generate(self, requests: list[ImageRequest]) -> Iterator[tuple[ImageRequest, bytes]]:
        """Yields image files in any order, as soon as they are ready; refused ones are left out."""

    def illustrate(self, texts: list[str], count: int, seed: int) -> list[list[Illustration]]:
        store = Store(work_dir() / "store", f"illustrations-{self.fingerprint[:32]}")
        requests = [[ImageRequest(text, index, seed) for index in range(count)] for text in texts]
        by_key = {request.key: request for row in requests for request in row}
        if missing := [by_key[key] for key in store.missing_keys(by_key)]:
            for request, content in self.generate(missing):
                store.write([(request.key, content)])  # immediately: it may have been paid for
        refused = set(store.missing_keys(by_key))
        return [
            self._load_cached(store, [request for request in row if request.key not in refused])
            for row in requests
        ]

    def _load_cached(self, store: Store, requests: list[ImageRequest]) -> list[Illustration]:
        """The cached images, without duplicates."""
        illustrations: dict[bytes, Illustration] = {}
        contents = store.read([request.key for request in requests])
        for request, content in zip(requests, contents, strict=True):
            source = f"{self.fingerprint[:32]}/{request.index}"
            illustrations.setdefault(content, Illustration(content, source))
        return list(illustrations.values())


class ImageGallery:
    """The images of a corpus' train split, searchable by text with the corpus' encoder.

    It reads the outputs of 01_ingest, 05_chunk, 06_align and 07_embed, each on first use. An image
    that also occurs in validation or test is left out.
    """

    def __init__(self, ingest: Path, chunk: Path, align: Path, embed: Path, text_batch: int):
        self.ingest, self.chunk, self.align, self.embed = ingest, chunk, align, embed
        self.text_batch = text_batch

    @property
    def supports_language(self) -> bool:
        """Whether the encoder supports the language of the corpus."""
        return feature_store.read_text_kind(self.embed) == "encoder"

    @property
    def is_empty(self) -> bool:
        """Whether there are no images to choose from."""
        return not self._sources

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder of the stage align."""
        from stages.shared.encoders import base as encoders

        return encoders.load_encoder(self.align)

    def embed_texts(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Yields the pooled features of each text, (D,) fp16 of unit length."""
        from stages.shared.encoders import extract

        rows = extract.extract_text_features(self.encoder, texts, self.text_batch)
        return (row["pooled"] for row in rows)

    def find_nearest(self, texts: list[str], count: int) -> list[list[str]]:
        """The sha256 of the `count` images nearest to each text by cosine, the nearest first.

        Ties are ordered by hash. Sums of fp16 products in float64 are exact in practice, so the
        order of summation cannot break a tie.
        """
        names, pooled = self._pooled
        nearest = []
        for vector in self.embed_texts(texts):
            order = np.argsort(-(pooled @ vector.astype("f8")), kind="stable")
            nearest.append([names[row] for row in order[:count]])
        return nearest

    def load_images(self, names: Iterable[str]) -> dict[str, Illustration]:
        """The images with these sha256. Raises InputError if one is missing."""
        contents = image_store.load_image_bytes(self.ingest / "images", names)
        return {name: Illustration(contents[name], self._sources[name]) for name in contents}

    @cached_property
    def _sources(self) -> dict[str, str]:
        """record/position of the first occurrence of each image, by sha256."""
        rows = schemas.read_parquet(self.chunk / "chunks.parquet", schemas.CHUNKS)
        held_out = {row["image"] for row in rows if row["split"] != "train"}
        sources: dict[str, str] = {}
        for row in rows:
            if row["image"] and row["image"] not in held_out:
                sources.setdefault(row["image"], f"{row['record']}/{row['position']}")
        return sources

    @cached_property
    def _pooled(self) -> tuple[list[str], np.ndarray]:
        """The sorted sha256 of the N images, and their pooled features (N, D) float64."""
        index, pooled = feature_store.read_pooled_images(self.embed)
        names = sorted(self._sources)
        return names, pooled[[index[name] for name in names]].astype("f8")


def get_backend_name(backend: str) -> str:
    """The backend with a folder reduced to its name: outputs hold no machine-specific paths."""
    kind, _, name = backend.partition(":")
    return f"{kind}:{Path(name).name if Path(name).is_dir() else name}" if name else kind


def is_backend(backend: str) -> bool:
    """Whether `backend` is retrieve, diffusers:NAME or openai:MODEL."""
    kind, _, name = backend.partition(":")
    return kind in BACKEND_KINDS and bool(name) == (kind != "retrieve")


def get_backend_kind(backend: str) -> str:
    """The part before the colon. Raises InputError if there is no such backend."""
    if not is_backend(backend):
        raise InputError(f"illustrate.backend is {backend!r}: {BACKEND_HINT}")
    return backend.partition(":")[0]


def load_illustrator(backend: str, config: IllustrateConfig, gallery: ImageGallery) -> Illustrator:
    """The illustrator of a backend.

    Raises InputError if there is no such backend, or it cannot be used here.
    """
    kind, name = get_backend_kind(backend), backend.partition(":")[2]
    match kind:
        case "retrieve":
            from stages.illustrate import retrieval as module
        case "diffusers":
            from stages.illustrate import diffusion as module
        case _:
            from stages.illustrate import openai_images as module
    return module.load(name, config, gallery)
