"""A forked stage runs as DVC would run it, and however it or its driver ends, nothing is left."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Timer

import pytest

from pipelines.runner import fork_server, process_group
from stages.shared.runtime.errors import InputError
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import list_processes, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux only")

DRIVER = """
import os, sys
from pathlib import Path
from threading import Event
from pipelines.cli import run_in_project
from pipelines.runner import fork_server, process_group
def main():
    with fork_server.start_server(os.environ) as server:
        process_group.run_process(["dvc", "repro"], Path(sys.argv[1]), os.environ, print, 300.0,
                                  Event(), server.start)
run_in_project(main)
"""

REPORT = """
import json, multiprocessing, os, sys
def double(number):
    return 2 * number
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        doubled = pool.map(double, [21])
    facts = {
        "argv": sys.argv[1:], "name": os.path.basename(sys.argv[0]), "folder": os.getcwd(),
        "variable": os.environ.get("A_VARIABLE"), "stage": os.environ.get("DVC_STAGE"),
        "doubled": doubled, "terminal": sys.stdout.isatty(), "input": sys.stdin.read(),
        "forked": "dvc.cli.parser" in sys.modules,
    }
    open("report.json", "w").write(json.dumps(facts))
"""

SLEEP = """
import subprocess
from stages.shared.runtime.stage import stage_process
with stage_process():
    subprocess.run(["sh", "-c", "sleep 300 & sleep 300"])
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    python = str(Path(sys.executable).parent)
    return os.environ | {"PATH": f"{python}{os.pathsep}{os.environ['PATH']}", "A_VARIABLE": "set"}


@pytest.fixture(scope="module")
def server(environment) -> Iterator[fork_server.ForkServer]:
    with fork_server.start_server(environment) as server:
        yield server


@pytest.fixture
def repro(server, environment):
    """Run `dvc repro` in a folder by the server."""

    def run(folder: Path, timeout: float = 60, stop: Event | None = None):
        lines: list[str] = []
        command, stop = ["dvc", "repro"], stop or Event()
        result = process_group.run_process(
            command, folder, environment, lines.append, timeout, stop, server.start
        )
        return result, "".join(lines)

    return run


def create_project(folder: Path, source: str, arguments: str = "", **stage) -> Path:
    """A project whose stage is this Python module."""
    command = f"exec python -m work {arguments}".strip()
    project = tiny_dvc_project.create_project(folder, stage={"cmd": command, **stage})
    (project / "work.py").write_text(source)
    return project


def run_directly(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """Run `dvc repro` without the server."""
    command = [*tiny_dvc_project.DVC_COMMAND, "repro"]
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=False, **options
    )


def test_a_stage_sees_what_it_sees_under_dvc(tmp_path, repro, environment):
    facts = []
    for name in ("forked", "direct"):
        arguments = "--path 'a folder/with \"quotes\"' -x"
        folder = create_project(tmp_path / name, REPORT, arguments, outs=["report.json"])
        if name == "forked":
            result, output = repro(folder)
            assert result.code == 0, output
        else:
            assert run_directly(folder, environment).returncode == 0
        facts.append(json.loads((folder / "report.json").read_text()))
        assert facts[-1].pop("folder") == str(folder)
    assert facts[0].pop("forked")
    assert not facts[1].pop("forked")
    assert facts[0] == facts[1]
    assert facts[0]["variable"] == "set"
    assert facts[0]["doubled"] == [42]


@pytest.mark.parametrize(
    "source",
    [
        "raise SystemExit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "print('one'); import sys; print('error: wrong', file=sys.stderr); sys.exit(1)",
        "from stages.shared.runtime.stage import stage_process\nwith stage_process(): 1 / 0",
        "print('it writes nothing')",
    ],
)
def test_a_failure_looks_as_it_does_under_dvc(tmp_path, repro, environment, source):
    folder = create_project(tmp_path / "project", source, outs=["never"])
    result, output = repro(folder)
    direct = run_directly(folder, environment)
    assert result.code == direct.returncode != 0
    assert _collect_lines(output) == _collect_lines(direct.stdout)


def _collect_lines(output: str) -> list[str]:
    """The lines of an output, without the time in the name of a file."""
    return sorted(re.sub(r"\d{8}-\d{6}", "TIME", line) for line in output.splitlines())


def test_an_error_while_a_stage_is_imported_is_one_sentence(tmp_path, repro):
    _, output = repro(create_project(tmp_path / "project", "import no_such_module"))
    assert "Traceback" not in output
    assert "error: unexpected ModuleNotFoundError (No module named 'no_such_module')" in output
    assert "-work.txt" in output


def test_the_code_of_a_stage_is_read_when_it_starts(tmp_path, repro):
    folder = create_project(tmp_path / "project", "open('out', 'w').write('old')", outs=["out"])
    assert repro(folder)[0].code == 0
    (folder / "work.py").write_text("open('out', 'w').write('new')")
    (folder / "out").unlink()
    (folder / "dvc.lock").unlink()
    assert repro(folder)[0].code == 0
    assert (folder / "out").read_text() == "new"


def test_a_stage_that_is_no_python_module_runs_in_a_shell(tmp_path, repro):
    stages = {"one": {"cmd": "echo $DVC_STAGE > one", "outs": ["one"]}}
    folder = tiny_dvc_project.create_project(tmp_path / "project", **stages)
    assert repro(folder)[0].code == 0
    assert (folder / "one").read_text() == "one\n"


def test_the_cpu_time_is_that_of_the_stage_and_dvc(tmp_path, repro):
    busy = "import time\nend = time.process_time() + 2\nwhile time.process_time() < end: pass"
    result, _ = repro(create_project(tmp_path / "project", busy))
    assert 2 <= result.cpu_seconds < 10


def test_dvc_without_a_command_ends(tmp_path, repro):
    folder = create_project(tmp_path / "project", "open('out', 'w')", outs=["out"])
    assert repro(folder)[0].code == 0
    result, output = repro(folder)
    assert result.code == 0
    assert "didn't change" in output
    wait_until(lambda: not list_processes(folder))


def test_a_timeout_kills_the_whole_group(tmp_path, repro):
    folder = create_project(tmp_path / "project", SLEEP)
    with pytest.raises(TimeoutError):
        repro(folder, timeout=5)
    wait_until(lambda: not list_processes(folder), tiny_dvc_project.KILL_TIMEOUT_SECONDS)


def test_a_stop_kills_the_whole_group(tmp_path, repro):
    folder = create_project(tmp_path / "project", SLEEP)
    stop = Event()
    Timer(4, stop.set).start()
    with pytest.raises(process_group.ProcessStopped):
        repro(folder, stop=stop)
    wait_until(lambda: not list_processes(folder), tiny_dvc_project.KILL_TIMEOUT_SECONDS)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_driver_leaves_no_process(tmp_path, environment, sent):
    folder = create_project(tmp_path / "project", SLEEP)
    command = [sys.executable, "-c", DRIVER, str(folder)]
    tiny_dvc_project.check_killed_driver_leaves_nothing(command, folder, sent, environment)


def test_a_killed_supervisor_is_a_failure(tmp_path, repro):
    source = "import os, signal\nos.kill(os.getpgid(0), signal.SIGKILL)"
    result, _ = repro(create_project(tmp_path / "project", source))
    assert result.code == fork_server.KILLED


def test_a_killed_server_is_one_sentence(tmp_path, environment):
    with fork_server.start_server(environment) as server:
        source = "import os, psutil\nprint(psutil.Process(os.getpgid(0)).ppid())"
        lines: list[str] = []
        folder = create_project(tmp_path / "project", source)
        process_group.run_process(
            ["work"], folder, environment, lines.append, 60, Event(), server.start
        )
        os.kill(int(lines[0]), signal.SIGKILL)
        with pytest.raises(InputError, match="the process that starts stages was killed"):
            for _ in range(100):  # the kernel may take the first request
                server.start(["work"], folder, environment).kill()


@pytest.mark.slow
def test_the_server_can_fork_with_its_packages():
    """No second thread, no CUDA context and no module of a stage is there after the imports."""
    code = (
        "import importlib, json, sys, pipelines, psutil\n"
        "from pipelines.runner import fork_server_process as server\n"
        "for name in server.PACKAGES: importlib.import_module(name)\n"
        "import torch\n"
        "ours = [name for name in sys.modules if name.startswith('stages.')]\n"
        "print(json.dumps([torch.cuda.is_initialized(), ours]))\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    initialized, ours = json.loads(output)
    assert not initialized
    assert set(ours) == {
        "stages.shared",
        "stages.shared.runtime",
        "stages.shared.runtime.errors",
        "stages.shared.torch_setup",
        "stages.shared.torch_setup.torchvision_ops",
    }
