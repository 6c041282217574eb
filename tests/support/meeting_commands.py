"""Commands of users that meet in one tiny project: `polymuse run`, the flow, `dvc repro`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from mlflow.tracking import MlflowClient

from stages.shared.runtime import tracking
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import (
    KILL_TIMEOUT_SECONDS,
    list_processes,
    make_logged_stage,
    read_log,
    wait_until,
)

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
COMMAND_TIMEOUT_SECONDS = 300  # of what takes seconds on a machine that is not busy
RUN = [sys.executable, "-m", "pipelines.cli", "run"]
FLOW = [sys.executable, "-m", "pipelines.flow"]
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
    environment |= {"PYTHONPATH": str(Path.cwd()), "PATH": PATH}
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
    wait_until(lambda: f"begin {target}" in read_log(folder), COMMAND_TIMEOUT_SECONDS)


def finish(process: subprocess.Popen[str]) -> str:
    """The output of a command, which must succeed."""
    output, _ = process.communicate(timeout=COMMAND_TIMEOUT_SECONDS)
    assert process.returncode == 0, output
    return output


def check_outcome(folder: Path, alone: Path) -> None:
    """Each stage ran once, the outcome is that of one run alone, and nothing is left."""
    assert sorted(read_log(folder)) == sorted(read_log(alone))
    for name in ("a", "b", "c"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes()
    locks = [yaml.safe_load((project / "dvc.lock").read_text()) for project in (folder, alone)]
    assert locks[0] == locks[1]
    wait_until(lambda: not list_processes(folder), KILL_TIMEOUT_SECONDS)
    rwlock = json.loads((folder / ".dvc" / "tmp" / "rwlock").read_text())
    assert not any(rwlock.values())
    assert not (folder / ".dvc" / "tmp" / "polymuse.json").exists()


def list_mlflow_statuses() -> list[str]:
    """The statuses of the runs in the store of these tests, in the order of their start."""
    client = MlflowClient(tracking.get_tracking_uri())
    (experiment,) = client.search_experiments(filter_string="name = 'polymuse'")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [run.info.status for run in runs]
