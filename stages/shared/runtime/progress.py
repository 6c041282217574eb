"""Progress bars for long work: live on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress_bar(
    items: Iterable[T], what: str, total: int | None = None, start: int = 0
) -> Iterator[T]:
    """Iterate over items and show how far it is; `start` counts what an earlier run had done."""
    every = 0.2 if sys.stderr.isatty() else 10.0  # seconds between two updates
    yield from tqdm(items, what, total, initial=start, mininterval=every, dynamic_ncols=True)
