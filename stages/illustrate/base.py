"""Illustrators: V = T2I(T), a picture for a text that has none (FlexMUSE, arXiv:2508.16230).

`load(backend, params, gallery)` gives the one that a backend names: `retrieve`, `diffusers:NAME` or
`openai:MODEL`, each in stages/shared/<kind>_illustrator.py. Its libraries are imported then.
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
from stages.shared.core.config import config_class
from stages.shared.data import image_store
from stages.shared.data.cache import Store
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError, work_dir

if TYPE_CHECKING:
    from stages.shared.encoders.base import Encoder

BACKEND_KINDS = ("retrieve", "diffusers", "openai")


@config_class
class DiffusersIllustratorConfig:
    num_inference_steps: int
    guidance_scale: float
    image_size: int


@config_class
class OpenAIIllustratorConfig:
    size: str
    concurrency: int
    max_retries: int
    timeout: float
    max_pixels: int


@config_class
class IllustrateConfig:
    """The section `illustrate`."""

    backend: str
    seed: int
    num_shards: int
    diffusers: DiffusersIllustratorConfig
    openai: OpenAIIllustratorConfig

    def __post_init__(self) -> None:
        try:
            get_backend_kind(self.backend)
        except InputError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Illustration:
    """A picture file, and where it is from: record/position of a picture of the corpus, or the
    fingerprint of what made it and which of the pictures of its text and seed it is."""

    content: bytes
    source: str


class Illustrator(ABC):
    """name: of the backend, without folders of this machine. obstacle: why it can illustrate
    nothing here, in a few words, or None."""

    name: str
    unavailable_reason: str | None = None

    @abstractmethod
    def illustrate(self, texts: list[str], count: int, seed: int) -> list[list[Illustration]]:
        """`count` different pictures for each text, the best first; fewer where there are not as
        many. A text's pictures depend on nothing but the text, `count` and the seed."""


@dataclass(frozen=True)
class ImageRequest:
    """A picture to be made: the index-th of a text and a seed."""

    text: str
    index: int
    seed: int

    @property
    def key(self) -> str:
        return sha256(json.dumps([self.text, self.index, self.seed]).encode()).hexdigest()


class GeneratingIllustrator(Illustrator):
    """Makes pictures, and none of them twice: they are kept under POLYMUSE_HOME.

    fingerprint: of everything that decides a picture besides text, index and seed.
    """

    fingerprint: str

    @abstractmethod
    def generate(self, drafts: list[ImageRequest]) -> Iterator[tuple[ImageRequest, bytes]]:
        """The picture files, in any order, as they are made; what is refused is left out."""

    def illustrate(self, texts: list[str], count: int, seed: int) -> list[list[Illustration]]:
        store = Store(work_dir() / "store", f"illustrations-{self.fingerprint[:32]}")
        wanted = [[ImageRequest(text, index, seed) for index in range(count)] for text in texts]
        drafts = {draft.key: draft for row in wanted for draft in row}
        if missing := [drafts[key] for key in store.missing_keys(drafts)]:
            for draft, content in self.generate(missing):
                store.write([(draft.key, content)])  # at once: what is paid for is kept
        refused = set(store.missing_keys(drafts))
        return [
            self._load_cached(store, [d for d in row if d.key not in refused]) for row in wanted
        ]

    def _load_cached(self, store: Store, drafts: list[ImageRequest]) -> list[Illustration]:
        """The pictures that are there, equal ones once."""
        found: dict[bytes, Illustration] = {}
        for draft, content in zip(drafts, store.read([d.key for d in drafts]), strict=True):
            source = f"{self.fingerprint[:32]}/{draft.index}"
            found.setdefault(content, Illustration(content, source))
        return list(found.values())


class ImageGallery:
    """The pictures of a corpus' train split, and the encoder that finds the nearest to a text.

    Reads what 01_ingest, 05_chunk, 06_align and 07_embed wrote, each when it is first needed. A
    picture that validation or test shows too is not in it.
    """

    def __init__(self, ingest: Path, chunk: Path, align: Path, embed: Path, text_batch: int):
        self.ingest, self.chunk, self.align, self.embed = ingest, chunk, align, embed
        self.text_batch = text_batch

    @property
    def supports_language(self) -> bool:
        """Whether the encoder reads the language of the corpus."""
        return feature_store.read_text_kind(self.embed) == "encoder"

    @property
    def is_empty(self) -> bool:
        """Whether there is no picture to choose from."""
        return not self._sources

    @cached_property
    def encoder(self) -> "Encoder":
        from stages.shared.encoders import base as encoders

        return encoders.load_encoder(self.align)

    def embed_texts(self, texts: list[str]) -> Iterator[np.ndarray]:
        """The pooled features of each text, (D,) fp16 of unit length."""
        from stages.shared.encoders import extract

        rows = extract.extract_text_features(self.encoder, texts, self.text_batch)
        return (row["pooled"] for row in rows)

    def find_nearest(self, texts: list[str], count: int) -> list[list[str]]:
        """The sha256 of the `count` pictures that are most alike each text, by cosine.

        Of equals the smaller hash comes first. Products of fp16 numbers, summed in float64, are
        exact in practice, so that no order of addition makes equals differ.
        """
        names, pooled = self._pooled
        found = []
        for vector in self.embed_texts(texts):
            order = np.argsort(-(pooled @ vector.astype("f8")), kind="stable")
            found.append([names[row] for row in order[:count]])
        return found

    def load_images(self, names: Iterable[str]) -> dict[str, Illustration]:
        """The pictures of these sha256."""
        contents = image_store.load_image_bytes(self.ingest / "images", names)
        return {name: Illustration(contents[name], self._sources[name]) for name in contents}

    @cached_property
    def _sources(self) -> dict[str, str]:
        """record/position of each picture, the first one of several."""
        rows = schemas.read_parquet(self.chunk / "chunks.parquet", schemas.CHUNKS)
        held_out = {row["image"] for row in rows if row["split"] != "train"}
        sources: dict[str, str] = {}
        for row in rows:
            if row["image"] and row["image"] not in held_out:
                sources.setdefault(row["image"], f"{row['record']}/{row['position']}")
        return sources

    @cached_property
    def _pooled(self) -> tuple[list[str], np.ndarray]:
        """sha256 of the N pictures, sorted; their pooled features (N, D) float64."""
        index, pooled = feature_store.read_pooled_images(self.embed)
        names = sorted(self._sources)
        return names, pooled[[index[name] for name in names]].astype("f8")


def get_backend_name(backend: str) -> str:
    """The name of a backend, of a folder its last part: outputs name no machine's folders."""
    kind, _, name = backend.partition(":")
    return f"{kind}:{Path(name).name if Path(name).is_dir() else name}" if name else kind


def get_backend_kind(backend: str) -> str:
    """The part before the colon. Raises WrongInput if no backend is called so."""
    kind, _, name = backend.partition(":")
    if kind not in BACKEND_KINDS or bool(name) != (kind != "retrieve"):
        raise InputError(
            f"illustrate.backend is {backend!r}: give retrieve, diffusers:NAME or openai:MODEL"
        )
    return kind


def load_illustrator(backend: str, params: IllustrateConfig, gallery: ImageGallery) -> Illustrator:
    """Raises WrongInput if there is no such backend, or it cannot be used here."""
    kind, name = get_backend_kind(backend), backend.partition(":")[2]
    match kind:
        case "retrieve":
            from stages.illustrate import retrieval as module
        case "diffusers":
            from stages.illustrate import diffusion as module
        case "openai":
            from stages.illustrate import openai_images as module
    return module.load(name, params, gallery)
