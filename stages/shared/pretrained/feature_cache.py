"""A cache of what a frozen model computes from an item, such as its features.

All batches have the same shape, so a row does not depend on the rest of its batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import count, groupby
from operator import itemgetter

import numpy as np
from safetensors.numpy import load, save
from torch import Tensor

from stages.shared.data.cache import ItemT, Store
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import work_dir
from stages.shared.torch_setup.devices import get_device, get_precision

CachedRow = dict[str, np.ndarray]  # fp16
BASE_BUCKET_LENGTHS = 16, 24  # tokens; the other lengths are repeated doublings of these


def open_feature_cache(kind: str, fingerprint: str, batch_size: int) -> Store:
    """The cache of one model on one device type, in one precision and with one batch size.

    kind: what is cached, such as "texts". fingerprint: a hash of the model.
    """
    name = f"{kind} {fingerprint} {get_device().type} {get_precision()} {batch_size}"
    return Store(work_dir() / "store", f"{kind}-{sha256(name.encode()).hexdigest()[:32]}")


def compute_missing_by_length(
    store: Store,
    items: Mapping[str, ItemT],
    lengths: Callable[[list[ItemT]], list[int]],
    compute: Callable[[list[ItemT]], list[bytes]],
    batch_size: int,
    label: str,
) -> None:
    """Compute the rows of `items` (by key) that are missing, and write them to the store.

    lengths: the padded length of each item in tokens. Only items of the same length share a batch,
    since padding to another length would change the result. label: for the progress bar.
    """
    missing = store.missing_keys(items)
    if not missing:
        return
    sizes = lengths([items[key] for key in missing])
    by_size = sorted(zip(sizes, missing, strict=True), key=itemgetter(0))
    for size, group in groupby(by_size, key=itemgetter(0)):
        keys = [key for _, key in group]
        part = ((key, items[key]) for key in keys)
        progress = progress_bar(part, f"{label} of {size} tokens", len(keys))
        store.compute_missing(progress, compute, batch_size)


def pack_features(**features: Tensor) -> bytes:
    """Named tensors as the bytes of a cached row, in half precision."""
    return save({name: value.half().cpu().contiguous().numpy() for name, value in features.items()})


def unpack_features(row: bytes) -> CachedRow:
    """The inverse of `pack_features`, as fp16 arrays."""
    return load(row)


class StoredFeatures(Mapping[str, np.ndarray]):
    """One of the features of cached rows by their key, read from the store on access.

    The features of a whole corpus may not fit into memory.
    """

    def __init__(self, store: Store, keys: Iterable[str], feature: str):
        """keys: all in the store; feature: its name in `pack_features`"""
        self.store, self.keys_in_order, self.feature = store, dict.fromkeys(keys), feature

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.keys_in_order:
            raise KeyError(key)
        (row,) = self.store.read([key])
        return unpack_features(row)[self.feature]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_in_order)

    def __len__(self) -> int:
        return len(self.keys_in_order)


def padded_length(tokens: int, longest: int) -> int:
    """The padded length of a text: 16, 24, 32, 48, 64, 96, ... tokens, at most `longest`."""
    sizes = (size << power for power in count() for size in BASE_BUCKET_LENGTHS)
    return min(next(size for size in sizes if size >= tokens), longest)
