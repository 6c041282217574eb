"""`polymuse verify` names each difference between a run and dvc.lock, and fails if there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main, verify
from pipelines.verification import flatten
from stages.shared.runtime.stage import InputError
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import DVC_COMMAND, make_copy_stage

RUN = {"model": "muse", "corpus": "posts", "training": {"max_steps": 30, "seed": 0}}
LINES = {
    "code     stages/clean.py was modified (clean)",
    "params   params.yaml: classifiers.tiny.training.max_steps was 30, is 31 "
    "(train_classifier@tiny and 1 more)",
    "input    raw_posts.txt was modified (ingest@posts)",
    "output   metrics.json is missing (evaluate_classifier@tiny)",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    train = make_copy_stage("model", "clean.txt") | {"params": ["classifiers.${item}"]}
    evaluate = make_copy_stage("metrics.json", "model") | {"params": ["classifiers.${item}"]}
    folder = tiny_dvc_project.create_project(
        tmp_path_factory.mktemp("verify") / "project",
        None,
        ingest={
            "foreach": ["posts", "others"],
            "do": make_copy_stage("${item}.txt", "raw_${item}.txt"),
        },
        clean=make_copy_stage("clean.txt", "posts.txt", "stages/clean.py"),
        train_classifier={"foreach": ["tiny"], "do": train},
        evaluate_classifier={"foreach": ["tiny"], "do": evaluate},
    )
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params |= {"classifiers": {"tiny": RUN, "new": RUN}, "generators": {}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "stages").mkdir()
    for file in ("raw_posts.txt", "raw_others.txt", "stages/clean.py"):
        (folder / file).write_text("first\n")
    subprocess.run([*DVC_COMMAND, "repro", "-q"], cwd=folder, check=True)
    return folder


@pytest.fixture
def place(original, tmp_path, monkeypatch) -> Path:
    shutil.copytree(original, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return tmp_path / "project"


def test_a_run_as_dvc_left_it_matches(place, capsys):
    verify.main("tiny")
    assert capsys.readouterr().out == (
        "tiny matches dvc.lock: inputs, code, parameters and outputs of its evaluation and the 3 "
        "stages before it\n"
    )


def test_every_kind_of_change_is_a_line(place, capsys):
    (place / "stages/clean.py").write_text("edited\n")
    (place / "raw_posts.txt").write_text("more\n")
    (place / "metrics.json").unlink()
    params = yaml.safe_load((place / "params.yaml").read_text())
    params["classifiers"]["tiny"]["training"]["max_steps"] = 31
    (place / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(
        InputError, match=r"^tiny does not match dvc.lock in 4 places: run"
    ) as error:
        verify.main("tiny")
    assert str(error.value).endswith("`polymuse run evaluate_classifier@tiny`, or undo the changes")
    lines = capsys.readouterr().out.splitlines()
    assert set(lines) == LINES and all(len(line) <= 120 for line in lines)


def test_a_change_of_another_corpus_does_not_matter(place):
    (place / "raw_others.txt").write_text("more\n")
    verify.main("tiny")


def test_a_changed_command_and_a_stage_that_never_ran_are_named(place, capsys):
    content = yaml.safe_load((place / "dvc.yaml").read_text())
    content["stages"]["train_classifier"]["do"]["cmd"] += "; true"
    content["stages"]["evaluate_classifier"] = {
        "foreach": ["new"],
        "do": make_copy_stage("new", "model"),
    }
    (place / "dvc.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="in 2 places"):
        verify.main("new")
    assert set(capsys.readouterr().out.splitlines()) == {
        "command  its command in dvc.yaml was modified (train_classifier@tiny)",
        "run      has not run, or dvc.lock does not record it (evaluate_classifier@new)",
    }


def test_a_run_that_is_not_in_the_project_and_a_broken_dag_are_one_sentence(place):
    with pytest.raises(InputError, match=r"^params.yaml has no run 'other' among .* new \| tiny$"):
        verify.main("other")
    with pytest.raises(
        InputError, match=r"^DVC cannot read the project \(.*evaluate_classifier@ne"
    ):
        verify.main("new")


def test_the_command_exits_with_1_if_something_changed(place, monkeypatch, capsys):
    (place / "raw_posts.txt").write_text("more\n")
    monkeypatch.setattr("sys.argv", ["polymuse", "verify", "tiny"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "error: tiny does not match dvc.lock in 1 place: " in capsys.readouterr().err


def test_sections_become_dotted_names():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
