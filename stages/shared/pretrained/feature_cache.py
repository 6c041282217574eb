"""What a model computes of an item, through the store: what is there is not computed again.

Batches have one shape, so a row's bytes do not depend on what stood beside it.
"""

from collections.abc import Callable, Mapping
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
BASE_BUCKET_LENGTHS = 16, 24  # tokens; the others are these doubled, and doubled again


def open_feature_cache(what: str, fingerprint: str, batch: int) -> Store:
    """The store of what is computed by one model, in one precision, in batches of one shape."""
    name = f"{what} {fingerprint} {get_device().type} {get_precision()} {batch}"
    return Store(work_dir() / "store", f"{what}-{sha256(name.encode()).hexdigest()[:32]}")


def compute_missing_by_length(
    store: Store,
    items: Mapping[str, ItemT],
    lengths: Callable[[list[ItemT]], list[int]],
    compute: Callable[[list[ItemT]], list[bytes]],
    batch: int,
    what: str,
) -> None:
    """Compute and write the rows that are missing among items, by key.

    lengths: to how many tokens each item is padded. Those of one length are computed together: a
    longer neighbour would change an item's bytes. what: they are called on the progress bar.
    """
    missing = store.missing_keys(items)
    if not missing:
        return
    sizes = lengths([items[key] for key in missing])
    sized = sorted(zip(sizes, missing, strict=True), key=itemgetter(0))
    for size, group in groupby(sized, key=itemgetter(0)):
        keys = [key for _, key in group]
        part = ((key, items[key]) for key in keys)
        store.compute_missing(
            progress_bar(part, f"{what} of {size} tokens", len(keys)), compute, batch
        )


def pack_features(**features: Tensor) -> bytes:
    """A row as it is stored, in half precision."""
    return save({name: value.half().cpu().contiguous().numpy() for name, value in features.items()})


def unpack_features(row: bytes) -> CachedRow:
    return load(row)


def padded_length(tokens: int, longest: int) -> int:
    """The padded length of a text: 16, 24, 32, 48, 64, 96, ... tokens, at most `longest`."""
    sizes = (size << power for power in count() for size in BASE_BUCKET_LENGTHS)
    return min(next(size for size in sizes if size >= tokens), longest)
