"""Import once what all stages need, and fork the process of each stage from this one.

python -m pipelines.runner.fork_server_process CONTROL_FD

pipelines/runner/fork_server.py starts it. Over the socket CONTROL_FD it receives two file
descriptors for each command: a socket with one line of JSON (`command`, `folder`, `environment`)
and the command's output. This process forks

    a supervisor, the leader of a process group: answers with one line of JSON (`code`,
    `cpu_seconds`) when the command ends, and kills the group then or when the driver has closed the
    socket, as it does when it dies
        a process that runs the command, a Python module such as `dvc repro ...`, which writes
        dvc.lock faster than DVC (lock_file.py)
            a process that runs the command of DVC's stage, if that is a Python module

The code of stages is not imported here but when a stage starts, so that it is the code whose
checksum DVC records.
"""

import atexit
import gc
import importlib.util
import io
import json
import logging
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pipelines.runner import lock_file

PACKAGES = (  # what takes longest to import, in the order in which stages of a run need it
    "dvc.cli.parser",
    "dvc.repo.reproduce",
    "dvc.cachemgr",
    "dvc.repo.open_repo",
    "dvc.repo.plots",
    "dvc.repo.stage",
    "dvc.rwlock",
    "dvc_data.hashfile.db.local",
    "dvc_data.hashfile.status",
    "pyparsing",
    "scmrepo.git",
    "pydantic.dataclasses",
    "ruamel.yaml",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "PIL.Image",
    "stages.shared.torch_setup.torchvision_ops",  # imports torch; before transformers
    "accelerate",
    "transformers.models.t5.modeling_t5",
    "scipy.optimize",
    "sklearn.linear_model",
)
STAGE_COMMAND = ["exec", "python", "-m"]  # the first words of a stage's command in dvc.yaml
POLL_SECONDS = 0.05  # between two looks whether a command has ended


def main(control: socket.socket) -> Any:
    """Serve until the driver closes `control`; in a child, what its command returns."""
    # Else a package that asks for GPUs initializes CUDA, which does not survive a fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    signal.signal(signal.SIGCHLD, _reap_children)
    waiting = list(PACKAGES)
    while True:
        # Requests come first: the first stages of a run do not need the later packages.
        if waiting and not _can_read(control, 0):
            with suppress(Exception):  # the stage that needs the package reports what is wrong
                importlib.import_module(waiting.pop(0))
            if not waiting:
                gc.freeze()
            continue
        message, descriptors, *_ = socket.recv_fds(control, 1, 2)
        if not message:
            return 0
        if os.fork() == 0:
            control.close()
            return _supervise(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _can_read(connection: socket.socket, timeout: float) -> bool:
    return bool(select.select([connection], [], [], timeout)[0])


def _reap_children(*_: object) -> None:
    """Reap supervisors that ended, so that their CPU time counts as that of this process."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _supervise(connection_fd: int, output_fd: int) -> Any:
    """Run the command in a child and report its end, then kill the group, this process included."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(output_fd, descriptor)
    os.close(output_fd)
    # The streams of this process remember what kind of file they wrote to.
    sys.stdout = _open_unbuffered(sys.stdout)
    sys.stderr = _open_unbuffered(sys.stderr)
    connection = socket.socket(fileno=connection_fd)
    with connection.makefile("rb") as lines:
        request = json.loads(lines.readline())
    os.chdir(request["folder"])
    child = os.fork()
    if child == 0:
        connection.close()
        return _run_command(request["command"], request["environment"])
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if _can_read(connection, POLL_SECONDS):  # the driver closed it
            os.killpg(0, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    result = {
        "code": code if code >= 0 else 128 - code,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    with suppress(OSError):  # the driver has died
        connection.sendall(json.dumps(result).encode() + b"\n")
    os.killpg(0, signal.SIGKILL)


def _open_unbuffered(stream: TextIO) -> TextIO:
    """A new stream like this one, as Python opens it if PYTHONUNBUFFERED is set."""
    file = io.FileIO(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(file, stream.encoding, stream.errors, write_through=True)  # pyright: ignore


def _run_command(command: list[str], environment: dict[str, str]) -> Any:
    """Run a command whose first word is a Python module; a stage of DVC gets a child of ours."""
    receiver, sender = os.pipe()
    child = os.fork()  # before DVC runs: it would pass on its locks, connections and threads
    if child == 0:
        os.close(sender)
        with open(receiver, "rb") as pipe:
            content = pipe.read()
        if not content:  # DVC ended without a command
            os._exit(0)
        request = json.loads(content)
        # Errors name the module that they are of.
        sys.modules["__main__"].__spec__ = importlib.util.find_spec(request["command"][0])
        return _run_module(**request)
    os.close(receiver)
    _remove_error_hooks()
    _run_stages_in(child, sender)
    lock_file.install_writer()
    return _run_module(command, str(Path.cwd()), environment)


def _remove_error_hooks() -> None:
    """Undo stages.shared.runtime.errors.install_hooks, which `import pipelines` calls."""
    logging.raiseExceptions = True
    logging.setLogRecordFactory(logging.LogRecord)
    sys.excepthook = sys.__excepthook__
    threading.excepthook = threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__


def _run_stages_in(child: int, sender: int) -> None:
    """Make DVC run a stage in the process `child`, which reads its command from a pipe."""
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    run_in_shell = run._run

    def run_command(executable: str | None, command: str, **options: Any) -> None:
        words = shlex.split(command)
        environment = dict(options["env"])
        python = shutil.which("python", path=environment.get("PATH"))
        ours = python and Path(python).parent == Path(sys.executable).parent
        if not ours or words[: len(STAGE_COMMAND)] != STAGE_COMMAND:
            run_in_shell(executable, command, **options)
            return
        request = {
            "command": words[len(STAGE_COMMAND) :],
            "folder": str(options["cwd"]),
            "environment": environment,
        }
        with open(sender, "wb") as pipe:
            pipe.write(json.dumps(request).encode())
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise StageCmdFailedError(command, code)

    run._run = run_command


def _run_module(command: list[str], folder: str, environment: dict[str, str]) -> Any:
    """Run a module as `python -m` does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise  # Python prints the message
        _exit(end.code or 0)
    _exit(0)


def _exit(code: int) -> NoReturn:
    """End as Python does, but do not destroy all modules: that would copy the memory they share."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]  (joins threads)
    atexit._run_exitfuncs()
    with suppress(OSError):  # nobody reads them any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
