"""Recognize in half a second that nothing changed since DVC last found nothing stale.

`dvc status` compares every dependency and output with dvc.lock, which takes seconds. The same files
are compared here by size, modification time and inode, as in DVC's own cache of hashes.

writes  POLYMUSE_HOME/up_to_date.json
"""

import json
import os
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from pipelines.project import write_atomically
from stages.shared.core import config
from stages.shared.runtime.stage import work_dir

DVC_FILES = ("dvc.yaml", "dvc.lock")


def is_up_to_date() -> bool:
    """Whether all files of the current folder's project are as they were at the last `record`."""
    try:
        paths, fingerprint = json.loads(_record_file().read_text(encoding="utf-8"))
        return fingerprint == fingerprint_files(paths)
    except (OSError, ValueError, TypeError):  # nothing recorded, or the file is damaged
        return False


def record(paths: list[str], fingerprint: str) -> None:
    """Record that the project's stages were up to date with these files.

    fingerprint: of `fingerprint_files`, before DVC compared the files with dvc.lock: a file that
    changed meanwhile then differs from it.
    """
    write_atomically(_record_file(), json.dumps([paths, fingerprint]))


def fingerprint_files(paths: Iterable[str]) -> str:
    """As `hash_files`, and also of DVC's and the parameter files."""
    return hash_files([*DVC_FILES, *map(str, config.params_files()), *sorted(paths)])


def hash_files(paths: Iterable[str]) -> str:
    """Hash of name, size, modification time and inode of the files at and below `paths`."""
    hashed = sha256(str(Path.cwd()).encode(errors="surrogateescape"))
    for name, status in _walk(paths):
        state = (name, status.st_size, status.st_mtime_ns, status.st_ino) if status else (name,)
        hashed.update(repr(state).encode(errors="surrogateescape"))
    return hashed.hexdigest()


def _walk(paths: Iterable[str]) -> Iterator[tuple[str, os.stat_result | None]]:
    """The files at and below `paths` in a fixed order, with None for those that do not exist."""
    for path in paths:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                names = sorted(entry.path for entry in entries if entry.name != "__pycache__")
            yield path, None
            yield from _walk(names)
        else:
            yield path, os.stat(path) if os.path.exists(path) else None


def _record_file() -> Path:
    return work_dir() / "up_to_date.json"
