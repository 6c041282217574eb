"""Run a command in a process group of its own, so that none of its processes outlives it.

The whole group is killed when the command ends, fails, times out or is stopped, and when an
exception (Ctrl-C, SIGTERM) passes through `run_process`. If the driver itself is killed,
parent_watchdog.py or fork_server_process.py kills the group.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Event
from typing import IO, Protocol

WATCHDOG = Path(__file__).with_name("parent_watchdog.py")
POLL_SECONDS = 0.1  # between two checks of the clock, the process and `stop`


@dataclass(frozen=True)
class ProcessResult:
    """How a command ended. cpu_seconds: user and system time of its processes."""

    code: int
    cpu_seconds: float


class ProcessGroup(Protocol):
    """A running command and all processes that it started."""

    @property
    def output(self) -> IO[bytes]:
        """What all processes write, standard errors included."""
        ...

    def has_exited(self) -> bool:
        """Whether the command has ended; what it wrote can still be read."""
        ...

    def kill(self) -> ProcessResult:
        """Kill what is left of the group and wait for its end."""
        ...


class ProcessStopped(Exception):
    """The command was stopped because its stop event was set."""


@contextmanager
def stop_event_scope() -> Iterator[Event]:
    """An event that is set when the block ends; commands that were started with it end then."""
    stop = Event()
    try:
        yield stop
    finally:
        stop.set()


def run_process(
    command: list[str],
    folder: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], object],
    timeout: float,
    stop: Event,
    start: Callable[[list[str], Path, Mapping[str, str]], ProcessGroup] | None = None,
) -> ProcessResult:
    """Run `command` in `folder`; `on_line` receives each line of output.

    A line includes its ending: a line feed or, in progress bars, a carriage return. `start` starts
    the command; without it, it becomes a child of this process. Raises TimeoutError after `timeout`
    seconds and ProcessStopped once `stop` is set.

    The calling thread must live as long as the command: Linux signals the death of the parent when
    the thread that started the process ends.
    """
    if stop.is_set():
        raise ProcessStopped
    group = (start or SpawnedGroup)(command, folder, environment)
    try:
        for line in _read_lines(group, time.monotonic() + timeout, stop):
            on_line(line)
    finally:
        result = group.kill()
        group.output.close()
    return result


def _read_lines(group: ProcessGroup, deadline: float, stop: Event) -> Iterator[str]:
    """The output of the command, line by line, until it ends."""
    output = group.output
    os.set_blocking(output.fileno(), False)
    pending = b""
    with DefaultSelector() as selector:
        selector.register(output, EVENT_READ)
        exited = False
        while not exited:
            exited = group.has_exited()  # checked before reading, so that no output is lost
            selector.select(0 if exited else POLL_SECONDS)
            content = output.read()
            if content == b"":  # output closed: only wait for the exit
                time.sleep(0 if exited else POLL_SECONDS)
            *complete, pending = re.split(rb"(?<=[\r\n])", pending + (content or b""))
            yield from (line.decode(errors="replace") for line in complete)
            if stop.is_set():
                raise ProcessStopped
            if time.monotonic() > deadline:
                raise TimeoutError
    if pending:
        yield pending.decode(errors="replace") + "\n"


class SpawnedGroup:
    """A child of this process, with parent_watchdog.py as the leader of the group."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]):
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(WATCHDOG), str(os.getpid()), *command],
            bufsize=0,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._child.stdout is not None  # it is a pipe
        self.output = self._child.stdout

    def has_exited(self) -> bool:
        """Whether the leader has exited; it is not reaped, so that its id stays reserved."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._child.pid, options) is not None

    def kill(self) -> ProcessResult:
        """Kill and reap the group."""
        with suppress(ProcessLookupError, PermissionError):  # macOS: the group has only zombies
            os.killpg(self._child.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._child.pid, 0)
        self._child.returncode = os.waitstatus_to_exitcode(status)
        return ProcessResult(self._child.returncode, usage.ru_utime + usage.ru_stime)
