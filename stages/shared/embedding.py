"""Features of pictures and texts through the store: what is there is not computed again.

A row is the fp16 features of one picture (`pooled`, `patches`) or text (`pooled`, `tokens` without
padding). Batches have one shape, so a row's bytes do not depend on what stood beside it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save
from torch import Tensor

from stages.shared import images
from stages.shared.devices import device
from stages.shared.encoders import Encoder, TextTower, precision
from stages.shared.progress import bar
from stages.shared.stage import WrongInput, home
from stages.shared.store import Store

Row = dict[str, np.ndarray]  # fp16


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
    store = _store("pictures", encoder.fingerprint, batch)
    missing = set(store.missing(names))

    def compute(contents: list[bytes]) -> list[bytes]:
        with ThreadPoolExecutor() as pool:
            pictures = list(pool.map(images.decode, contents))
        pooled, patches = encoder.images(pictures)
        return [_pack(pooled=z, patches=x) for z, x in zip(pooled, patches, strict=True)]

    if missing:
        found = (
            (row["sha256"], row["bytes"]) for row in images.read(folder) if row["sha256"] in missing
        )
        store.fill(bar(found, "pictures", len(missing)), compute, batch)
        if absent := store.missing(missing):
            raise WrongInput(f"{folder} lacks the picture {absent[0]}: run `dvc repro`")
    return map(load, store.rows(names))


def text_rows(tower: TextTower, texts: list[str], batch: int) -> Iterator[Row]:
    """Features of the texts, in their order. A row: pooled (D,), tokens (L, Dt), unpadded."""
    store = _store("texts", tower.text_fingerprint, batch)
    keys = {text: sha256(text.encode()).hexdigest() for text in texts}
    missing = set(store.missing(keys.values()))
    todo = [text for text, key in keys.items() if key in missing]

    def compute(part: list[str]) -> list[bytes]:
        pooled, tokens, mask = tower.texts(part)
        lengths = mask.sum(1).tolist()
        return [
            _pack(pooled=z, tokens=x[:length])
            for z, x, length in zip(pooled, tokens, lengths, strict=True)
        ]

    for size, part in _by_bucket(tower, todo):
        items = bar(((keys[text], text) for text in part), f"texts of {size} tokens", len(part))
        store.fill(items, compute, batch)
    return map(load, store.rows(keys[text] for text in texts))


def _by_bucket(tower: TextTower, texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Texts of one padded length at a time: a longer neighbour would change a text's bytes."""
    if not texts:
        return
    sized = sorted(zip(tower.buckets(texts), texts, strict=True), key=lambda item: item[0])
    for size, part in groupby(sized, key=lambda item: item[0]):
        yield size, [text for _, text in part]


def _store(what: str, fingerprint: str, batch: int) -> Store:
    """The store of what is computed by one encoder, in one precision, in batches of one shape."""
    name = f"{what} {fingerprint} {device().type} {precision()} {batch}"
    return Store(home() / "store", f"{what}-{sha256(name.encode()).hexdigest()[:32]}")


def _pack(**features: Tensor) -> bytes:
    return save({name: value.half().contiguous().numpy() for name, value in features.items()})
