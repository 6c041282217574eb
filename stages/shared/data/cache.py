"""A content-addressed cache of results that are expensive to compute from an image or text.

The key of a row is the sha256 of its content; the name of a store is the fingerprint of the
computation. A store is one SQLite file under POLYMUSE_HOME: a million rows are one file, several
processes may read and write it concurrently, and an interrupted write leaves no partial row.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from stages.shared.runtime.errors import InputError, damaged_file
from stages.shared.runtime.sqlite_files import is_cut

ItemT = TypeVar("ItemT")

LOCK_TIMEOUT_SECONDS = 600.0  # a write of another process takes milliseconds
DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)  # of SQLite
KEYS_PER_QUERY = 500  # below SQLite's limit of variables per statement


def batched(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Yields lists of `size` items; the last may be shorter (Python 3.12's itertools.batched)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class Store:
    """Rows of bytes by key, each written once. fingerprint: a hash of the computation.

    All methods raise InputError if the file is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = path = folder / f"{fingerprint}.sqlite"
        # Two processes that switch a new file to WAL at once fail with "database is locked".
        with FileLock(path.with_suffix(".lock")), self._reports_damage():
            self.connection = sqlite3.connect(
                path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None
            )
            self.connection.execute("PRAGMA journal_mode=WAL")
            if is_cut(self.connection, path):
                raise self._damage(ValueError("its last page is cut"))
            self.connection.execute("PRAGMA synchronous=NORMAL")
            self.connection.execute(
                "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )

    def missing_keys(self, keys: Iterable[str]) -> list[str]:
        """The keys without a row, each once, in their order."""
        unique = list(dict.fromkeys(keys))
        present: set[str] = set()
        for part in batched(unique, KEYS_PER_QUERY):
            present.update(key.hex() for (key,) in self._select("key", part))
        return [key for key in unique if key not in present]

    def read(self, keys: Iterable[str]) -> Iterator[bytes]:
        """Yields the rows of the keys, in their order. Raises KeyError for a key without a row."""
        for part in batched(keys, KEYS_PER_QUERY):
            values = {key.hex(): value for key, value in self._select("key, value", part)}
            for key in part:
                yield values[key]

    def write(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Add (key, row) pairs atomically. A key that already has a row keeps it."""
        values = [(bytes.fromhex(key), value) for key, value in rows]
        with self._reports_damage(), self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.executemany(
                "INSERT INTO rows VALUES (?, ?) ON CONFLICT (key) DO NOTHING", values
            )

    def compute_missing(
        self,
        items: Iterable[tuple[str, ItemT]],
        compute: Callable[[list[ItemT]], list[bytes]],
        batch_size: int,
    ) -> None:
        """Compute the missing rows of `items`, (key, content) pairs, and write them.

        `compute` always receives exactly `batch_size` contents: the last batch is filled up with
        copies of its first item, because a matrix product of another shape may round differently.
        """
        pending: dict[str, ItemT] = {}
        for part in batched(items, batch_size):
            contents = dict(part)
            pending |= {key: contents[key] for key in self.missing_keys(contents)}
            while len(pending) >= batch_size:
                self._compute_batch(
                    {key: pending.pop(key) for key in list(pending)[:batch_size]}, compute, 0
                )
        if pending:
            self._compute_batch(pending, compute, batch_size - len(pending))

    def _compute_batch(
        self, items: dict[str, ItemT], compute: Callable[[list[ItemT]], list[bytes]], padding: int
    ) -> None:
        contents = list(items.values())
        values = compute(contents + contents[:1] * padding)
        self.write(zip(items, values, strict=False))

    def _select(self, columns: str, keys: Iterable[str]) -> list[tuple]:
        values = [bytes.fromhex(key) for key in keys]
        placeholders = ",".join("?" * len(values))
        query = f"SELECT {columns} FROM rows WHERE key IN ({placeholders})"
        with self._reports_damage():
            return self.connection.execute(query, values).fetchall()

    @contextmanager
    def _reports_damage(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF not in DAMAGE_CODES:  # the rest tells the cause
                raise
            raise self._damage(error) from None

    def _damage(self, error: Exception) -> InputError:
        return damaged_file(
            self.path, error, "run `polymuse doctor --fix`, and it is computed again"
        )
