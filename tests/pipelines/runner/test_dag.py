"""The DAG has the stages, edges and stale stages of DVC."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.runner import dag
from pipelines.runner.eta import StageDurations
from stages.shared.runtime.stage import InputError
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import make_copy_stage


@pytest.fixture
def project(tmp_path, monkeypatch):
    """left and right read from first, last from both; all are up to date."""
    folder = tiny_dvc_project.create_project(
        tmp_path / "project",
        first=make_copy_stage("a"),
        left=make_copy_stage("b", "a"),
        right=make_copy_stage("c", "a"),
        last=make_copy_stage("d", "b", "c"),
    )
    subprocess.run([*tiny_dvc_project.DVC_COMMAND, "repro", "-q"], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder


def test_stages_and_edges_of_this_project_are_those_of_dvc_dag():
    dot = subprocess.run(
        [*tiny_dvc_project.DVC_COMMAND, "dag", "--dot"], capture_output=True, text=True, check=True
    ).stdout
    drawn = {
        tuple(name.strip('" ') for name in line.strip(" ;").split("->"))
        for line in dot.splitlines()
        if "->" in line
    }
    graph = dag.load_dag([])
    assert graph.edges == drawn
    listed = subprocess.run(
        [*tiny_dvc_project.DVC_COMMAND, "stage", "list", "--name-only"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert sorted(graph.stages) == sorted(listed.split())


def test_forced_targets_and_what_follows_are_stale(project):
    graph = dag.load_dag(["left", "right"], force=True)
    assert graph.stale == ["left", "right"] and graph.forced == {"left", "right"}
    graph = dag.load_dag([], force=True)
    assert set(graph.stale) == graph.forced == {"first", "left", "right", "last"}
    graph = dag.load_dag(["last"])
    assert graph.stale == [] and graph.forced == set()


def test_each_stage_comes_after_its_dependencies():
    graph = dag.load_dag([])
    position = {stage: number for number, stage in enumerate(graph.stages)}
    assert graph.edges
    assert all(position[before] < position[after] for before, after in graph.edges)
    assert "train_sft@flexmuse" in graph.dependencies("predict@flexmuse")


def test_a_section_without_rows_is_named_with_what_to_write(project):
    with (project / "params.yaml").open("a") as file:
        file.write("\ngenerators:\n")
    with pytest.raises(
        InputError, match=r"^params\.yaml: generators has no row: write `generators: {}` if"
    ):
        dag.load_dag([])


def test_nothing_is_stale_after_a_repro(project):
    assert dag.load_dag([]).stale == []


def test_a_changed_stage_and_all_downstream_are_stale(project):
    stages = {
        "first": make_copy_stage("a"),
        "left": make_copy_stage("b", "a"),
        "last": make_copy_stage("d", "b", "c"),
    }
    tiny_dvc_project.write_stages(
        project, **stages, right=make_copy_stage("c", "a") | {"cmd": "cat a a > c"}
    )
    assert dag.load_dag([]).stale == ["right", "last"]


def test_a_lost_output_makes_its_stage_stale(project):
    (project / "d").unlink()
    assert dag.load_dag([]).stale == ["last"]


def test_a_target_includes_only_its_dependencies(project):
    (project / "a").unlink()
    graph = dag.load_dag(["left"])
    assert graph.stages == ["first", "left"]
    assert graph.stale == ["first", "left"]


def test_a_target_that_does_not_exist_is_one_sentence(project):
    with pytest.raises(InputError, match="'lefd' not found"):
        dag.load_dag(["lefd"])


def test_a_missing_key_of_params_in_dvc_yaml_is_one_sentence(project):
    tiny_dvc_project.write_stages(
        project, first=make_copy_stage("a") | {"cmd": "echo ${run.wokers} > a"}
    )
    with pytest.raises(InputError) as error:
        dag.load_dag([])
    assert "run.wokers" in str(error.value)
    assert "\n" not in str(error.value)


def test_old_names_in_params_are_reported_before_dvc_reads_them(project):
    with (project / "params.yaml").open("a") as file:
        file.write("\nwriters: {}\n")
    with pytest.raises(InputError, match="earlier version: writers is now generators; rename them"):
        dag.load_dag([])


def write_corpora(project, rows):
    (project / "params.yaml").write_text(yaml.safe_dump({"corpora": rows}, allow_unicode=True))


@pytest.mark.parametrize("name", ["my posts", "flickr.8k", "a/b", "a@b", "$x", 2024, True, ""])
def test_a_corpus_name_that_dvc_would_misread_is_one_sentence(project, name):
    write_corpora(project, {name: {"path": "data"}})
    with pytest.raises(InputError, match=r"^params\.yaml: corpora: the name .* is not usable"):
        dag.load_dag([])


def test_other_corpus_names_and_paths_are_read(project):
    (project / "my $corpora" / "d").mkdir(parents=True)
    (project / "my $corpora" / "d" / "ok.md").symlink_to(project / "dvc.yaml")
    write_corpora(project, {"posts_2-neu": {"path": "my $corpora"}, "食谱": {"path": "none"}})
    assert dag.load_dag([]).stages


def test_a_path_that_would_end_its_quotes_is_one_sentence(project):
    write_corpora(project, {"posts": {"path": "it's"}})
    with pytest.raises(InputError, match=r"corpora\.posts\.path is \"it's\": rename the folder"):
        dag.load_dag([])


def test_a_file_that_dvc_cannot_track_is_named(project):
    folder = project / "posts"
    folder.mkdir()
    write_corpora(project, {"posts": {"path": "posts"}})
    link = folder / ".#notes.md"
    link.symlink_to("user@host.1234")
    with pytest.raises(InputError, match=r"posts/\.#notes\.md is a link to a file that does not"):
        dag.load_dag([])
    link.unlink()
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.md")).touch()
    with pytest.raises(InputError, match=r"posts/caf\?\.md has a name that is not UTF-8"):
        dag.load_dag([])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": "b"}'])
def test_damaged_durations_are_measured_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path))
    (tmp_path / "durations.json").write_text(content)
    durations = StageDurations({"clean": 3.0})
    assert durations.estimate("clean@posts") == 3.0
    durations.record("clean@posts", 5.0)
    assert StageDurations({"clean": 3.0}).estimate("clean@posts") == 5.0
