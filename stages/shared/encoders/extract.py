"""Features of pictures and texts through the store: what is there is not computed again.

A row is the fp16 features of one picture (`pooled`, `patches`) or text (`pooled`, `tokens` without
padding). Batches have one shape, so a row's bytes do not depend on what stood beside it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from stages.shared.core.config import config_class
from stages.shared.data import image_store
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


@config_class
class EmbedConfig:
    """The section `embed`."""

    image_batch_size: int
    text_batch_size: int
    min_supported_fraction: float


def extract_image_features(
    encoder: Encoder, folder: Path, names: list[str], batch: int
) -> Iterator[CachedRow]:
    """Features of the pictures with these sha256, from the shards in `folder`, in their order.

    A row: pooled (D,), patches (P, Dp). Raises WrongInput if a picture is not in the shards.
    """
    store = open_feature_cache("pictures", encoder.fingerprint, batch)
    missing = set(store.missing_keys(names))

    def compute(contents: list[bytes]) -> list[bytes]:
        with ThreadPoolExecutor() as pool:
            pictures = list(pool.map(image_store.decode_image, contents))
        pooled, patches = encoder.encode_images(pictures)
        return [pack_features(pooled=z, patches=x) for z, x in zip(pooled, patches, strict=True)]

    if missing:
        found = (
            (row["sha256"], row["bytes"])
            for row in image_store.read_images(folder)
            if row["sha256"] in missing
        )
        store.compute_missing(progress_bar(found, "pictures", len(missing)), compute, batch)
        if absent := store.missing_keys(missing):
            raise InputError(f"{folder} lacks the picture {absent[0]}: run `dvc repro`")
    return map(unpack_features, store.read(names))


def extract_text_features(tower: TextTower, texts: list[str], batch: int) -> Iterator[CachedRow]:
    """Features of the texts, in their order. A row: pooled (D,), tokens (L, Dt), unpadded."""
    store = open_feature_cache("texts", tower.text_fingerprint, batch)
    keys = [sha256(text.encode()).hexdigest() for text in texts]

    def compute(part: list[str]) -> list[bytes]:
        pooled, tokens, mask = tower.encode_texts(part)
        lengths = mask.sum(1).tolist()
        return [
            pack_features(pooled=z, tokens=x[:length])
            for z, x, length in zip(pooled, tokens, lengths, strict=True)
        ]

    items = dict(zip(keys, texts, strict=True))
    compute_missing_by_length(store, items, tower.padded_lengths, compute, batch, "texts")
    return map(unpack_features, store.read(keys))
