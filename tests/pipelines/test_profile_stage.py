"""A profile names the functions in which a stage spends its time."""

import os
import pstats
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_dvc_project
from tests.support.project_files import ROOT

CODE = (
    "def spend_time():\n    return sum(range(10**6))\n\nspend_time()\nopen('a', 'w').write('1')\n"
)


def profile(folder: Path, stage: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.profile_stage", stage]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "POLYMUSE_HOME": str(folder / "home")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    stages = {
        "work": {"cmd": "exec python -m work", "outs": ["a"]},
        "copy": tiny_dvc_project.make_copy_stage("b", "a"),
    }
    folder = tiny_dvc_project.create_project(tmp_path / "project", **stages)
    (folder / "work.py").write_text(CODE)
    return folder


def test_the_profile_has_the_functions_of_the_stage(folder):
    done = profile(folder, "work")
    assert done.returncode == 0, done.stderr
    assert "spend_time" in done.stdout and "CPU time" in done.stdout
    functions = {name for _, _, name in pstats.Stats(str(folder / "home/profiles/work.prof")).stats}
    assert "spend_time" in functions
    assert (folder / "a").read_text() == "1"


def test_a_stage_that_cannot_be_profiled_is_one_sentence(folder):
    (folder / "work.py").write_text("raise SystemExit(3)")
    for stage, message in {
        "copy": "copy is not a Python module: ",
        "work": "work ended with exit code 3",
        "no": "DVC cannot read the project: ",
    }.items():
        done = profile(folder, stage)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"error: {message}"), done.stderr
