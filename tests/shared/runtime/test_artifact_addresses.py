"""A project that is copied or moved keeps its runs and models, and writes into its own folder."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipelines.health import project as project_checks
from stages.shared.runtime import tracking
from stages.shared.runtime.artifact_addresses import (
    ARTIFACTS_DIR,
    EXPERIMENT_NAME,
    correct_addresses,
    find_former_folder,
)
from tests.support.project_files import list_files

FOLDER = "a project of 100% 图"  # characters that file addresses escape


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A database with the tables of MLflow; copying it is faster than creating it."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tables, tmp_path, monkeypatch):
    """A project with a run, its files, and a registered model."""
    project = tmp_path / FOLDER
    (project / "model").mkdir(parents=True)
    (project / "model/config.json").write_text('{"model": "flexmuse"}')
    (project / "dvc.yaml").touch()
    shutil.copy(tables, project)
    log_run(project, monkeypatch)
    return project


def log_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Log a run with a file and a model, and register the model; returns the run's id."""
    enter(project, monkeypatch)
    with tracking.start_run("train_sft", "flexmuse", {}) as run:
        run.log_artifact(Path("model/config.json"), "copy")
        run.log_model(Path("model"), "model")
    client = open_store(project)
    (output,) = client.get_run(run.run_id).outputs.model_outputs
    if not client.search_registered_models():
        client.create_registered_model("generator")
    source = f"models:/{output.model_id}"
    client.create_model_version("generator", source, model_id=output.model_id)
    return run.run_id


def enter(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in `project`, as the commands do."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    monkeypatch.setenv("POLYMUSE_HOME", str(project / ".polymuse"))


def open_store(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project}/mlflow.db")


def list_addresses(project: Path) -> dict[str, list[str]]:
    """run, model and version -> the addresses of all models, in the words of each."""
    client = open_store(project)
    experiment = client.get_experiment_by_name(EXPERIMENT_NAME).experiment_id
    runs = client.search_runs([experiment])
    return {
        "run": [f"runs:/{run.info.run_id}/model" for run in runs],
        "model": [
            f"models:/{model.model_id}" for model in client.search_logged_models([experiment])
        ],
        "version": [
            f"models:/generator/{version.version}"
            for version in client.search_model_versions("name = 'generator'")
        ],
    }


def check_complete(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model and file of every run can be read, and all are files of this project."""
    enter(project, monkeypatch)
    for kind, addresses in list_addresses(project).items():
        for number, address in enumerate(addresses):
            copy = tmp_path / "downloads" / project.parent.name / f"{kind}{number}"
            folder = tracking.download_model(address, copy)
            assert (folder / "config.json").read_text() == '{"model": "flexmuse"}'
            shutil.rmtree(copy)
    client = open_store(project)
    for address in list_addresses(project)["run"]:
        run = client.get_run(address.split("/")[1])
        assert client.download_artifacts(run.info.run_id, "copy/config.json")
        assert run.info.artifact_uri.startswith(f"{project.as_uri()}/{ARTIFACTS_DIR}/")
    with closing(sqlite3.connect(project / "mlflow.db")) as connection:
        addresses = "\n".join(connection.iterdump())
    assert addresses.count(project.as_uri()) >= 3


def test_a_copy_writes_into_its_own_folder_and_leaves_the_original(
    project, tmp_path, monkeypatch, capsys
):
    before = list_files(project)
    copy = shutil.copytree(project, tmp_path / "copy")
    log_run(copy, monkeypatch)
    assert capsys.readouterr().err == (
        f"mlflow.db was in {project}: its addresses of artifacts now name {copy}\n"
    )
    assert list_files(project) == before
    assert len(list_addresses(copy)["model"]) == 2
    check_complete(copy, tmp_path, monkeypatch)
    check_complete(project, tmp_path, monkeypatch)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("first", ["run", "download"])
def test_a_moved_project_keeps_its_models(project, tmp_path, monkeypatch, capsys, first):
    moved = project.rename(tmp_path / "moved to 图")
    if first == "run":
        log_run(moved, monkeypatch)
    check_complete(moved, tmp_path, monkeypatch)
    assert capsys.readouterr().err.count(f"mlflow.db was in {project}: ") == 1
    moved = moved.rename(project)
    check_complete(project, tmp_path, monkeypatch)


def test_a_copy_is_complete_after_the_original_was_deleted(project, tmp_path, monkeypatch):
    copy = shutil.copytree(project, tmp_path / "copy")
    shutil.rmtree(project)
    check_complete(copy, tmp_path, monkeypatch)
    for kind in ("run", "model", "version"):
        (address,) = list_addresses(copy)[kind]
        assert set(mlflow.models.get_model_info(address).flavors) > {"polymuse"}


def test_artifacts_that_an_earlier_version_wrote_into_the_original_stay_readable(
    project, tmp_path, monkeypatch
):
    copy = shutil.copytree(project, tmp_path / "copy")
    ids = [run.split("/")[1] for run in list_addresses(project)["run"]]
    shutil.rmtree(copy / ARTIFACTS_DIR / ids[0])  # as if it had been written after the copy
    sentence = correct_addresses(copy / "mlflow.db")
    assert sentence.endswith(", except 1 of artifacts that exist only there")
    client = open_store(copy)
    assert client.download_artifacts(ids[0], "copy/config.json")
    assert client.get_run(ids[0]).info.artifact_uri.startswith(project.as_uri())
    location = client.get_experiment_by_name(EXPERIMENT_NAME).artifact_location
    assert location == (copy / ARTIFACTS_DIR).as_uri()


def test_a_copied_database_without_its_artifacts_writes_into_its_own_folder(
    project, tmp_path, monkeypatch
):
    before = list_files(project)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/dvc.yaml").touch()
    shutil.copytree(project / "model", tmp_path / "copy/model")
    shutil.copy(project / "mlflow.db", tmp_path / "copy")
    log_run(tmp_path / "copy", monkeypatch)
    assert list_files(project) == before
    assert len(list((tmp_path / "copy" / ARTIFACTS_DIR / "models").iterdir())) == 1


def test_a_folder_of_the_user_and_a_server_are_left_alone(tables, tmp_path, monkeypatch):
    chosen = tmp_path / "large disk" / ARTIFACTS_DIR
    chosen.mkdir(parents=True)
    for location in (chosen.as_uri(), "s3://bucket/mlartifacts", (tmp_path / "mine").as_uri()):
        database = Path(shutil.copy(tables, tmp_path / "mlflow.db"))
        client = MlflowClient(f"sqlite:///{database}")
        client.create_experiment(EXPERIMENT_NAME, artifact_location=location)
        assert find_former_folder(database) is None
        assert correct_addresses(database) == ""
        assert client.get_experiment_by_name(EXPERIMENT_NAME).artifact_location == location


def test_a_project_behind_a_link_was_not_moved(project, tmp_path):
    (tmp_path / "link").symlink_to(project)
    assert find_former_folder(tmp_path / "link" / "mlflow.db") is None


def test_other_experiments_of_the_project_move_along(project, tmp_path):
    client = open_store(project)
    client.create_experiment("mine", artifact_location=str(project / "mine"))
    client.create_experiment("elsewhere", artifact_location=str(tmp_path / f"{FOLDER} 2/x"))
    moved = project.rename(tmp_path / "moved")
    correct_addresses(moved / "mlflow.db")
    client = open_store(moved)
    locations = {
        name: client.get_experiment_by_name(name).artifact_location
        for name in ("Default", "mine", "elsewhere")
    }
    assert locations["mine"] == str(moved / "mine")
    assert locations["elsewhere"] == str(tmp_path / f"{FOLDER} 2/x")


def test_the_doctor_finds_and_corrects_a_moved_database(project, tmp_path, monkeypatch):
    moved = project.rename(tmp_path / "moved")
    enter(moved, monkeypatch)
    (problem,) = project_checks.check_artifact_addresses().problems
    assert f"names artifacts in {project}" in problem.text
    problem.repair.apply()
    assert project_checks.check_artifact_addresses().problems == []
    check_complete(moved, tmp_path, monkeypatch)
