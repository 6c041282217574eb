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

from stages.shared.data.cache import Item, Store
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import home
from stages.shared.torch_setup.devices import device, precision

Row = dict[str, np.ndarray]  # fp16
SHORTEST_BUCKETS = 16, 24  # tokens; the others are these doubled, and doubled again


def store_of(what: str, fingerprint: str, batch: int) -> Store:
    """The store of what is computed by one model, in one precision, in batches of one shape."""
    name = f"{what} {fingerprint} {device().type} {precision()} {batch}"
    return Store(home() / "store", f"{what}-{sha256(name.encode()).hexdigest()[:32]}")


def fill_by_length(
    store: Store,
    items: Mapping[str, Item],
    lengths: Callable[[list[Item]], list[int]],
    compute: Callable[[list[Item]], list[bytes]],
    batch: int,
    what: str,
) -> None:
    """Compute and write the rows that are missing among items, by key.

    lengths: to how many tokens each item is padded. Those of one length are computed together: a
    longer neighbour would change an item's bytes. what: they are called on the progress bar.
    """
    missing = store.missing(items)
    if not missing:
        return
    sizes = lengths([items[key] for key in missing])
    sized = sorted(zip(sizes, missing, strict=True), key=itemgetter(0))
    for size, group in groupby(sized, key=itemgetter(0)):
        keys = [key for _, key in group]
        part = ((key, items[key]) for key in keys)
        store.fill(bar(part, f"{what} of {size} tokens", len(keys)), compute, batch)


def pack(**features: Tensor) -> bytes:
    """A row as it is stored, in half precision."""
    return save({name: value.half().cpu().contiguous().numpy() for name, value in features.items()})


def unpack(row: bytes) -> Row:
    return load(row)


def bucket(tokens: int, longest: int) -> int:
    """The padded length of a text: 16, 24, 32, 48, 64, 96, ... tokens, at most `longest`."""
    sizes = (size << power for power in count() for size in SHORTEST_BUCKETS)
    return min(next(size for size in sizes if size >= tokens), longest)
