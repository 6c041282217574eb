"""Features of pictures and texts through the store: what is there is not computed again.

A row is the fp16 features of one picture (`pooled`, `patches`) or text (`pooled`, `tokens` without
padding). Batches have one shape, so a row's bytes do not depend on what stood beside it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from stages.shared.data import image_store
from stages.shared.encoders.base import Encoder, TextTower
from stages.shared.pretrained.feature_cache import Row, fill_by_length, pack, store_of, unpack
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import WrongInput


@dataclass(frozen=True)
class Params:
    """The section `embed`."""

    image_batch: int
    text_batch: int
    min_supported: float


def picture_rows(encoder: Encoder, folder: Path, names: list[str], batch: int) -> Iterator[Row]:
    """Features of the pictures with these sha256, from the shards in `folder`, in their order.

    A row: pooled (D,), patches (P, Dp). Raises WrongInput if a picture is not in the shards.
    """
    store = store_of("pictures", encoder.fingerprint, batch)
    missing = set(store.missing(names))

    def compute(contents: list[bytes]) -> list[bytes]:
        with ThreadPoolExecutor() as pool:
            pictures = list(pool.map(image_store.decode, contents))
        pooled, patches = encoder.images(pictures)
        return [pack(pooled=z, patches=x) for z, x in zip(pooled, patches, strict=True)]

    if missing:
        found = (
            (row["sha256"], row["bytes"])
            for row in image_store.read(folder)
            if row["sha256"] in missing
        )
        store.fill(bar(found, "pictures", len(missing)), compute, batch)
        if absent := store.missing(missing):
            raise WrongInput(f"{folder} lacks the picture {absent[0]}: run `dvc repro`")
    return map(unpack, store.rows(names))


def text_rows(tower: TextTower, texts: list[str], batch: int) -> Iterator[Row]:
    """Features of the texts, in their order. A row: pooled (D,), tokens (L, Dt), unpadded."""
    store = store_of("texts", tower.text_fingerprint, batch)
    keys = [sha256(text.encode()).hexdigest() for text in texts]

    def compute(part: list[str]) -> list[bytes]:
        pooled, tokens, mask = tower.texts(part)
        lengths = mask.sum(1).tolist()
        return [
            pack(pooled=z, tokens=x[:length])
            for z, x, length in zip(pooled, tokens, lengths, strict=True)
        ]

    items = dict(zip(keys, texts, strict=True))
    fill_by_length(store, items, tower.buckets, compute, batch, "texts")
    return map(unpack, store.rows(keys))
