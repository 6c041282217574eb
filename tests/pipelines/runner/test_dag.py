"""The DAG is DVC's own: its stages, its edges and what is stale."""

import subprocess

import pytest

from pipelines.runner import dag
from stages.shared.runtime.stage import WrongInput
from tests.support import tiny_dvc_project
from tests.support.tiny_dvc_project import writes


@pytest.fixture
def project(tmp_path, monkeypatch):
    """left and right read from first, last from both; all are up to date."""
    folder = tiny_dvc_project.make(
        tmp_path / "project",
        first=writes("a"),
        left=writes("b", "a"),
        right=writes("c", "a"),
        last=writes("d", "b", "c"),
    )
    subprocess.run([*tiny_dvc_project.DVC, "repro", "-q"], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    return folder


def test_stages_and_edges_of_this_project_are_what_dvc_draws():
    mermaid = subprocess.run(
        [*tiny_dvc_project.DVC, "dag", "--dot"], capture_output=True, text=True, check=True
    ).stdout
    drawn = {
        tuple(name.strip('" ') for name in line.strip(" ;").split("->"))
        for line in mermaid.splitlines()
        if "->" in line
    }
    graph = dag.read([])
    assert graph.edges == drawn
    listed = subprocess.run(
        [*tiny_dvc_project.DVC, "stage", "list", "--name-only"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert sorted(graph.stages) == sorted(listed.split())


def test_each_stage_stands_after_what_it_reads_from():
    graph = dag.read([])
    place = {stage: number for number, stage in enumerate(graph.stages)}
    assert graph.edges
    assert all(place[before] < place[after] for before, after in graph.edges)
    assert "train_sft@flexmuse" in graph.before("predict@flexmuse")


def test_a_section_whose_rows_were_all_deleted_is_named_with_what_to_write(project):
    with (project / "params.yaml").open("a") as file:
        file.write("\nwriters:\n")
    with pytest.raises(WrongInput, match=r"^params\.yaml: writers has no row: write `writers: {}`"):
        dag.read([])


def test_nothing_is_stale_after_a_repro(project):
    assert dag.read([]).stale == []


def test_what_changed_and_all_after_it_is_stale(project):
    stages = {"first": writes("a"), "left": writes("b", "a"), "last": writes("d", "b", "c")}
    tiny_dvc_project.write(project, **stages, right=writes("c", "a") | {"cmd": "cat a a > c"})
    assert dag.read([]).stale == ["right", "last"]


def test_a_lost_output_makes_its_stage_stale(project):
    (project / "d").unlink()
    assert dag.read([]).stale == ["last"]


def test_a_target_brings_what_it_reads_from_and_no_more(project):
    (project / "a").unlink()
    graph = dag.read(["left"])
    assert graph.stages == ["first", "left"]
    assert graph.stale == ["first", "left"]


def test_a_target_that_does_not_exist_is_one_sentence(project):
    with pytest.raises(WrongInput, match="'lefd' not found"):
        dag.read(["lefd"])


def test_a_key_of_params_that_dvc_yaml_needs_and_lacks_is_one_sentence(project):
    tiny_dvc_project.write(project, first=writes("a") | {"cmd": "echo ${run.wokers} > a"})
    with pytest.raises(WrongInput) as error:
        dag.read([])
    assert "run.wokers" in str(error.value)
    assert "\n" not in str(error.value)
