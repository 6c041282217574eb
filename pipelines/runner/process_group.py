"""Run a command so that nothing of it is left behind, whatever ends the command or its driver.

The command gets a process group of its own. The group is killed as a whole when the command ends,
fails, takes too long or is stopped, and when an exception (Ctrl-C, SIGTERM) passes through `run`;
should the driver itself be killed, leash.py kills it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Event

WATCHDOG = Path(__file__).with_name("parent_watchdog.py")
POLL_SECONDS = 0.1  # seconds between two looks at the clock, the process and `stop`


class ProcessStopped(Exception):
    """Somebody asked for the command to be stopped."""


@contextmanager
def stop_event_scope() -> Iterator[Event]:
    """An event that is set when the block ends: no command that was given it outlives the block."""
    stop = Event()
    try:
        yield stop
    finally:
        stop.set()


def run_process(
    command: list[str],
    folder: Path,
    environment: Mapping[str, str],
    line: Callable[[str], None],
    timeout: float,
    stop: Event,
) -> int:
    """Run `command` in `folder` and hand each line that it writes, its ending included, to `line`.

    A line ends with a line feed or, in a progress bar, a carriage return. Returns the exit code.
    Raises TimeoutError after `timeout` seconds, and Stopped once `stop` is set.

    The thread that calls must live as long as the command: Linux takes its end for the parent's.
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
    try:
        for text in _read_lines(child, time.monotonic() + timeout, stop):
            line(text)
    finally:
        _kill_group(child)
    return child.returncode


def _read_lines(child: subprocess.Popen, deadline: float, stop: Event) -> Iterator[str]:
    """What the command writes, line by line, until it ends."""
    os.set_blocking(child.stdout.fileno(), False)
    pending = b""
    with DefaultSelector() as selector:
        selector.register(child.stdout, EVENT_READ)
        over = False
        while not over:
            over = _has_exited(child)  # asked before reading, so that its last words are read too
            selector.select(0 if over else POLL_SECONDS)
            content = child.stdout.read()
            if content == b"":  # closed: nothing more to wait for but the end
                time.sleep(0 if over else POLL_SECONDS)
            *complete, pending = re.split(rb"(?<=[\r\n])", pending + (content or b""))
            yield from (text.decode(errors="replace") for text in complete)
            if stop.is_set():
                raise ProcessStopped
            if time.monotonic() > deadline:
                raise TimeoutError
    if pending:
        yield pending.decode(errors="replace") + "\n"


def _has_exited(child: subprocess.Popen) -> bool:
    """Whether the group's first process has ended; it stays unreaped, so its number is ours."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(child: subprocess.Popen) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies only
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
