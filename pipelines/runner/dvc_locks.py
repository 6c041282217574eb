"""Wait while other DVC commands, such as `dvc repro`, have locked what a command of ours needs.

DVC records in .dvc/tmp/rwlock which process reads and writes which paths. A command that needs one
of them fails at once.

reads  .dvc/tmp/rwlock
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import TypeVar

import psutil

from pipelines.runner.process_group import ProcessStopped
from stages.shared.runtime import project_lock
from stages.shared.runtime.stage import InputError

T = TypeVar("T")
BUSY_MESSAGES = ("is busy, it is being blocked by", "Unable to acquire lock")  # of DVC
MIN_RETRY_SECONDS = 1.0  # between two attempts
MAX_RETRY_SECONDS = 10.0


class Busy(InputError):
    """DVC refused a command because of the lock of another one."""


def is_busy(message: str) -> bool:
    """Whether DVC's message says that another command has locked a path or the repository."""
    return any(part in message for part in BUSY_MESSAGES)


def retry_while_busy(
    call: Callable[[], T], limit: float, report: Callable[[str], object], stop: Event
) -> T:
    """The result of `call`, which is repeated while it raises Busy.

    limit: seconds to wait for other commands, which are named to `report` once. Raises InputError
    after that and ProcessStopped once `stop` is set.
    """
    start = None
    while True:
        try:
            return call()
        except Busy:
            others = _describe_others()
        if start is None:
            start = time.monotonic()
            report(f"Waiting for {others}")
        if time.monotonic() - start > limit:
            raise project_lock.gave_up("DVC's files are", others, limit)
        with project_lock.let_other_stages_run():
            _wait_for_change(stop)


def _wait_for_change(stop: Event) -> None:
    """Wait until others lock other paths than now, or MAX_RETRY_SECONDS."""
    before = sorted(_list_others())
    if stop.wait(MIN_RETRY_SECONDS):
        raise ProcessStopped
    for _ in range(round(MAX_RETRY_SECONDS / project_lock.POLL_SECONDS)):
        if not before or sorted(_list_others()) != before:
            return
        if stop.wait(project_lock.POLL_SECONDS):
            raise ProcessStopped


def _describe_others() -> str:
    """The commands that have locked something, with their process and start."""
    texts = []
    for pid, command in sorted({(pid, command) for pid, command, _ in _list_others()}):
        program, *arguments = command.split(" ")
        text = " ".join([Path(program).name, *arguments])
        with suppress(psutil.NoSuchProcess):
            since = datetime.fromtimestamp(psutil.Process(pid).create_time())
            texts.append(project_lock.describe_process(text, pid, since.isoformat(" ", "seconds")))
    return " and ".join(texts) or "another DVC command"


def _list_others() -> Iterator[tuple[int, str, str]]:
    """Process, command and path of each lock of a process that this one did not start."""
    try:
        file = project_lock.dvc_tmp(Path.cwd()) / "rwlock"
        locks = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no lock yet, or DVC is writing the file
        return
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    writers = [(path, info) for path, info in locks.get("write", {}).items()]
    readers = [(path, info) for path, infos in locks.get("read", {}).items() for info in infos]
    for path, info in writers + readers:
        if info["pid"] not in ours and psutil.pid_exists(info["pid"]):
            yield info["pid"], info["cmd"], path
