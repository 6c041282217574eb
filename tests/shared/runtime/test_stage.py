import signal
import subprocess
import sys

import psutil
import pytest

from stages.shared.runtime.stage import atomic_output_dir, work_dir
from tests.support.project_files import ROOT


def python(code, **how):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def test_an_output_appears_whole_and_only_at_the_end(tmp_path):
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


def test_a_failure_leaves_the_earlier_output_and_nothing_half_written(tmp_path):
    with atomic_output_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("whole")
    with pytest.raises(ZeroDivisionError), atomic_output_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        _ = 1 / 0
    assert (tmp_path / "out" / "a").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_is_not_mixed_into_the_next(tmp_path):
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "half").touch()
    with atomic_output_dir(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []


def test_a_second_writer_of_the_same_output_is_told_so(tmp_path):
    with atomic_output_dir(tmp_path / "out") as folder:
        (folder / "a").write_text("first")
        second = python(
            f"""
from pathlib import Path
from stages.shared.runtime.stage import atomic_output_dir, stage_process
with stage_process(), atomic_output_dir(Path({str(tmp_path / "out")!r})): pass
"""
        )
        said = second.communicate()[1]
    assert second.returncode == 1
    assert said.startswith("error: ") and "another process" in said and "Traceback" not in said
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_two_outputs_are_written_side_by_side(tmp_path):
    with atomic_output_dir(tmp_path / "a") as first, atomic_output_dir(tmp_path / "b") as second:
        assert first != second


def test_a_killed_writer_frees_its_output(tmp_path):
    writer = python(
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


def test_wrong_input_is_one_sentence_without_a_traceback():
    process = python(
        "from stages.shared.runtime.stage import InputError, stage_process\n"
        "with stage_process(): raise InputError('params.yaml: a is 1: give 2')"
    )
    said = process.communicate()[1]
    assert (process.returncode, said) == (1, "error: params.yaml: a is 1: give 2\n")


def test_a_mistake_of_ours_keeps_its_traceback():
    process = python(
        "from stages.shared.runtime.stage import stage_process\nwith stage_process(): assert False"
    )
    assert "Traceback" in process.communicate()[1]
    assert process.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_stage_dies_with_the_process_that_started_it():
    stage = """
import time
from stages.shared.runtime.stage import stage_process
with stage_process():
    print("in", flush=True)
    time.sleep(60)
"""
    driver = python(
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


def test_home_is_the_variable_or_a_folder_of_the_project_and_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    assert work_dir() == tmp_path
    monkeypatch.delenv("POLYMUSE_HOME")
    assert work_dir() == ROOT / ".polymuse"
