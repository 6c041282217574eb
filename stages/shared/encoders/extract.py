"""Features of images and texts, cached: only missing ones are computed.

A row holds the fp16 features of one image (`pooled`, `patches`) or text (`pooled`, `tokens` without
padding). All batches have the same shape, so a row does not depend on the rest of its batch. Rows
are cached as the towers compute them; projections are applied when they are read.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from stages.shared.core.config import Field, config_class
from stages.shared.data import image_store
from stages.shared.data.cache import batched
from stages.shared.encoders.base import Encoder, TextTower
from stages.shared.pretrained.feature_cache import (
    CachedRow,
    compute_missing_by_length,
    open_feature_cache,
    pack_features,
    unpack_features,
)
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError

CachedRows = Iterable[CachedRow]
R = TypeVar("R")


@config_class
class EmbedConfig:
    """The section `embed`."""

    image_batch_size: int = Field(description="images per batch; part of the cache key")
    text_batch_size: int = Field(description="texts per batch; part of the cache key")
    min_supported_fraction: float = Field(
        description="share of texts in supported languages for text features, 0 to 1"
    )
    max_retrieval_pairs: int = Field(
        ge=2, description="held-out pairs on which retrieval is measured, at most"
    )


def extract_image_features(
    encoder: Encoder, folder: Path, names: list[str], batch_size: int
) -> Iterator[CachedRow]:
    """Features of the images with these sha256, in this order, from the shards in `folder`.

    A row holds pooled (D,) and patches (P, Dp). Raises InputError if an image is not in the shards.
    """
    store = open_feature_cache("images", encoder.fingerprint, batch_size)
    missing = set(store.missing_keys(names))

    def preprocess(row: dict) -> tuple[str, Tensor]:
        image = image_store.decode_image(row["bytes"], encoder.image_size)
        return row["sha256"], encoder.preprocess_image(image)

    def compute(pixels: list[Tensor]) -> list[bytes]:
        pooled, patches = encoder.run_image_tower(pixels)
        return [pack_features(pooled=z, patches=x) for z, x in zip(pooled, patches, strict=True)]

    if missing:
        rows = (row for row in image_store.read_images(folder) if row["sha256"] in missing)
        # Preprocessed before they are batched: memory holds few whole images.
        pixels_by_name = _map_in_threads(preprocess, rows)
        progress = progress_bar(pixels_by_name, "images", len(missing))
        store.compute_missing(progress, compute, batch_size)
        if absent := store.missing_keys(missing):
            raise InputError(f"{folder} lacks the image {absent[0]}: run `dvc repro`")
    return _project(encoder.project_images, store.read(names))


def _map_in_threads(function: Callable[[dict], R], rows: Iterable[dict]) -> Iterator[R]:
    """`function(row)` of each row, in order; as many at a time as there are threads."""
    num_threads = torch.get_num_threads()
    with ThreadPoolExecutor(num_threads) as pool:
        for part in batched(rows, num_threads):
            yield from pool.map(function, part)


def extract_text_features(
    tower: TextTower, texts: list[str], batch_size: int
) -> Iterator[CachedRow]:
    """Features of the texts, in this order. A row holds pooled (D,) and unpadded tokens (L, Dt)."""
    store = open_feature_cache("texts", tower.text_fingerprint, batch_size)
    keys = [sha256(text.encode()).hexdigest() for text in texts]

    def compute(batch: list[str]) -> list[bytes]:
        pooled, tokens, mask = tower.run_text_tower(batch)
        lengths = mask.sum(1).tolist()
        return [
            pack_features(pooled=z, tokens=x[:length])
            for z, x, length in zip(pooled, tokens, lengths, strict=True)
        ]

    items = dict(zip(keys, texts, strict=True))
    compute_missing_by_length(store, items, tower.padded_lengths, compute, batch_size, "texts")
    return _project(tower.project_texts, store.read(keys))


def _project(project: Callable[[Tensor], Tensor], rows: Iterable[bytes]) -> Iterator[CachedRow]:
    """Cached rows with their pooled features in the shared space."""
    for row in map(unpack_features, rows):
        pooled = project(torch.from_numpy(row["pooled"])[None].float())[0]
        yield row | {"pooled": pooled.half().numpy()}
