"""The files that deploy the flow are valid: Dockerfile, systemd units, prefect.yaml."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

from tests.support import tiny_dvc_project
from tests.support.meeting_commands import COMMAND_TIMEOUT_SECONDS, finish, start
from tests.support.prefect_server import serve_prefect
from tests.support.project_files import ROOT
from tests.support.tiny_dvc_project import (
    KILL_TIMEOUT_SECONDS,
    SLEEP_COMMAND,
    is_sleeping,
    list_processes,
    make_copy_stage,
    wait_until,
)

DOCKERFILE = Path("Dockerfile")
UNITS = sorted(Path("deploy").glob("*.service"))
BIN = Path(sys.executable).parent


@pytest.mark.skipif(sys.platform != "linux", reason="hadolint is installed on Linux only")
def test_the_dockerfile_has_no_known_fault():
    done = subprocess.run([BIN / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_copies_files_that_exist_and_that_are_sent_to_docker():
    text = DOCKERFILE.read_text()
    sources = [
        name for line in re.findall(r"^COPY (.*)$", text, re.M) for name in line.split()[:-1]
    ]
    assert sources and all(Path(name).exists() for name in sources)
    sent = re.findall(r"^!(.*)$", Path(".dockerignore").read_text(), re.M)
    assert sorted(sent) == sorted(sources)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_the_systemd_units_are_valid(unit, tmp_path):
    for file in UNITS:  # they name each other
        text = file.read_text()
        assert "%h/polymuse/.venv/bin/" in text
        text = text.replace("%h/polymuse/.venv/bin", str(BIN)).replace("%h/polymuse", str(ROOT))
        (tmp_path / file.name).write_text(text)
    command = ["systemd-analyze", "verify", tmp_path / unit.name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_worker_runs_the_deployed_flow_until_it_is_cancelled(tmp_path):
    stages = {"other": make_copy_stage("a"), "sleep": {"cmd": SLEEP_COMMAND, "outs": ["never"]}}
    folder = tiny_dvc_project.create_project(tmp_path / "project", **stages)
    shutil.copy(ROOT / "prefect.yaml", folder)

    def prefect(*arguments: str) -> str:
        return finish(start(["prefect", "--no-prompt", *arguments], folder))

    def read_state(name: str) -> StateType | None:
        with get_client(sync_client=True) as client:
            states = {run.name: run.state_type for run in client.read_flow_runs()}
        return states.get(name)

    def wait_for_state(name: str, state: StateType) -> None:
        wait_until(lambda: read_state(name) == state, COMMAND_TIMEOUT_SECONDS)

    with serve_prefect(tmp_path / "prefect"):
        prefect("work-pool", "create", "--type", "process", "polymuse")
        prefect("deploy", "--all")
        run = ["deployment", "run", "build/pool", "--flow-run-name"]
        worker = start(["prefect", "worker", "start", "--pool", "polymuse"], folder)
        try:
            prefect(*run, "one", "--param", 'targets=["other"]')
            wait_for_state("one", StateType.COMPLETED)
            assert (folder / "a").exists()

            prefect(*run, "two")
            wait_until(lambda: is_sleeping(folder), COMMAND_TIMEOUT_SECONDS)
            with get_client(sync_client=True) as client:
                (two,) = [run for run in client.read_flow_runs() if run.name == "two"]
            prefect("flow-run", "cancel", str(two.id))
            wait_for_state("two", StateType.CANCELLED)
            wait_until(lambda: not is_sleeping(folder), COMMAND_TIMEOUT_SECONDS)
        finally:
            worker.terminate()
            worker.communicate(timeout=COMMAND_TIMEOUT_SECONDS)
    wait_until(lambda: not list_processes(folder), KILL_TIMEOUT_SECONDS)
