"""What runs leave behind: caches, checkpoints, outputs, DVC's cache, locks and processes.

Contents are compared with their sizes in dvc.lock, so that nothing large is read.
"""

import json
import os
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml.error import YAMLError

from pipelines.health import CheckResult, Problem, fixable
from pipelines.health.project import find_damage, move_aside, read_lock
from stages.shared.runtime.download import compute_checksum
from stages.shared.runtime.stage import work_dir

DVC_OBJECTS = Path(".dvc/cache/files/md5")
RWLOCK = Path(".dvc/tmp/rwlock")
STAGE_MODULE = "stages."  # python -m stages.NAME
REBUILT = "moves it aside; it is computed again"
NOT_REBUILT = {  # state that is not computed again -> what is lost
    "presets.json": "moves it aside; `polymuse preset --undo` is not possible then",
    "batches": "moves it aside; its questions are sent and paid again",
    "answers.sqlite": "moves it aside; its questions are sent and paid again",
}


def check_work_dir() -> CheckResult:
    """The files under POLYMUSE_HOME."""
    folder, count, problems = work_dir(), 0, []
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        text = f"{folder} is {'not writable' if folder.is_dir() else 'a file'}"
        return CheckResult("", [Problem(text, "set POLYMUSE_HOME to another folder")])
    readers: dict[str, Callable[[Path], object]] = {
        "*.json": _read_json,
        "batches/*.json": _read_json,
        "store/*.sqlite": _check_database,
        "checkpoints/**/*.pt": _check_archive,
    }
    for pattern, read in readers.items():
        for file in sorted(folder.glob(pattern)):
            count += 1
            try:
                read(file)
            except (OSError, ValueError, sqlite3.DatabaseError) as error:
                phrase = NOT_REBUILT.get(file.name) or NOT_REBUILT.get(file.parent.name, REBUILT)
                text = f"{file} is damaged ({error})"
                problems.append(fixable(text, phrase, lambda file=file: move_aside(file)))
    return CheckResult(f"{count} files in {folder} are complete", problems)


def check_outputs() -> CheckResult:
    """The outputs in data/ and in DVC's cache against their sizes in dvc.lock."""
    count, problems = 0, []
    for out in list_outs():
        path, size, files = Path(out["path"]), out.get("size"), out.get("nfiles")
        if path.exists() and size is not None:
            count += 1
            actual = list(_file_sizes(path))
            if sum(actual) != size or (files is not None and len(actual) != files):
                text = f"{path} was changed or cut since its stage ran"
                problems.append(Problem(text, "run `polymuse run`, which writes it again"))
        problems += _check_objects(out)
    return CheckResult(f"{count} outputs are as dvc.lock records them", problems)


def check_locks() -> CheckResult:
    """Who holds the locks of DVC and of this project."""
    holders = _lock_holders()
    files = [*Path(".dvc/tmp").glob("*lock"), *work_dir().glob("locks/*")]
    files += work_dir().glob("runs/*.lock")
    held, problems = [], []
    for file in files:
        pid = holders.get(file.stat().st_ino)
        if pid is None:
            continue
        if pid and psutil.pid_exists(pid):
            held.append(f"{file} by process {pid} ({_command_line(pid)[:60]})")
        else:  # of another container, or a machine that shares the folder
            problems.append(Problem(f"{file} is held by a process that is not here", "end it"))
    problems += _check_rwlock(bool(held))
    return CheckResult(f"held: {', '.join(held)}" if held else "no lock is held", problems)


def check_processes() -> CheckResult:
    """Stages of this project whose driver has ended."""
    count, problems = 0, []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if not any(word.startswith(STAGE_MODULE) for word in command[1:4]):
                continue
            if process.cwd() != str(Path.cwd()):
                continue
            count += 1
            if not _is_in_project(process.parent()):
                text = f"stage process {process.pid} ({' '.join(command)[:60]}) has no driver"
                problems.append(Problem(text, f"run `kill {process.pid}`"))
        except psutil.Error:  # ended meanwhile, or of another user
            continue
    return CheckResult(f"{count} stages run" if count else "no stage runs", problems)


def _is_in_project(process: psutil.Process | None) -> bool:
    """Whether a process is a driver or shell in the project; the one that adopts orphans is not."""
    try:
        return process is not None and process.cwd() == str(Path.cwd())
    except psutil.Error:
        return False


def _read_json(file: Path) -> None:
    json.loads(file.read_text(encoding="utf-8"))


def _check_database(file: Path) -> None:
    """Raises sqlite3.DatabaseError if the database is damaged. A locked one is in use."""
    uri = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=0)) as database:
        try:
            damage = find_damage(database, file)
        except sqlite3.OperationalError:
            return
    if damage:
        raise sqlite3.DatabaseError(damage)


def _check_archive(file: Path) -> None:
    """torch.save writes a zip archive, whose end lists its contents."""
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no checkpoint, or was cut")


def list_outs() -> list[dict[str, Any]]:
    """The outputs in dvc.lock: path, md5, size and, of folders, nfiles."""
    try:
        stages = read_lock().values()
    except (OSError, ValueError, YAMLError):  # `check_repository` reports it
        return []
    return [out for stage in stages for out in stage.get("outs") or ()]


def _file_sizes(path: Path) -> Iterator[int]:
    if path.is_file():
        yield path.stat().st_size
    for place, _, names in os.walk(path):
        yield from (os.stat(os.path.join(place, name)).st_size for name in names)


def _check_objects(out: dict[str, Any]) -> Iterator[Problem]:
    """Problems of the copies of an output in DVC's cache; a missing copy is none."""
    md5 = out.get("md5") or ""
    listing = object_path(md5)
    if not md5 or not listing.exists():
        return
    if not md5.endswith(".dir"):
        if out.get("size") not in (None, listing.stat().st_size):
            yield _damaged_object([listing], out)
        return
    try:
        objects = [object_path(entry["md5"]) for entry in json.loads(listing.read_bytes())]
    except (ValueError, TypeError, KeyError):
        yield _damaged_object([listing], out)
        return
    if all(file.exists() for file in objects):
        sizes = [file.stat().st_size for file in objects]
        if out.get("size") not in (None, sum(sizes)):
            yield _damaged_object(objects, out)


def _damaged_object(files: list[Path], out: dict[str, Any]) -> Problem:
    phrase = "deletes the damaged files; the next run of the stage writes them again"
    return fixable(
        f"DVC's cache of {out['path']} is damaged", phrase, lambda: _delete_damaged(files)
    )


def _delete_damaged(files: list[Path]) -> None:
    """Delete the objects whose content has another hash than their name."""
    for file in files:
        if compute_checksum(file, "md5") != (file.parent.name + file.name).removesuffix(".dir"):
            file.unlink()


def object_path(md5: str) -> Path:
    """Where DVC's cache has the content with this hash."""
    return DVC_OBJECTS / md5[:2] / md5[2:]


def _lock_holders() -> dict[int, int]:
    """inode -> process that holds a lock on that file; Linux only."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if "->" not in line]  # -> waits for a lock
    return {int(row[5].rpartition(":")[2]): int(row[4]) for row in fields}


def _check_rwlock(in_use: bool) -> Iterator[Problem]:
    """DVC cannot start with a damaged list of the files that its processes read and write."""
    if in_use or not RWLOCK.exists():
        return
    try:
        if not isinstance(json.loads(RWLOCK.read_bytes()), dict):
            raise ValueError
    except ValueError:
        yield fixable(f"{RWLOCK} is damaged", "deletes it", RWLOCK.unlink)


def _command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return "ended"
