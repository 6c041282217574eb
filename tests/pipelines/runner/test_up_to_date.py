"""`polymuse run` skips DVC only if every file is as it was when DVC found nothing stale."""

import os
import shutil
import subprocess

import pytest

from pipelines.runner import dag, up_to_date
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import make_copy_stage


@pytest.fixture(scope="module")
def built_project(tmp_path_factory):
    """A project whose stage reads the folder `in` and the file `a`, up to date in DVC."""
    folder = tmp_path_factory.mktemp("built") / "project"
    tiny_dvc_project.create_project(folder, first=make_copy_stage("a") | {"deps": ["in"]})
    (folder / "in").mkdir()
    (folder / "in" / "page.txt").write_text("page")
    subprocess.run([*tiny_dvc_project.DVC_COMMAND, "repro", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(built_project, tmp_path, monkeypatch):
    """A copy of it as the current folder, recorded as up to date."""
    folder = tmp_path / "project"
    shutil.copytree(built_project, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    assert not up_to_date.is_up_to_date()
    assert dag.load_dag([]).stale == []
    assert up_to_date.is_up_to_date()
    return folder


def edit_same_size(folder):
    file = folder / "in" / "page.txt"
    file.write_text("PAGE")
    os.utime(file, ns=(1, 1))


CHANGES = {
    "an edit of the same size": edit_same_size,
    "a new file": lambda folder: (folder / "in" / "new.txt").write_text("new"),
    "a deleted file": lambda folder: (folder / "in" / "page.txt").unlink(),
    "a renamed file": lambda folder: (folder / "in" / "page.txt").rename(folder / "in" / "q.txt"),
    "a deleted output": lambda folder: (folder / "a").unlink(),
    "a parameter": lambda folder: (folder / "params.yaml").write_text("x: 2\n"),
    "a new parameter file": lambda folder: (folder / "config" / "new.yaml").write_text("y: 1\n"),
    "dvc.lock": lambda folder: (folder / "dvc.lock").unlink(),
    "dvc.yaml": lambda folder: (folder / "dvc.yaml").write_text("stages: {}\n"),
    "a damaged record": lambda folder: (up_to_date._record_file()).write_text("[1"),
    "an empty record": lambda folder: (up_to_date._record_file()).write_text(""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_dvc_is_asked(project, change):
    (project / "config").mkdir(exist_ok=True)
    dag.load_dag([])
    CHANGES[change](project)
    assert not up_to_date.is_up_to_date()


def test_a_file_that_changes_while_dvc_compares_is_noticed(project, monkeypatch):
    status = dag.Repo.status

    def edit_after_status(repo):
        result = status(repo)
        edit_same_size(project)
        return result

    monkeypatch.setattr(dag.Repo, "status", edit_after_status)
    dag.load_dag([])
    assert not up_to_date.is_up_to_date()


def test_stale_stages_are_not_recorded(project):
    edit_same_size(project)
    assert dag.load_dag([]).stale
    assert not up_to_date.is_up_to_date()


def test_the_record_of_another_project_does_not_count(project, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(project, other, symlinks=True)
    monkeypatch.chdir(other)
    assert not up_to_date.is_up_to_date()


def test_compiled_python_does_not_count(project):
    (project / "in" / "__pycache__").mkdir()
    (project / "in" / "__pycache__" / "page.pyc").write_text("compiled")
    os.utime(project / "in", ns=(1, 1))
    assert up_to_date.is_up_to_date()
