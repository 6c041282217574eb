"""Progress bars: live on a terminal, a line every ten seconds (TQDM_MININTERVAL) in a log."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress_bar(
    items: Iterable[T], what: str, total: int | None = None, start: int = 0
) -> Iterator[T]:
    """Iterate over `items` with a progress bar.

    what: the label of the bar. start: number of items that an earlier run has processed.
    """
    interval = 0.2 if sys.stderr.isatty() else float(os.environ.get("TQDM_MININTERVAL", "10"))
    yield from tqdm(items, what, total, initial=start, mininterval=interval, dynamic_ncols=True)
