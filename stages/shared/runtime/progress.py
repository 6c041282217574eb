"""Progress bars: live on a terminal, a line every ten seconds (TQDM_MININTERVAL) in a log."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress_bar(
    items: Iterable[T], what: str, total: int | None = None, start: int = 0
) -> Iterator[T]:
    """Iterate over `items` with a progress bar.

    what: the label of the bar. start: number of items that an earlier run has processed.
    """
    from tqdm import tqdm  # reads TQDM_DISABLE, which commands set, when it is imported

    interval = update_interval()
    yield from tqdm(items, what, total, initial=start, mininterval=interval, dynamic_ncols=True)


def update_interval() -> float:
    """Seconds between two updates of a progress bar."""
    return 0.2 if sys.stderr.isatty() else float(os.environ.get("TQDM_MININTERVAL", "10"))


def log_hub_downloads() -> None:
    """Print a line for each file that huggingface_hub downloads.

    Its progress bars appear only on a terminal.
    """
    logger = logging.getLogger("huggingface_hub.file_download")
    if not sys.stderr.isatty() and not logger.filters:
        logger.setLevel(logging.DEBUG)
        logger.addFilter(_print_downloads)


def _print_downloads(record: logging.LogRecord) -> bool:
    """Print the debug message of a download in short; keep warnings and errors."""
    message = record.getMessage()
    if message.startswith("Downloading '"):
        print("download", message.split("'")[1], file=sys.stderr, flush=True)
    return record.levelno >= logging.WARNING
