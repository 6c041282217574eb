"""Stages are logged to MLflow; a broken server never costs finished work."""

import json
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from dvc.repo import Repo
from mlflow.models import get_model_info
from mlflow.models.utils import _enforce_schema
from mlflow.pyfunc import get_model_dependencies
from mlflow.tracking import MlflowClient
from PIL import Image

from stages.shared.core import config
from stages.shared.runtime import model_logging, tracking
from stages.shared.runtime.stage import InputError
from stages.shared.runtime.store_server import SERVER_ENV
from tests.support.project_files import ROOT


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A store with tables and without runs; copying it is faster than creating it."""
    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(database, tmp_path, monkeypatch):
    shutil.copy(database, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    return MlflowClient(tracking.get_tracking_uri())


@pytest.fixture
def trained(tmp_path):
    """A folder as a training stage writes it."""
    folder = tmp_path / "model"
    (folder / "encoder").mkdir(parents=True)
    (folder / "config.json").write_text('{"model": "flexmuse"}')
    (folder / "encoder" / "encoder.json").write_text("{}")
    return folder


def runs(store):
    """name -> run; the last one of each name."""
    experiment = store.get_experiment_by_name("polymuse").experiment_id
    by_time = store.search_runs([experiment], order_by=["attributes.start_time ASC"])
    return {_name(run): run for run in by_time}


def _name(run):
    """The name of a stage's run; of a parent, which is named after branch and time, its command."""
    tags = run.data.tags
    return tags["mlflow.source.name"] if "polymuse.parent" in tags else run.info.run_name


def read_dependencies(store, run):
    """path -> md5 of what a stage read."""
    file = store.download_artifacts(run.info.run_id, "dependencies.json")
    return json.loads(Path(file).read_text())["md5"]


def last_model(store):
    """The logged model that was created last."""
    experiment = store.get_experiment_by_name("polymuse").experiment_id
    newest = [{"field_name": "creation_time", "ascending": False}]
    return store.search_logged_models([experiment], order_by=newest)[0]


def start(code, **environment):
    """A Python process that runs `code` as a stage would."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from stages.shared.runtime import tracking\n{code}"],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_has_its_params_and_metrics_by_step_and_ends_finished(store):
    with tracking.start_run(
        "train_sft", "flexmuse", {"sft": {"steps": 2, "splits": ["a", "b"]}}
    ) as run:
        run.log_metrics({"loss": 2.0, "lm": 1.5}, 0)
        run.log_metrics({"loss": 1.0}, 1)
    logged = runs(store)["train_sft@flexmuse"]
    assert logged.data.params == {"sft.steps": "2", "sft.splits": '["a", "b"]'}
    history = store.get_metric_history(logged.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 2.0), (1, 1.0)]
    assert logged.data.metrics["lm"] == 1.5
    assert logged.info.status == "FINISHED"


def test_metrics_and_params_beyond_the_limit_of_one_call_arrive(store):
    with tracking.start_run("train_sft", "a", {f"p{i}": i for i in range(230)}) as run:
        for step in range(1100):
            run.log_metrics({"x": step, "y": -step, "not a number": float("nan")}, step)
    logged = runs(store)["train_sft@a"]
    assert len(logged.data.params) == 230
    assert len(store.get_metric_history(logged.info.run_id, "y")) == 1100


def test_long_params_and_unusual_keys_are_adapted_to_all_servers(store):
    with tracking.start_run("predict", "a", {"corpora.食谱(1)": "x" * 9000}):
        pass
    ((key, value),) = runs(store)["predict@a"].data.params.items()
    assert key.startswith("corpora.食谱_1_-") and value == "x" * 497 + "..."


def test_keys_that_mlflow_would_confuse_stay_distinct(store):
    keys = ["👍", "👎", "_", "x//y", "x/y", "x/./y", "../x", "/x", "a" * 300, "a" * 301, "a" * 250]
    params = {"labels": dict.fromkeys(keys, "yes")}
    with tracking.start_run("predict", "a", params) as run:
        run.log_metrics(dict.fromkeys(keys, 1.0), 0)
    logged = runs(store)["predict@a"].data
    assert len(logged.params) == len(logged.metrics) == len(keys)
    assert {"labels._", "labels.x/y"} < logged.params.keys()
    assert {"_", "x/y", "a" * 250} < logged.metrics.keys()


def test_params_that_mlflow_refuses_cost_a_warning(store, monkeypatch, capsys):
    monkeypatch.setattr("stages.shared.runtime.mlflow_store._sanitize_key", lambda name: "same")
    with tracking.start_run("predict", "a", {"a": 1, "b": 2}):
        pass
    assert runs(store)["predict@a"].info.status == "FINISHED"
    assert "warning: MLflow run predict@a: " in capsys.readouterr().err


def test_a_database_of_an_older_mlflow_is_named_with_the_command_that_migrates_it(
    database, tmp_path, monkeypatch
):
    old = shutil.copy(database, tmp_path / "old.db")
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0c779009ac13'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old}")
    command = f"`mlflow db upgrade sqlite:///{old}`"
    with (
        pytest.raises(InputError, match=rf"old\.db was written by an older .* run {command}$"),
        tracking.start_run("report", "", {}),
    ):
        pass


def test_a_folder_that_is_no_address_is_reported(tmp_path, monkeypatch):
    project = tmp_path / "what?now"
    project.mkdir()
    (project / "dvc.yaml").touch()
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match=r"what\?now/mlflow\.db is no address .*: rename"):
        tracking.get_tracking_uri()


def test_a_stage_without_rows_is_named_by_the_stage(store):
    with tracking.start_run("report", "", {}):
        pass
    assert list(runs(store)) == ["report"]


def test_a_failed_run_ends_as_failed_and_an_interrupted_one_as_killed(store):
    for name, exception in {"wrong": InputError("x"), "stopped": KeyboardInterrupt()}.items():
        with pytest.raises(type(exception)), tracking.start_run("evaluate", name, {}) as run:
            run.log_metrics({"bleu": 0.1}, 0)
            raise exception
    logged = runs(store)
    assert logged["evaluate@wrong"].info.status == "FAILED"
    assert logged["evaluate@stopped"].info.status == "KILLED"
    assert logged["evaluate@wrong"].data.metrics == {"bleu": 0.1}


def test_a_killed_run_is_marked_when_its_stage_starts_again(store):
    process = start("""
import time
with tracking.start_run("train_sft", "flexmuse", {}):
    print("open", flush=True)
    time.sleep(60)
""")
    assert process.stdout.readline() == "open\n"
    killed = runs(store)["train_sft@flexmuse"].info
    assert killed.status == "RUNNING"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with tracking.start_run("train_sft", "flexmuse", {}) as run:
        assert store.get_run(killed.run_id).info.status == "KILLED"
        assert run.run_id != killed.run_id


def test_a_run_that_is_still_alive_elsewhere_is_left_alone(store):
    with tracking.start_run("train_sft", "flexmuse", {}) as first:
        process = start("""with tracking.start_run("train_sft", "flexmuse", {}): pass""")
        assert process.wait() == 0
        assert store.get_run(first.run_id).info.status == "RUNNING"
    assert {run.info.status for run in runs(store).values()} == {"FINISHED"}


def test_children_have_their_parent_and_ignore_another_run_id(store, monkeypatch):
    with tracking.start_parent_run("make run", {"preset": "smoke"}) as parent:
        parent_id = parent.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", parent_id)
        with tracking.start_run("train_sft", "a", {}) as child:
            pass
        tracking.log_cached_stage("evaluate@a", parent)
        parent.log_metrics({"skill": 0.96}, 0)
    logged = runs(store)
    assert child.run_id != parent_id
    assert logged["train_sft@a"].data.tags["mlflow.parentRunId"] == parent_id
    assert logged["evaluate@a"].data.tags["mlflow.parentRunId"] == parent_id
    assert logged["evaluate@a"].data.tags["polymuse.cached"] == "true"
    assert logged["make run"].data.metrics == {"skill": 0.96}
    assert {run.info.status for run in logged.values()} == {"FINISHED"}


def test_a_stage_of_a_driver_uses_its_store_and_never_imports_mlflow(
    store, trained, project, monkeypatch
):
    monkeypatch.chdir(project)
    code = f"""
import sys
from pathlib import Path
with tracking.start_run("train_classifier", "x", {{"steps": 3}}) as run:
    run.log_metrics({{"loss": 1.5}}, 1)
    run.log_artifact(Path("{trained}"), "copy")
    run.log_artifact_hash(Path("{trained}"), "model")
    run.log_model(Path("{trained}"), "model")
assert not {{"mlflow", "dvc", "numpy"}} & set(sys.modules)
"""
    with tracking.start_parent_run("run", {}) as parent:
        process = start(code, DVC_STAGE="train_classifier@x", DVC_ROOT=str(project))
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
    logged = runs(store)["train_classifier@x"]
    assert logged.info.status == "FINISHED"
    assert logged.data.params == {"steps": "3"} and logged.data.metrics == {"loss": 1.5}
    assert logged.data.tags["mlflow.parentRunId"] == parent.run_id
    assert read_dependencies(store, logged).keys() == {"data/a", "work.py"}
    assert [len(logged.outputs.model_outputs), len(logged.inputs.dataset_inputs)] == [1, 1]
    assert {file.path for file in store.list_artifacts(logged.info.run_id)} == {
        "artifacts.json",
        "copy",
        "dependencies.json",
    }


def test_many_stages_of_a_driver_log_at_once(store):
    code = """
with tracking.start_run("embed", "{i}", {{"a": 1}}) as run:
    for step in range(50):
        run.log_metrics({{"x": {i}}}, step)
        run._flush_metrics()
"""
    with tracking.start_parent_run("run", {}):
        processes = [start(code.format(i=i)) for i in range(6)]
        assert [process.communicate()[1] for process in processes] == [""] * 6
    logged = runs(store)
    assert [logged[f"embed@{i}"].data.metrics["x"] for i in range(6)] == list(range(6))


def test_a_failure_in_the_store_of_the_driver_is_a_warning_of_the_stage(
    store, trained, monkeypatch
):
    code = f"""
from pathlib import Path
with tracking.start_run("train_sft", "a", {{}}) as run:
    run.log_model(Path("{trained}"), "model")
"""
    with tracking.start_parent_run("run", {}) as parent:
        monkeypatch.setattr(parent._store.client, "log_model_artifacts", lambda *_: 1 / 0)
        _, errors = start(code).communicate()
    assert errors == "warning: MLflow run train_sft@a: division by zero\n"
    assert runs(store)["train_sft@a"].info.status == "FINISHED"


def test_a_stage_survives_the_end_of_its_driver(store):
    code = """
import sys
with tracking.start_run("train_sft", "a", {}) as run:
    print("open", flush=True)
    sys.stdin.readline()
    run.log_metrics({"loss": 1.0}, 0)
"""
    driver = start(f"""
import subprocess, sys, time
with tracking.start_parent_run("run", {{}}):
    stage = subprocess.Popen(
        [sys.executable, "-c", 'from stages.shared.runtime import tracking\\n' + {code!r}],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stage.stdout.readline()
    print(stage.pid, flush=True)
    time.sleep(60)
""")
    assert driver.stdout.readline().strip().isdigit()
    driver.kill()  # closes the standard input of the stage
    assert "the process that started this stage has ended" in driver.stderr.read()


@pytest.mark.parametrize("address", ["00@/nowhere/tracking", "wrong key"])
def test_a_stage_that_cannot_reach_the_driver_uses_its_own_store(store, monkeypatch, address):
    with tracking.start_parent_run("run", {}):
        if address == "wrong key":
            _, _, socket = os.environ[SERVER_ENV].partition("@")
            address = f"00@{socket}"
        _, errors = start(
            'with tracking.start_run("embed", "a", {"a": 1}): pass',
            POLYMUSE_TRACKING_SERVER=address,
        ).communicate()
    assert errors == ""
    assert runs(store)["embed@a"].data.params == {"a": "1"}


def test_a_child_still_open_when_its_parent_ends_was_killed(store):
    with tracking.start_parent_run("flow", {}):
        process = start(
            """
import time
with tracking.start_run("train_sft", "a", {}):
    print("open", flush=True)
    time.sleep(60)
"""
        )
        process.stdout.readline()
        process.kill()
        process.wait()
    assert runs(store)["train_sft@a"].info.status == "KILLED"


@pytest.mark.slow
def test_concurrent_processes_can_create_the_database(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    processes = [
        start(
            f'with tracking.start_run("embed", "{i}", {{"a": 1}}) as run:\n'
            f'    run.log_metrics({{"x": {i}}}, 0)'
        )
        for i in range(4)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    logged = runs(MlflowClient(tracking.get_tracking_uri()))
    assert {name: run.data.metrics["x"] for name, run in logged.items()} == {
        f"embed@{i}": i for i in range(4)
    }


def test_an_artifact_is_named_by_final_path_hash_and_size_and_not_copied(
    store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/09_train_sft/.flexmuse.partial/model"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"abc")
    with tracking.start_run("train_sft", "flexmuse", {}) as run:
        run.log_artifact_hash(folder, "model")
    logged = runs(store)["train_sft@flexmuse"]
    place = Path(logged.info.artifact_uri.removeprefix("file://"))
    assert [path.name for path in place.rglob("*") if path.is_file()] == ["artifacts.json"]
    assert json.loads((place / "artifacts.json").read_text())["artifacts"] == [
        {
            "name": "model/weights",
            "path": "data/09_train_sft/flexmuse/model/weights",
            # FIPS 180-2, the example of a one-block message
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "bytes": 3,
        }
    ]


@pytest.fixture
def project(store, tmp_path) -> Path:
    """A project in which train_classifier@x was tracked and depends on data/a."""
    project = tmp_path / "project"
    (project / "data/a").mkdir(parents=True)
    (project / "data/a/rows").write_text("1")
    (project / "work.py").write_text(
        "from pathlib import Path\n"
        "from stages.shared.runtime import tracking\n"
        "with tracking.start_run('train_classifier', 'x', {}): Path('data/b').write_text('2')\n"
    )
    (project / "params.yaml").write_text("runs: {x: {corpus: a}}\n")
    (project / "dvc.yaml").write_text(
        """
stages:
  train_classifier:
    foreach: ${runs}
    do:
      cmd: python work.py
      deps: [work.py, "data/${item.corpus}"]
      params: [runs]
      outs: [data/b]
"""
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in ["init --no-scm -q", "repro -q"]:
        dvc = [sys.executable, "-m", "dvc", *command.split()]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        subprocess.run(dvc, cwd=project, env=environment | {"PATH": path}, check=True)
    return project


def test_the_md5_of_every_dependency_is_that_of_dvc(store, project):
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["train_classifier@x"]
    logged = runs(store)["train_classifier@x"]
    expected = {dep["path"]: dep["md5"] for dep in lock["deps"]}
    assert read_dependencies(store, logged) == expected
    assert len(expected) == 2
    (dataset,) = logged.inputs.dataset_inputs
    assert dataset.dataset.name == "data/a"
    assert dataset.dataset.digest == expected["data/a"]
    assert logged.data.tags["dvc.stage"] == "train_classifier@x"


def test_dependencies_are_read_after_another_dvc_has_written_the_lock_file(
    store, project, monkeypatch
):
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_STAGE", "train_classifier@x")
    file, truncated = Path("dvc.lock"), threading.Event()
    content = file.read_bytes()

    def rewrite() -> None:
        with Repo().lock:
            file.write_bytes(content[: len(content) // 2])
            truncated.set()
            time.sleep(4)  # longer than DVC waits for its lock by default
            file.write_bytes(content)

    with ThreadPoolExecutor() as pool:
        other = pool.submit(rewrite)
        assert truncated.wait(60)
        with tracking.start_run("train_classifier", "x", {}):
            other.result()
    assert len(read_dependencies(store, runs(store)["train_classifier@x"])) == 2


def test_the_default_store_is_in_the_project_of_a_temporary_workspace(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project/.dvc/tmp/exps/tmpabc"))
    assert tracking.get_tracking_uri() == f"sqlite:///{tmp_path}/project/mlflow.db"
    monkeypatch.delenv("DVC_ROOT")
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert tracking.get_tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    assert tracking.get_tracking_uri() == f"sqlite:///{tmp_path}/own.db"


@pytest.mark.parametrize(
    "uri", ["http://me:hunter2@127.0.0.1:9", "postgres://me:hunter2@127.0.0.1:9/x?password=hunter2"]
)
def test_an_unusable_server_is_one_sentence_without_the_password(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(InputError) as error, tracking.start_run("report", "", {}):
        pass
    message = str(error.value)
    assert message.startswith("MLFLOW_TRACKING_URI: ") and "127.0.0.1:9" in message
    assert "hunter2" not in message and "\n" not in message
    assert time.monotonic() - began < 30


def test_a_file_that_is_not_a_database_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with (
        pytest.raises(InputError, match="file is not a database"),
        tracking.start_run("report", "", {}),
    ):
        pass


def test_a_server_failure_is_a_warning_and_metrics_are_sent_again(store, monkeypatch, capsys):
    with tracking.start_run("train_sft", "a", {}) as run:
        client = run._store.client
        with monkeypatch.context() as broken:
            broken.setattr(client, "log_batch", lambda *_, **__: 1 / 0)
            run.log_metrics({"x": 1.0}, 0)
            run._flush_metrics()
            run._flush_metrics()
    assert runs(store)["train_sft@a"].data.metrics == {"x": 1.0}
    assert capsys.readouterr().err.count("warning: MLflow run train_sft@a") == 1


def test_passwords_in_params_are_not_stored(store):
    with tracking.start_run("judge", "a", {"endpoint": "https://me:hunter2@host/v1?key=hunter2"}):
        pass
    assert runs(store)["judge@a"].data.params == {"endpoint": "https://host/v1"}
    database = Path(tracking.get_tracking_uri().removeprefix("sqlite:///"))
    assert b"hunter2" not in database.read_bytes()


def test_tracking_does_not_change_random_states(store, trained):
    def states():
        torch_state = torch.get_rng_state().numpy().tobytes()
        return random.getstate(), pickle.dumps(np.random.get_state()), torch_state

    before = states()
    with (
        tracking.start_parent_run("flow", {}),
        tracking.start_run("train_sft", "a", {"x": 1}) as run,
    ):
        run.log_metrics({"x": 1.0}, 0)
        run.log_model(trained, "model")
        run.log_artifact(trained, "copy")
    assert states() == before


def test_importing_tracking_does_not_import_mlflow():
    process = start("import sys; assert not {'mlflow', 'dvc', 'numpy'} & set(sys.modules)")
    assert process.wait() == 0, process.stderr.read()


def test_uploaded_files_and_folders_are_artifacts_of_the_run(store, trained):
    with tracking.start_run("predict", "flexmuse", {}) as run:
        run.log_artifact(trained, "copy")
        run.log_artifact(trained / "config.json", "")
    place = Path(runs(store)["predict@flexmuse"].info.artifact_uri.removeprefix("file://"))
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert files == {"config.json", "copy/config.json", "copy/encoder/encoder.json"}


def test_a_logged_model_is_found_by_every_kind_of_address(store, trained, tmp_path):
    with tracking.start_run("train_sft", "flexmuse", {"sft": {"steps": 2}}) as run:
        run.log_model(trained, "flexmuse")
    model = last_model(store)
    assert (model.name, model.status, model.source_run_id) == ("flexmuse", "READY", run.run_id)
    assert model.tags["polymuse.run"] == "flexmuse" and model.tags["polymuse.stage"] == "train_sft"
    assert model.params == {"sft.steps": "2"}
    assert [out.model_id for out in store.get_run(run.run_id).outputs.model_outputs] == [
        model.model_id
    ]
    store.create_registered_model("generator")
    store.create_model_version("generator", f"models:/{model.model_id}", model_id=model.model_id)
    addresses = [f"models:/{model.model_id}", f"runs:/{run.run_id}/flexmuse", "models:/generator/1"]
    for number, address in enumerate(addresses):
        folder = tracking.download_model(address, tmp_path / f"copy{number}")
        for file in ("config.json", "encoder/encoder.json"):
            assert (folder / file).read_bytes() == (trained / file).read_bytes()
        described = get_model_info(address)
        assert set(described.flavors) == {"polymuse", "python_function"}
        assert described.signature.inputs.input_names() == ["topic", "image"]


def test_a_logged_model_has_an_input_example_that_fits_its_signature(store, trained, tmp_path):
    with tracking.start_run("train_sft", "flexmuse", {}) as run:
        run.log_model(trained, "flexmuse")
    folder = tracking.download_model(f"models:/{last_model(store).model_id}", tmp_path / "copy")
    mlmodel = mlflow.models.Model.load(folder)
    example = mlmodel.load_input_example(folder)
    checked = _enforce_schema(example, mlmodel.get_input_schema())
    assert list(checked.columns) == ["topic", "image"]
    assert Image.open(BytesIO(b64decode(checked["image"][0]))).size == (64, 64)
    request = json.loads(mlmodel.get_serving_input(folder))
    assert request["dataframe_split"]["columns"] == ["topic", "image"]


def test_a_logged_model_has_the_installed_versions_of_the_dependencies(store, trained, tmp_path):
    with tracking.start_run("train_sft", "flexmuse", {}) as run:
        run.log_model(trained, "flexmuse")
    model_id = last_model(store).model_id
    pins = Path(get_model_dependencies(f"models:/{model_id}")).read_text().splitlines()
    versions = dict(line.split("==") for line in pins)
    assert versions["numpy"] == np.__version__ and versions["mlflow"] == mlflow.__version__
    assert versions["torch"] == torch.__version__.partition("+")[0]
    folder = tracking.download_model(f"models:/{model_id}", tmp_path / "copy")
    environment = yaml.safe_load((folder / "python_env.yaml").read_text())
    assert environment["dependencies"] == ["-r requirements.txt"]
    assert sys.version.startswith(environment["python"])


def test_the_metrics_of_an_evaluation_are_those_of_the_model_with_the_same_files(store, trained):
    """Also if the model was logged twice, and again after other files of the same run."""
    for content in ("{}", '{"a": 1}', "{}"):
        (trained / "encoder" / "encoder.json").write_text(content)
        with tracking.start_run("train_sft", "flexmuse", {}) as run:
            run.log_model(trained, "flexmuse")
    expected = last_model(store)
    with tracking.start_run("evaluate", "flexmuse", {}) as run:
        run.log_metrics({"before": 1.0}, 0)
        run.link_model(trained)
        run.log_metrics({"skill.value": 0.5}, 0)
    models = store.search_logged_models([expected.experiment_id])
    scored = {model.model_id: {m.key: m.value for m in model.metrics or []} for model in models}
    assert scored.pop(expected.model_id) == {"skill.value": 0.5}
    assert list(scored.values()) == [{}, {}]
    evaluation = store.get_run(run.run_id)
    assert evaluation.data.metrics == {"before": 1.0, "skill.value": 0.5}
    assert [model.model_id for model in evaluation.inputs.model_inputs] == [expected.model_id]
    tags = store.get_logged_model(expected.model_id).tags
    assert tags["polymuse.evaluation"] == run.run_id


def test_an_evaluation_of_a_model_that_was_not_logged_keeps_its_metrics(store, trained, capsys):
    with tracking.start_run("evaluate", "flexmuse", {}) as run:
        run.link_model(trained)
        run.link_model(trained / "missing")
        run.log_metrics({"skill.value": 0.5}, 0)
    assert store.get_run(run.run_id).data.metrics == {"skill.value": 0.5}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("address", ["models:/nobody/1", "models:/m-0", "runs:/0/model", "runs:/"])
def test_an_address_without_a_model_is_one_sentence(store, tmp_path, address):
    with pytest.raises(InputError) as error:
        tracking.download_model(address, tmp_path / "copy")
    assert str(error.value).startswith(f"{address}: ") and "\n" not in str(error.value)


def test_a_model_lookup_does_not_create_a_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(InputError, match="there is no none"):
        tracking.download_model("models:/generator/1", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_upload_fails_is_not_ready_and_gives_a_warning(
    store, trained, monkeypatch, capsys
):
    with tracking.start_run("train_sft", "a", {}) as run:
        monkeypatch.setattr(model_logging, "write_environment", lambda _: 1 / 0)
        run.log_model(trained, "model")
    assert runs(store)["train_sft@a"].info.status == "FINISHED"
    experiment = store.get_experiment_by_name("polymuse").experiment_id
    assert [model.status for model in store.search_logged_models([experiment])] == ["FAILED"]
    assert "warning: MLflow run train_sft@a: division by zero" in capsys.readouterr().err


def test_logging_a_model_changes_neither_mlflow_nor_its_folder(store, trained):
    before = sorted(trained.rglob("*")), mlflow.get_tracking_uri(), mlflow.active_run()
    with tracking.start_run("train_sft", "a", {}) as run:
        run.log_model(trained, "model")
        assert mlflow.active_run() is None
    assert (sorted(trained.rglob("*")), mlflow.get_tracking_uri(), mlflow.active_run()) == before


def test_a_table_is_an_artifact_and_metrics_of_its_parent_are_not_its_own(store):
    with tracking.start_parent_run("run", {}), tracking.start_run("evaluate", "a", {}) as run:
        run.log_table({"lenient.f1": 0.5, "strict.f1": 0.25}, "all_metrics")
        run.log_to_parent({"a.score": 0.5})
    logged = runs(store)
    assert logged["evaluate@a"].data.metrics == {}
    assert logged["run"].data.metrics == {"a.score": 0.5}
    file = store.download_artifacts(logged["evaluate@a"].info.run_id, "all_metrics.json")
    assert json.loads(Path(file).read_text()) == {
        "columns": ["metric", "value"],
        "data": [["lenient.f1", 0.5], ["strict.f1", 0.25]],
    }


def test_the_params_of_a_bare_dvc_are_those_that_the_drivers_read():
    assert tracking._read_params() == config.read_params()


def test_the_pages_of_mlflow_open_on_training_runs(store):
    with tracking.start_run("report", "", {}):
        pass
    experiment = store.get_experiment_by_name("polymuse")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
