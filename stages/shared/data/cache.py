"""The content-addressed store: what was computed from one picture or text is computed once.

A row's key is the sha256 of its content, a store's name the fingerprint of what computes it. One
SQLite file a store, under POLYMUSE_HOME: a million rows are one file, several processes may read
and write it at once, and a process that is killed in the middle of a write leaves no trace of it.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

ItemT = TypeVar("Item")

LOCK_TIMEOUT_SECONDS = 600.0  # for another process' write; one takes milliseconds
KEYS_PER_QUERY = 500  # below SQLite's limit of variables in a statement


def batched(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Lists of `size` items, the last one shorter (itertools.batched of Python 3.12)."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


class Store:
    """Rows of bytes, each written once. `fingerprint` names what computes them."""

    def __init__(self, folder: Path, fingerprint: str):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{fingerprint}.sqlite"
        # Two processes that switch one new file to WAL fail with "database is locked".
        with FileLock(path.with_suffix(".lock")):
            self.connection = sqlite3.connect(
                path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None
            )
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.execute("PRAGMA synchronous=NORMAL")
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )

    def missing_keys(self, keys: Iterable[str]) -> list[str]:
        """The keys without a row, each once, in the order given."""
        unique = list(dict.fromkeys(keys))
        found: set[str] = set()
        for part in batched(unique, KEYS_PER_QUERY):
            found.update(key.hex() for (key,) in self._select("key", part))
        return [key for key in unique if key not in found]

    def read(self, keys: Iterable[str]) -> Iterator[bytes]:
        """The rows of the keys, in their order. Raises KeyError for a key without one."""
        for part in batched(keys, KEYS_PER_QUERY):
            found = {key.hex(): value for key, value in self._select("key, value", part)}
            for key in part:
                yield found[key]

    def write(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Add rows, all or none of them. A key that has a row keeps it."""
        values = [(bytes.fromhex(key), value) for key, value in rows]
        with self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.executemany(
                "INSERT INTO rows VALUES (?, ?) ON CONFLICT (key) DO NOTHING", values
            )

    def compute_missing(
        self,
        items: Iterable[tuple[str, ItemT]],
        compute: Callable[[list[ItemT]], list[bytes]],
        batch: int,
    ) -> None:
        """Compute and write the rows that are missing among items, pairs of key and content.

        `compute` sees exactly `batch` contents each time: the last batch repeats one of its own,
        because a matrix product of another shape may round a row's last bit another way.
        """
        waiting: dict[str, ItemT] = {}
        for part in batched(items, batch):
            contents = dict(part)
            waiting |= {key: contents[key] for key in self.missing_keys(contents)}
            while len(waiting) >= batch:
                self._compute_batch(
                    {key: waiting.pop(key) for key in list(waiting)[:batch]}, compute, 0
                )
        if waiting:
            self._compute_batch(waiting, compute, batch - len(waiting))

    def _compute_batch(
        self, items: dict[str, ItemT], compute: Callable[[list[ItemT]], list[bytes]], padding: int
    ) -> None:
        contents = list(items.values())
        values = compute(contents + contents[:1] * padding)
        self.write(zip(items, values, strict=False))

    def _select(self, columns: str, keys: Iterable[str]) -> list[tuple]:
        values = [bytes.fromhex(key) for key in keys]
        marks = ",".join("?" * len(values))
        return self.connection.execute(
            f"SELECT {columns} FROM rows WHERE key IN ({marks})", values
        ).fetchall()
