"""Start commands as forks of one process that has imported their packages already.

    with start_server(environment) as server:
        process_group.run_process(["dvc", "repro", ...], ..., start=server.start)

A stage that does next to nothing takes seconds to import its packages and DVC's; a fork has them.
fork_server_process.py is that process.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.runner.process_group import ProcessResult
from stages.shared.runtime.errors import InputError

SERVER = "pipelines.runner.fork_server_process"
MIN_COMMANDS = 4  # from which it is worth the time to start the server
KILLED = 137  # exit code of a command whose supervisor was killed, as a shell reports it


class ForkServer:
    """A process that forks commands; `control` is its socket."""

    def __init__(self, control: socket.socket):
        self._control = control

    def start(
        self, command: list[str], folder: Path, environment: Mapping[str, str]
    ) -> "ForkedGroup":
        """Start a command whose first word is a Python module that the server can import.

        Raises InputError if the server has been killed.
        """
        ours, theirs = socket.socketpair()
        output, target = os.pipe()
        with theirs:
            request = {
                "command": command,
                "folder": str(folder),
                "environment": dict(environment),
            }
            try:
                socket.send_fds(self._control, [b"\0"], [theirs.fileno(), target])
            except ConnectionError:
                raise InputError(
                    "the process that starts stages was killed: if memory was short, lower "
                    "run.workers; run the command again"
                ) from None
            finally:
                os.close(target)
        ours.sendall(json.dumps(request).encode() + b"\n")
        return ForkedGroup(ours, output)


class ForkedGroup:
    """A forked command; implements process_group.ProcessGroup."""

    def __init__(self, connection: socket.socket, output: int):
        self._connection = connection
        self._answer = b""
        self.output = open(output, "rb", buffering=0)  # noqa: SIM115 (run_process closes it)

    def has_exited(self) -> bool:
        """Whether the supervisor has answered or ended."""
        with suppress(BlockingIOError):
            content = self._connection.recv(4096, socket.MSG_DONTWAIT)
            self._answer += content
            return not content or self._answer.endswith(b"\n")
        return False

    def kill(self) -> ProcessResult:
        """Let the supervisor kill the group, and wait until it has."""
        with self._connection, suppress(ConnectionError):
            self._connection.shutdown(socket.SHUT_WR)
            while content := self._connection.recv(4096):
                self._answer += content
        if not self._answer.endswith(b"\n"):
            return ProcessResult(KILLED, 0.0)
        return ProcessResult(**json.loads(self._answer))


@contextmanager
def start_server(environment: Mapping[str, str]) -> Iterator[ForkServer]:
    """A server for the commands of this block, which run in its environment or a similar one."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", SERVER, str(theirs.fileno())],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C goes to the driver only
        )
    try:
        with ours:
            yield ForkServer(ours)
    finally:
        process.wait()
