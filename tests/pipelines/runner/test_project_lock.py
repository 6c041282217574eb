"""Commands that meet in one project wait for each other; a killed one leaves no lock."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import (
    DVC_COMMAND,
    KILL_TIMEOUT_SECONDS,
    list_processes,
    make_logged_stage,
    read_log,
    wait_until,
)

RUN = [sys.executable, "-m", "pipelines.cli", "run"]
STAGES = {
    "first": make_logged_stage("a", 3),
    "second": make_logged_stage("b", 1, "a"),
    "other": make_logged_stage("c", 1),
}


def create_project(folder: Path, **run) -> Path:
    return tiny_dvc_project.create_project(folder, {"workers": 1} | run, **STAGES)


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start a command in a project, as a user does."""
    environment = {name: value for name, value in os.environ.items() if name != "POLYMUSE_HOME"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment |= {"PYTHONPATH": str(Path.cwd()), "PATH": path}
    environment |= {"DVC_NO_ANALYTICS": "1", "CI": "1"}  # DVC starts no process that outlives it
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_start(target: str, folder: Path) -> None:
    """Wait until the stage that writes `target` runs."""
    wait_until(lambda: f"begin {target}" in read_log(folder))


def finish(process: subprocess.Popen[str]) -> str:
    """The output of a command, which must succeed."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def check_outcome(folder: Path, alone: Path) -> None:
    """Each stage ran once, the outcome is that of one run alone, and nothing is left."""
    assert sorted(read_log(folder)) == sorted(read_log(alone))
    for name in ("a", "b", "c", "dvc.lock"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes()
    wait_until(lambda: not list_processes(folder), KILL_TIMEOUT_SECONDS)
    rwlock = json.loads((folder / ".dvc" / "tmp" / "rwlock").read_text())
    assert not any(rwlock.values())
    assert not (folder / ".dvc" / "tmp" / "polymuse.json").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A project that one command has brought up to date."""
    folder = create_project(tmp_path_factory.mktemp("alone") / "project")
    finish(start([*DVC_COMMAND, "repro"], folder))
    return folder


def test_a_second_run_waits_for_the_first(tmp_path, alone):
    folder = create_project(tmp_path / "project")
    first = start(RUN, folder)
    wait_for_start("a", folder)
    second = start([*RUN, "second"], folder)
    assert "Waiting for" not in finish(first)
    output = finish(second)
    assert f"Waiting for `polymuse run` (PID {first.pid}), which runs since 20" in output
    assert "Everything is up to date." in output
    check_outcome(folder, alone)


def test_a_run_waits_for_a_dvc_repro(tmp_path, alone):
    folder = create_project(tmp_path / "project")
    repro = start([*DVC_COMMAND, "repro"], folder)
    wait_for_start("a", folder)
    output = finish(start(RUN, folder))
    finish(repro)
    assert f"repro` (PID {repro.pid}), which runs since 20" in output
    check_outcome(folder, alone)


def test_stages_of_a_dvc_repro_wait_for_a_run(tmp_path, alone):
    folder = create_project(tmp_path / "project")
    run = start([*RUN, "second"], folder)
    wait_for_start("a", folder)
    output = finish(start([*DVC_COMMAND, "repro", "--single-item", "other"], folder))
    finish(run)
    assert f"Waiting for `polymuse run second` (PID {run.pid})" in output
    assert read_log(folder)[-3:] == ["end b", "begin c", "end c"]
    check_outcome(folder, alone)


def test_a_run_that_needs_the_stage_of_a_waiting_dvc_repro_lets_it_run(tmp_path, alone):
    folder = create_project(tmp_path / "project")
    run = start(RUN, folder)
    wait_for_start("a", folder)
    repro = start([*DVC_COMMAND, "repro", "--single-item", "other"], folder)
    output = finish(run)
    assert f"repro --single-item other` (PID {repro.pid})" in output
    assert f"(PID {run.pid})" in finish(repro)
    check_outcome(folder, alone)


def test_a_run_gives_up_after_the_limit(tmp_path):
    folder = create_project(tmp_path / "project", lock_timeout=1)
    first = start(RUN, folder)
    wait_for_start("a", folder)
    second = start([*RUN, "other"], folder)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert output.splitlines()[-1].startswith(
        "error: gave up after 1 seconds (run.lock_timeout), since the project is in use by "
        f"`polymuse run` (PID {first.pid})"
    )
    finish(first)


def test_a_run_continues_after_a_killed_one_and_ends_its_mlflow_runs(tmp_path, alone):
    folder = create_project(tmp_path / "project")
    killed = start(RUN, folder)
    wait_for_start("a", folder)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (folder / "log").unlink()
    finish(start(RUN, folder))
    check_outcome(folder, alone)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'polymuse'")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
