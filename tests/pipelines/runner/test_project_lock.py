"""Commands that meet in one project wait for each other; a killed one leaves no lock."""

import signal
from pathlib import Path

import pytest

from tests.support.meeting_commands import (
    RUN,
    check_outcome,
    create_project,
    finish,
    list_mlflow_statuses,
    start,
    wait_for_start,
)
from tests.support.tiny_dvc_project import DVC_COMMAND, read_log

pytestmark = pytest.mark.slow


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
    assert list_mlflow_statuses()[-2:] == ["KILLED", "FINISHED"]
