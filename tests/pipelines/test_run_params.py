"""The parameter files have other values during a run, and are restored however it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import run_params
from stages.shared.runtime.stage import InputError
from tests.support.tiny_dvc_project import wait_until

BEFORE, DURING = "lr: 1  # rate\n", "lr: 2  # rate\n"
HOLD = f"""
import time
from pipelines import run_params
with run_params.use_params({{"params.yaml": {DURING!r}}}, print):
    time.sleep(300)
"""


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """The parameter file of a project in the current folder."""
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(BEFORE)
    return Path("params.yaml")


def test_the_values_hold_until_the_run_fails(file):
    with (
        pytest.raises(ZeroDivisionError),
        run_params.use_params({"params.yaml": DURING}, print),
    ):
        assert file.read_text() == DURING
        raise ZeroDivisionError
    assert file.read_text() == BEFORE
    assert not list(Path("home").glob("*.json"))


def test_a_run_with_the_same_values_writes_nothing(file):
    status = file.stat()
    with run_params.use_params({"params.yaml": BEFORE}, print):
        assert file.stat() == status
    assert file.stat() == status


def test_a_file_that_was_edited_meanwhile_stays(file, capsys):
    with run_params.use_params({"params.yaml": DURING}, print):
        file.write_text("lr: 5\n")
    assert file.read_text() == "lr: 5\n"
    assert Path("home/params_before_run/params.yaml").read_text() == BEFORE
    assert "params.yaml was edited during the run and stays" in capsys.readouterr().out


def test_only_a_killed_run_is_cleaned_up(file, capsys):
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.DEVNULL) as run:
        wait_until(lambda: file.read_text() == DURING)
        run_params.restore_params(print)
        assert file.read_text() == DURING
        run.send_signal(signal.SIGKILL)
    run_params.restore_params(print)
    assert file.read_text() == BEFORE
    assert "was killed" in capsys.readouterr().out
    run_params.restore_params(print)
    assert capsys.readouterr().out == ""


def test_a_damaged_record_is_one_sentence(file):
    Path("home").mkdir()
    Path("home/run_params.json").write_text("[1")
    with pytest.raises(InputError, match=r"run_params.json is damaged .*: restore params.yaml"):
        run_params.restore_params(print)
