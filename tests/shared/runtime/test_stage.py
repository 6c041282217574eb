"""Stages write complete outputs, stop with one sentence and die with their parent."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stages.shared.runtime.stage import atomic_output_dir, run_stage, work_dir
from tests.support.project_files import ROOT


def start_python(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_an_output_appears_complete_and_only_at_the_end(tmp_path):
    target = tmp_path / "data" / "out"
    with atomic_output_dir(target) as folder:
        (folder / "a.txt").write_text("new")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_output_replaces_what_an_earlier_run_wrote(tmp_path):
    for name in ["old", "new"]:
        with atomic_output_dir(tmp_path / "out") as folder:
            (folder / name).touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_a_failure_keeps_the_earlier_output_and_leaves_nothing_partial(tmp_path):
    with atomic_output_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("whole")
    with pytest.raises(ZeroDivisionError), atomic_output_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        _ = 1 / 0
    assert (tmp_path / "out" / "a").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    leftover = tmp_path / ".out.partial"
    leftover.mkdir()
    (leftover / "half").touch()
    with atomic_output_dir(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []


def test_a_second_process_cannot_write_to_the_same_output(tmp_path):
    with atomic_output_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("first")
        second = start_python(
            f"""
from pathlib import Path
from stages.shared.runtime.stage import atomic_output_dir, stage_process
with stage_process(), atomic_output_dir(Path({str(tmp_path / "out")!r})): pass
"""
        )
        errors = second.communicate()[1]
    assert second.returncode == 1
    assert errors.startswith("error: ") and "another process" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_two_outputs_can_be_written_at_the_same_time(tmp_path):
    with atomic_output_dir(tmp_path / "a") as first, atomic_output_dir(tmp_path / "b") as second:
        assert first != second


def test_a_killed_process_releases_its_output(tmp_path):
    writer = start_python(
        f"""
import time
from pathlib import Path
from stages.shared.runtime.stage import atomic_output_dir
with atomic_output_dir(Path({str(tmp_path / "out")!r})):
    print("open", flush=True)
    time.sleep(60)
"""
    )
    writer.stdout.readline()
    writer.kill()
    writer.wait()
    with atomic_output_dir(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert (tmp_path / "out" / "a").exists()


def test_an_input_error_is_one_sentence_without_a_traceback():
    process = start_python(
        "from stages.shared.runtime.stage import InputError, stage_process\n"
        "with stage_process(): raise InputError('params.yaml: a is 1: give 2')"
    )
    errors = process.communicate()[1]
    assert (process.returncode, errors) == (1, "error: params.yaml: a is 1: give 2\n")


@pytest.mark.skipif(sys.platform != "linux", reason="uses PR_SET_PDEATHSIG")
def test_a_stage_dies_with_the_process_that_started_it():
    stage = """
import time
from stages.shared.runtime.stage import stage_process
with stage_process():
    print("in", flush=True)
    time.sleep(60)
"""
    driver = start_python(
        f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {stage!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
    )
    child = psutil.Process(int(driver.stdout.readline()))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert psutil.wait_procs([child], timeout=10)[1] == []


def test_the_work_folder_is_polymuse_home_or_in_the_project(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    assert work_dir() == tmp_path
    monkeypatch.delenv("POLYMUSE_HOME")
    assert work_dir() == ROOT / ".polymuse"


def test_the_parameters_of_main_are_the_options_of_the_command(tmp_path, monkeypatch, capsys):
    calls = []

    def main(records: Path, batch_size: int) -> None:
        calls.append((records, batch_size))

    monkeypatch.setattr(sys, "argv", ["main.py", "--records", "in", "--batch-size", "3"])
    run_stage(main)
    assert calls == [(Path("in"), 3)]
    monkeypatch.setattr(sys, "argv", ["main.py", "--records", "in"])
    with pytest.raises(SystemExit):
        run_stage(main)
    assert "--batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["clean", "ingest"])  # a module, a package
def test_the_usage_line_names_the_command_of_the_stage(stage):
    command = [sys.executable, "-m", f"stages.{stage}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"usage: python -m stages.{stage} [-h] --"), done.stderr
