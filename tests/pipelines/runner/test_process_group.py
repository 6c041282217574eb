"""However a command or its driver ends, no process is left."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event, Timer

import pytest

from pipelines.runner import process_group
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import SLEEP_COMMAND, list_processes, wait_until

DRIVER = """
import os, sys
from pathlib import Path
from threading import Event
from pipelines.cli import run_in_project
from pipelines.runner import process_group
command = ["sh", "-c", sys.argv[1]]
run_in_project(lambda: process_group.run_process(command, Path(sys.argv[2]), os.environ,
                                                 print, 300.0, Event()))
"""

SLEEPING_STAGE = """
import time
from pathlib import Path
from stages.shared.runtime.stage import stage_process
with stage_process():
    Path("ready").touch()
    time.sleep(300)
"""


def run(command: str, folder: Path, timeout: float = 60, stop: Event | None = None):
    """Exit code and lines of a shell command."""
    lines: list[str] = []
    stop = stop or Event()
    result = process_group.run_process(
        ["sh", "-c", command], folder, os.environ, lines.append, timeout, stop
    )
    return result.code, lines


def test_each_line_arrives_with_its_ending(tmp_path):
    code, lines = run(r"printf 'one\ntwo 50%%\rtwo 100%%\n'; echo error >&2; printf end", tmp_path)
    assert code == 0
    assert lines == ["one\n", "two 50%\r", "two 100%\n", "error\n", "end\n"]


def test_a_line_arrives_while_the_command_runs(tmp_path):
    arrived, stop = [], Event()

    def on_line(line: str) -> None:
        arrived.append(line)
        stop.set()

    command = ["sh", "-c", "echo first; sleep 300"]
    with pytest.raises(process_group.ProcessStopped):
        process_group.run_process(command, tmp_path, os.environ, on_line, 60, stop)
    assert arrived == ["first\n"]


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_that_of_the_command(tmp_path, code):
    assert run(f"exit {code}", tmp_path)[0] == code


def test_a_command_that_does_not_exist_is_one_sentence(tmp_path):
    lines: list[str] = []
    result = process_group.run_process(["no-such"], tmp_path, os.environ, lines.append, 60, Event())
    assert result.code == 127
    assert lines == ["error: no-such cannot be started: No such file or directory\n"]


def test_the_cpu_time_includes_that_of_children(tmp_path):
    busy = "import time; end = time.process_time() + 1\nwhile time.process_time() < end: pass"
    command = ["sh", "-c", f'{sys.executable} -c "{busy}"; exit 0']
    result = process_group.run_process(command, tmp_path, os.environ, print, 60, Event())
    assert result.code == 0
    assert 1 <= result.cpu_seconds < 5


def test_children_that_outlive_their_command_are_killed(tmp_path):
    code, _ = run("sleep 300 & exit 3", tmp_path)
    assert code == 3
    wait_until(lambda: not list_processes(tmp_path))


def test_a_timeout_kills_the_whole_group(tmp_path):
    with pytest.raises(TimeoutError):
        run(SLEEP_COMMAND, tmp_path, timeout=1)
    wait_until(lambda: not list_processes(tmp_path))


def test_a_silent_command_that_closed_its_output_still_times_out(tmp_path):
    with pytest.raises(TimeoutError):
        run("exec >&- 2>&-; sleep 300", tmp_path, timeout=1)
    wait_until(lambda: not list_processes(tmp_path))


def test_a_stop_from_another_thread_kills_the_whole_group(tmp_path):
    stop = Event()
    Timer(1, stop.set).start()
    with pytest.raises(process_group.ProcessStopped):
        run(SLEEP_COMMAND, tmp_path, stop=stop)
    wait_until(lambda: not list_processes(tmp_path))


def test_after_a_stop_nothing_new_starts(tmp_path):
    stop = Event()
    stop.set()
    with pytest.raises(process_group.ProcessStopped):
        run("touch started", tmp_path, stop=stop)
    assert not list(tmp_path.iterdir())


def test_an_exception_of_the_callback_kills_the_whole_group(tmp_path):
    def on_line(line: str) -> None:
        raise ValueError(line)

    command = ["sh", "-c", f"echo now; {SLEEP_COMMAND}"]
    with pytest.raises(ValueError, match="now"):
        process_group.run_process(command, tmp_path, os.environ, on_line, 60, Event())
    wait_until(lambda: not list_processes(tmp_path))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_driver_leaves_no_process(tmp_path, sent):
    command = [sys.executable, "-c", DRIVER, SLEEP_COMMAND, str(tmp_path)]
    tiny_dvc_project.check_killed_driver_leaves_nothing(command, tmp_path, sent)


def test_a_stage_dies_with_dvc_even_without_our_driver(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPING_STAGE)
    command = {"cmd": f"exec {sys.executable} ../sleeper.py", "outs": ["never"]}
    folder = tiny_dvc_project.create_project(tmp_path / "project", stage=command)
    repro = subprocess.Popen(
        [*tiny_dvc_project.DVC_COMMAND, "repro"], cwd=folder, stdout=subprocess.DEVNULL
    )
    wait_until((folder / "ready").exists)
    assert len(list_processes(folder)) == 2
    repro.kill()
    repro.wait()
    wait_until(lambda: not list_processes(folder), tiny_dvc_project.KILL_TIMEOUT_SECONDS)
