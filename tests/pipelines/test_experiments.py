"""`dvc exp run` and `dvc repro` leave comparable runs in MLflow, without a driver of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.support.project_files import ROOT
from tests.support.tiny_dvc_project import DVC_COMMAND

TRAIN = """\
from pathlib import Path
from stages.shared.core.config import read_params
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError, stage_process

with stage_process():
    params = read_params()["train"]
    with tracking.start_run(stage="train", name="tiny", params=params) as run:
        if params["rate"] < 0:
            raise InputError("train.rate is negative: give a positive number")
        run.log_metrics({"loss": 1.0}, 1)
        Path("model").write_text(str(params["rate"]))
"""
EVALUATE = """\
from pathlib import Path
from stages.shared.metrics import headline
from stages.shared.runtime import tracking

with tracking.start_run(stage="evaluate", name="tiny", params={}) as run:
    score = float(Path("model").read_text())
    metrics = {"score": {"metric": "f1", "value": score}, "lenient": {"f1": score, "right": 7}}
    headline.write_headline(Path("."), metrics)
    run.log_metrics(headline.select_tracked(metrics), 0)
    run.log_to_parent({"tiny.score": score})
    run.log_table({"lenient.f1": score, "lenient.right": 7}, "all_metrics")
"""
DVC_YAML = """\
stages:
  train:
    cmd: exec python train.py
    deps: [train.py]
    params: [train]
    outs: [model]
  evaluate:
    cmd: exec python evaluate.py
    deps: [evaluate.py, model]
    metrics: [headline.json]
"""
PARAMS = "train:\n  rate: 0.5\n  batch_size: 8\n"


class Project:
    """A git and DVC repository with two tracked stages, and its MLflow store."""

    def __init__(self, folder: Path):
        self.folder = folder
        bin_folder = Path(sys.executable).parent
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "POLYMUSE_HOME": str(folder.parent / "home"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent}/mlflow.db",
        }
        folder.mkdir()
        files = {"train.py": TRAIN, "evaluate.py": EVALUATE, "dvc.yaml": DVC_YAML}
        for name, text in {**files, "params.yaml": PARAMS}.items():
            (folder / name).write_text(text)
        self.run("git", "init", "-q", "-b", "trunk")
        self.run(*DVC_COMMAND, "init", "-q")
        self.commit()

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def dvc(self, *arguments: str, code: int = 0) -> str:
        return self.run(*DVC_COMMAND, *arguments, code=code)

    def commit(self) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        self.run("git", "add", "-A")
        self.run("git", *identity, "commit", "-q", "-m", "a commit")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.environment["MLFLOW_TRACKING_URI"])

    def parents(self) -> list:
        """The parent runs, oldest first."""
        return self.search("tags.`polymuse.parent` = 'true'")

    def search(self, filter_string: str = "") -> list:
        (experiment,) = self.client.search_experiments(filter_string="name = 'polymuse'")
        order = ["attributes.start_time ASC"]
        ids = [experiment.experiment_id]
        return list(self.client.search_runs(ids, filter_string, order_by=order))

    def artifact(self, run, name: str) -> str:
        return Path(self.client.download_artifacts(run.info.run_id, name)).read_text()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.mark.slow
def test_two_experiments_are_two_named_parents_that_differ_in_the_one_number(project):
    project.dvc("exp", "run", "-n", "first", "-S", "train.rate=0.25")
    project.dvc("exp", "run", "-n", "second", "-S", "train.rate=0.75")
    first, second = project.parents()
    assert [run.info.run_name for run in (first, second)] == ["first", "second"]
    assert {run.info.status for run in (first, second)} == {"FINISHED"}
    assert first.data.params == {"train.rate": "0.25", "train.batch_size": "8"}
    assert second.data.params == first.data.params | {"train.rate": "0.75"}
    assert first.data.metrics == {"tiny.score": 0.25}
    assert second.data.metrics == {"tiny.score": 0.75}
    changes = json.loads(project.artifact(second, "changed_params.json"))
    assert changes == {"train.rate": ["0.25", "0.75"]}
    assert "`train.rate`: 0.25 to 0.75" in second.data.tags["mlflow.note.content"]

    children = [run for run in project.search() if run.info.run_id not in ids(first, second)]
    assert [(run.info.run_name, run.data.tags["mlflow.parentRunId"]) for run in children] == [
        (name, parent.info.run_id)
        for parent in (first, second)
        for name in ("train@tiny", "evaluate@tiny")
    ]
    evaluation = children[-1]
    assert evaluation.data.metrics == {"score": 0.75, "lenient.f1": 0.75}
    table = json.loads(project.artifact(evaluation, "all_metrics.json"))
    assert table["data"] == [["lenient.f1", 0.75], ["lenient.right", 7]]

    head = project.run("git", "rev-parse", "HEAD").strip()
    for run in project.search():
        assert run.data.tags["mlflow.source.git.commit"] == head
        assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert second.data.tags["mlflow.source.name"] == "dvc exp run"
    assert evaluation.data.tags["mlflow.source.name"] == "dvc.yaml:evaluate"
    assert second.data.tags["polymuse.git.dirty"] == "true"
    assert "+  rate: 0.75" in project.artifact(second, "uncommitted.patch").splitlines()
    shown = project.dvc("metrics", "show").split("\n")
    assert max(map(len, shown)) <= 120


@pytest.mark.slow
def test_a_bare_repro_has_a_parent_named_after_the_branch_with_its_last_status(project):
    project.dvc("repro")
    (parent,) = project.parents()
    assert parent.info.run_name.startswith("trunk 20")
    assert parent.data.tags["mlflow.source.name"] == "dvc repro"
    assert parent.data.tags["polymuse.git.dirty"] == "false"
    assert parent.info.status == "FINISHED"

    project.commit()
    project.run("sed", "-i", "s/rate: 0.5/rate: -1/", "params.yaml")
    project.dvc("repro", code=255)
    failed = project.parents()[-1]
    assert failed.info.status == "FAILED" and failed.data.metrics == {}
    assert failed.data.tags["polymuse.git.dirty"] == "true"
    assert failed.data.tags["dvc.lock.md5.start"] == project.run("md5sum", "dvc.lock").split()[0]


def ids(*runs) -> set[str]:
    return {run.info.run_id for run in runs}
