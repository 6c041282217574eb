"""The lock of a project names its holder, ends with it, and its stages do not wait."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.shared.runtime import project_lock
from stages.shared.runtime.errors import InputError

HOLD = """
import sys, time
from stages.shared.runtime.project_lock import hold_project, let_other_stages_run
with hold_project("polymuse run", 1, print):
    {block}
    print(flush=True)
    time.sleep(300)
"""
LET_RUN = HOLD.format(block="passing = let_other_stages_run(); passing.__enter__()")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / ".dvc").mkdir()
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def holder(code: str = HOLD.format(block="")) -> Iterator[int]:
    """The process of a holder of the lock, which is killed at the end."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def enter_stage(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    """Make this process a stage of DVC."""
    monkeypatch.setenv("DVC_STAGE", "ingest@memes")
    monkeypatch.setenv("DVC_ROOT", str(project))


def test_a_command_gives_up_and_names_the_holder():
    lines: list[str] = []
    with (
        holder() as pid,
        pytest.raises(InputError, match=rf"gave up .*lock_timeout.*`polymuse run` \(PID {pid}\)"),
        project_lock.hold_project("flow run x", 0.5, lines.append),
    ):
        pass
    assert [line.startswith("Waiting for `polymuse run`") for line in lines] == [True]


def test_a_killed_holder_leaves_the_lock_free(project):
    with holder():
        pass
    lines: list[str] = []
    with project_lock.hold_project("polymuse run", 5, lines.append):
        assert os.environ[project_lock.HOLDER_ENV]
    assert lines == []
    assert project_lock.HOLDER_ENV not in os.environ
    assert not (project / ".dvc" / "tmp" / "polymuse.json").exists()


def test_a_stage_waits_for_the_limit_of_the_holder(monkeypatch, project):
    enter_stage(monkeypatch, project)
    start = time.monotonic()
    with holder() as pid, pytest.raises(InputError, match=rf"gave up after 1 .*\(PID {pid}\)"):
        project_lock.wait_for_holder(print)
    assert time.monotonic() - start > 1


@pytest.mark.parametrize(
    ("variable", "value"), [("DVC_STAGE", ""), (project_lock.HOLDER_ENV, ".dvc/tmp/polymuse.lock")]
)
def test_a_stage_of_the_holder_and_one_without_dvc_do_not_wait(
    monkeypatch, project, variable, value
):
    enter_stage(monkeypatch, project)
    monkeypatch.setenv(variable, value and str(project / value))
    lines: list[str] = []
    with holder():
        project_lock.wait_for_holder(lines.append)
    assert lines == []


def test_a_stage_runs_when_the_holder_lets_it(monkeypatch, project):
    enter_stage(monkeypatch, project)
    lines: list[str] = []
    with holder(LET_RUN):
        project_lock.wait_for_holder(lines.append)
    assert [line.startswith("Waiting for `polymuse run`") for line in lines] == [True]


def test_a_folder_without_dvc_is_one_sentence(monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    with (
        pytest.raises(InputError, match="in no DVC project: run `dvc init`"),
        project_lock.hold_project("polymuse run", 5, print),
    ):
        pass
