"""Correct the addresses of artifacts in an MLflow database whose folder was moved or copied.

MLflow stores every address of an artifact as an absolute path, also if it was given a relative one.
In a copied project, new runs would write into the original, and in a moved one no model loads. The
experiment of this project names the folder in which its database was created: if that is another
one, the addresses below it are changed to the database's folder.

reads and writes  mlflow.db
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

EXPERIMENT_NAME = "polymuse"
ARTIFACTS_DIR = "mlartifacts"  # beside the database
FILE_SCHEME = "file://"
EXPERIMENT_ADDRESSES = ("experiments", "artifact_location")
ADDRESSES = [  # table, column
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
]


def artifacts_address(database: Path) -> str:
    """Where the runs of a database store their artifacts, as a file address."""
    return (database.parent / ARTIFACTS_DIR).as_uri()


def find_former_folder(database: Path) -> Path | None:
    """The folder that the addresses in `database` name, if that is not its own folder.

    None if the database is where it was created, has no experiment yet, or stores artifacts in a
    folder that the user chose. Raises sqlite3.Error if it cannot be read.
    """
    if not database.exists() or not database.stat().st_size:
        return None
    uri = f"{database.as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        if not _has_column(connection, *EXPERIMENT_ADDRESSES):
            return None
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        row = connection.execute(query, [EXPERIMENT_NAME]).fetchone()
    location = _to_path(row[0] or "") if row else Path()
    if not location.is_absolute() or location.name != ARTIFACTS_DIR:
        return None
    former, own = location.parent, database.parent
    if former == own or (former.exists() and former.samefile(own)):  # e.g. behind a link
        return None
    is_chosen = (
        location.is_dir()
        and not (former / database.name).exists()
        and not (own / ARTIFACTS_DIR).exists()
    )
    return None if is_chosen else former


def correct_addresses(database: Path) -> str:
    """Change the addresses in `database` if it was moved or copied.

    Returns one sentence about it; "" if nothing had to be changed. An artifact that exists only in
    the former folder, because an earlier version wrote it there, keeps its address. Raises
    sqlite3.Error if the database cannot be read or written.
    """
    former = find_former_folder(database)
    if former is None:
        return ""
    own, kept = database.parent, 0
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        # Those of experiments without a condition: new runs must not write into `former`.
        _change(connection, *EXPERIMENT_ADDRESSES, former, own, lambda *_: True)
        for table, column in ADDRESSES:
            if _has_column(connection, table, column):
                kept += _change(connection, table, column, former, own, _is_moved)
        connection.execute("COMMIT")
    sentence = f"{database.name} was in {former}: its addresses of artifacts now name {own}"
    return f"{sentence}, except {kept} of artifacts that exist only there" if kept else sentence


def _change(
    connection: sqlite3.Connection,
    table: str,
    column: str,
    former: Path,
    own: Path,
    is_moved: Callable[[Path, Path], bool],
) -> int:
    """Change the addresses of one column; returns the number of those that are kept."""
    kept = 0
    for old_root, new_root in ((former.as_uri(), own.as_uri()), (str(former), str(own))):
        prefix = f"{old_root}/"
        query = f"SELECT DISTINCT {column} FROM {table} WHERE substr({column}, 1, ?) = ?"
        for (old,) in connection.execute(query, [len(prefix), prefix]).fetchall():
            new = f"{new_root}/{old.removeprefix(prefix)}"
            if is_moved(_to_path(old), _to_path(new)):
                update = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
                connection.execute(update, [new, old])
            else:
                kept += 1
    return kept


def _is_moved(old: Path, new: Path) -> bool:
    return new.exists() or not old.exists()


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    """Whether there is this column: databases of older versions of MLflow have fewer tables."""
    return any(row[1] == column for row in connection.execute(f"PRAGMA table_info({table})"))


def _to_path(address: str) -> Path:
    """The path of a local address; other addresses become a path that is not absolute."""
    if address.startswith(FILE_SCHEME):
        return Path(unquote(address.removeprefix(FILE_SCHEME)))
    return Path(address)
