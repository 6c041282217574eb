"""Run a command in a process group of its own, so that none of its processes outlives it.

The whole group is killed when the command ends, fails, times out or is stopped, and when an
exception (Ctrl-C, SIGTERM) passes through `run_process`. If the driver itself is killed,
parent_watchdog.py kills the group.
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
from typing import IO

WATCHDOG = Path(__file__).with_name("parent_watchdog.py")
POLL_SECONDS = 0.1  # between two checks of the clock, the process and `stop`


@dataclass(frozen=True)
class ProcessResult:
    """How a command ended. cpu_seconds: user and system time of its processes."""

    code: int
    cpu_seconds: float


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
) -> ProcessResult:
    """Run `command` in `folder`; `on_line` receives each line of output.

    A line includes its ending: a line feed or, in progress bars, a carriage return. Raises
    TimeoutError after `timeout` seconds and ProcessStopped once `stop` is set.

    The calling thread must live as long as the command: Linux signals the death of the parent when
    the thread that started the process ends.
    """
    if stop.is_set():
        raise ProcessStopped
    child = subprocess.Popen(
        [sys.executable, "-I", str(WATCHDOG), str(os.getpid()), *command],
        bufsize=0,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    output = child.stdout
    assert output is not None  # it is a pipe
    try:
        for line in _read_lines(child, output, time.monotonic() + timeout, stop):
            on_line(line)
    finally:
        cpu_seconds = _kill_group(child)
        output.close()
    return ProcessResult(child.returncode, cpu_seconds)


def _read_lines(
    child: subprocess.Popen[bytes], output: IO[bytes], deadline: float, stop: Event
) -> Iterator[str]:
    """The output of the command, line by line, until it ends."""
    os.set_blocking(output.fileno(), False)
    pending = b""
    with DefaultSelector() as selector:
        selector.register(output, EVENT_READ)
        exited = False
        while not exited:
            exited = _has_exited(child)  # checked before reading, so that no output is lost
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


def _has_exited(child: subprocess.Popen) -> bool:
    """Whether the group leader has exited; it is not reaped, so that its id stays reserved."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(child: subprocess.Popen) -> float:
    """Kill and reap the group; returns the CPU seconds of its processes."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: the group has only zombies
        os.killpg(child.pid, signal.SIGKILL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime
