"""One lock a project: runs that meet wait for each other.

    with hold_project("polymuse run", limit, print):
        ...                  # read the DAG, run stages

`polymuse run` and the flow hold the lock. The kernel releases it when their process ends, even if
it is killed. DVC does not know it, so that a stage which another DVC command starts (`dvc repro`)
waits for the lock itself. DVC reserves the inputs and outputs of such a stage meanwhile. If they
hold up the holder of the lock, it lets these stages run first.

writes  .dvc/tmp/polymuse.lock; .dvc/tmp/polymuse.json, who holds it; .dvc/tmp/polymuse.pass,
        locked while the holder lets other stages run
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from stages.shared.runtime.errors import InputError

HOLDER_ENV = "POLYMUSE_PROJECT_LOCK"  # set for the stages of the holder: the lock file
POLL_SECONDS = 0.2
GRACE_SECONDS = 1.0  # a stage that looks whether a lock is free holds it for a moment


@contextmanager
def hold_project(command: str, limit: float, report: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of the current folder's project in this block.

    command: what others read about the holder. limit: seconds to wait for another holder, who is
    named to `report`. Raises InputError after that, or if the folder is in no DVC project.
    """
    lock, holder_file = _lock(Path.cwd()), dvc_tmp(Path.cwd()) / "polymuse.json"
    try:
        lock.acquire(timeout=min(limit, GRACE_SECONDS))
    except Timeout:
        report(f"Waiting for {_describe_holder(holder_file)}")
        try:
            lock.acquire(timeout=limit, poll_interval=POLL_SECONDS)
        except Timeout:
            raise gave_up("the project is", _describe_holder(holder_file), limit) from None
    try:
        since = datetime.now().isoformat(" ", "seconds")
        holder = {"command": command, "pid": os.getpid(), "since": since, "limit": limit}
        holder_file.write_text(json.dumps(holder), encoding="utf-8")
        os.environ[HOLDER_ENV] = lock.lock_file
        yield
    finally:
        os.environ.pop(HOLDER_ENV, None)
        holder_file.unlink(missing_ok=True)
        lock.release()


@contextmanager
def let_other_stages_run() -> Iterator[None]:
    """Let the stages of other DVC commands run while the holder of the lock is in this block."""
    lock = FileLock(dvc_tmp(Path.cwd()) / "polymuse.pass")
    with suppress(Timeout):  # another thread of the holder lets them run
        lock.acquire(timeout=GRACE_SECONDS)
    try:
        yield
    finally:
        lock.release()


def wait_for_holder(report: Callable[[str], object]) -> None:
    """Wait, in a stage of a DVC command that does not hold the lock, until it may run.

    That is when the lock is free, or its holder lets other stages run. `report` receives a line if
    the stage has to wait. Raises InputError after the limit of the holder.
    """
    if not os.environ.get("DVC_STAGE"):  # started by hand
        return
    root = Path(os.environ["DVC_ROOT"])
    lock, passing = _lock(root), FileLock(dvc_tmp(root) / "polymuse.pass")
    holder_file = dvc_tmp(root) / "polymuse.json"
    if os.environ.get(HOLDER_ENV) == lock.lock_file or not _is_held(lock):
        return
    report(f"Waiting for {_describe_holder(holder_file)}")
    start = time.monotonic()
    while _is_held(lock) and not _is_held(passing):
        limit = _read_holder(holder_file).get("limit", float("inf"))
        if time.monotonic() - start > limit:
            raise gave_up("the project is", _describe_holder(holder_file), limit)
        time.sleep(POLL_SECONDS)


def gave_up(what: str, holder: str, limit: float) -> InputError:
    """The error after `limit` seconds of waiting; what: is in use by `holder`."""
    return InputError(
        f"gave up after {limit:g} seconds (run.lock_timeout), since {what} in use by {holder}: "
        "wait for it or stop it"
    )


def describe_process(command: str, pid: int, since: str) -> str:
    """A command that others wait for; since: date and time of its start."""
    return f"`{command}` (PID {pid}), which runs since {since}"


def _lock(folder: Path) -> FileLock:
    return FileLock(dvc_tmp(folder) / "polymuse.lock")


def dvc_tmp(folder: Path) -> Path:
    """The folder of DVC's own locks, which git ignores. Raises InputError."""
    for root in [folder, *folder.parents]:
        if (root / ".dvc").is_dir():
            temporary = root / ".dvc" / "tmp"
            temporary.mkdir(exist_ok=True)
            return temporary
    raise InputError(f"{folder} is in no DVC project: run `dvc init`")


def _is_held(lock: FileLock) -> bool:
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _describe_holder(file: Path) -> str:
    holder = _read_holder(file)
    if not holder:
        return "another command"
    return describe_process(holder["command"], holder["pid"], holder["since"])


def _read_holder(file: Path) -> dict:
    """What the holder has written; {} while it writes, or after it has ended."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
