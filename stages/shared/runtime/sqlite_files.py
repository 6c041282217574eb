"""Damage that SQLite itself does not report."""

import sqlite3
from pathlib import Path


def is_cut(database: sqlite3.Connection, path: Path) -> bool:
    """Whether the last page of a database is not whole: SQLite reads what is missing as zeros.

    Raises sqlite3.DatabaseError if the file is no database, OperationalError if it is locked.
    """
    database.execute("SELECT count(*) FROM sqlite_master")  # reads the header
    (page_size,) = database.execute("PRAGMA page_size").fetchone()
    return path.stat().st_size % page_size > 0
