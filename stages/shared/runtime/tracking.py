"""Log stages to MLflow: one run for each execution of a stage, below the run of its driver.

    with tracking.start_run(stage="train_sft", name="flexmuse", params=asdict(config)) as run:
        run.log_metrics({"loss": 1.5}, step)
        run.log_artifact_hash(target / "history.csv", "history")
        run.log_artifact(target / "map.png", "maps")
        run.log_model(target / "model", "model")

Stages do not depend on this file in DVC, because it cannot change their results. If the server
cannot be used at the start, the stage stops; if it fails later, the stage prints a warning and
continues. MLflow is imported inside functions because its import takes seconds.

reads   MLFLOW_TRACKING_URI (default: mlflow.db in the project), POLYMUSE_PARENT_RUN,
        DVC_STAGE and DVC_ROOT, which DVC sets
writes  the tracking store; POLYMUSE_HOME/runs/, the ids of open runs, to detect killed ones
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from stages.shared.runtime.stage import InputError, work_dir

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

PARENT_RUN_ENV = "POLYMUSE_PARENT_RUN"  # environment variable with the id of the parent run
EXPERIMENT_NAME = "polymuse"
SQLITE_PREFIX = "sqlite:///"
_PARENT_TAG = "mlflow.parentRunId"  # by which the pages of MLflow nest runs

# Defaults; values of the user's environment have precedence.
_MLFLOW_ENV_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's default of 7 takes minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # jitter would use the stage's random state
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # an address may contain a password
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_METRICS_PER_BATCH = 1000  # limit of one call of MLflow's API
_ENTRIES_PER_BATCH = 100  # limit for params and for tags
_MAX_VALUE_LENGTH = 500  # characters of a param, the limit of the oldest servers
_MAX_KEY_LENGTH = 250  # characters of a key
_FLUSH_SECONDS = 10.0  # between two batches of metrics
_RETRY_SECONDS = 60.0  # between two batches after a failure


class TrackingRun:
    """An open run, whose metrics are buffered."""

    def __init__(self, client: "MlflowClient", run_id: str, name: str):
        self.run_id = run_id
        self._client, self._name = client, name
        self._metrics: list[Metric] = []
        self._artifacts: list[dict[str, Any]] = []
        self._next_flush = monotonic() + _FLUSH_SECONDS
        self._warned = False

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of one step; they are sent in batches some seconds later."""
        from mlflow.entities import Metric

        now = int(time() * 1000)
        self._metrics += [Metric(_sanitize_key(k), float(v), now, step) for k, v in metrics.items()]
        if monotonic() > self._next_flush:
            self._flush_metrics()

    def log_artifact_hash(self, path: Path, name: str) -> None:
        """Log the path in the project, sha256 and size of a file, or of each file in a folder.

        The files are not uploaded; artifacts.json of the run lists them.
        """
        files = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
        for file in files:
            with file.open("rb") as content:
                digest = file_digest(content, "sha256").hexdigest()
            inner = "" if file == path else f"/{file.relative_to(path).as_posix()}"
            self._artifacts.append(
                {
                    "name": name + inner,
                    "path": _final_path(file),
                    "sha256": digest,
                    "bytes": file.stat().st_size,
                }
            )

    def log_artifact(self, path: Path, name: str) -> None:
        """Upload a file, or the files of a folder, into the folder `name` of the run's artifacts.

        If `name` is "", they are at the top level.
        """
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._call_safely(lambda: upload(self.run_id, str(path), name or None))

    def log_model(self, folder: Path, name: str) -> None:
        """Upload a model folder as an MLflow model, found at runs:/ID/NAME and models:/m-ID."""
        from stages.shared.runtime import model_logging

        self._call_safely(lambda: model_logging.log_model(self._client, self.run_id, folder, name))

    def _flush_metrics(self) -> None:
        self._next_flush = monotonic() + _FLUSH_SECONDS
        while self._metrics:
            batch = self._metrics[:_METRICS_PER_BATCH]
            if not self._call_safely(
                lambda batch=batch: self._client.log_batch(self.run_id, metrics=batch)
            ):
                self._next_flush = monotonic() + _RETRY_SECONDS
                return
            del self._metrics[: len(batch)]

    def _finish(self, status: str) -> None:
        self._flush_metrics()
        if self._artifacts:
            listing = {"artifacts": self._artifacts}
            self._call_safely(lambda: self._client.log_dict(self.run_id, listing, "artifacts.json"))
        self._call_safely(lambda: self._client.set_terminated(self.run_id, status))

    def _call_safely(self, call: Callable[[], Any]) -> bool:
        """Whether the call succeeded. An exception becomes a warning, so that no work is lost."""
        try:
            call()
        except Exception as error:
            if not self._warned:
                print(f"warning: MLflow run {self._name}: {_error_reason(error)}", file=sys.stderr)
            self._warned = True
            return False
        return True


@contextmanager
def start_run(stage: str, name: str, params: dict[str, Any]) -> Iterator[TrackingRun]:
    """A run for one execution of a stage, e.g. train_sft@flexmuse.

    name: the row of params.yaml, "" for a stage without rows. params: may be nested. The run ends
    as FINISHED, FAILED (an exception) or KILLED. Raises InputError if the tracking store cannot be
    used.
    """
    client, experiment = _connect()
    tags = {"polymuse.stage": stage}
    if os.environ.get(PARENT_RUN_ENV):
        tags[_PARENT_TAG] = os.environ[PARENT_RUN_ENV]
    dvc_stage = os.environ.get("DVC_STAGE", "")
    run_name = f"{stage}@{name}" if name else stage
    with _open_run(client, experiment, run_name, params, tags, dvc_stage) as run:
        yield run


@contextmanager
def start_parent_run(name: str, params: dict[str, Any]) -> Iterator[str]:
    """A parent for the runs of stages; yields its id, to be passed to them as POLYMUSE_PARENT_RUN.

    Children that are still open at the end are marked KILLED.
    """
    client, experiment = _connect()
    with _open_run(client, experiment, name, params, {"polymuse.parent": "true"}, "") as run:
        try:
            yield run.run_id
        finally:
            run._call_safely(lambda: _kill_children(client, experiment, run.run_id))


def copy_metrics(run_id: str, metrics: dict[str, float]) -> None:
    """Log metrics to a run that is open elsewhere, such as the parent run."""
    client, _ = _connect()
    run = TrackingRun(client, run_id, "parent")
    run.log_metrics(metrics, 0)
    run._flush_metrics()


def log_cached_stage(stage_name: str, parent: str) -> None:
    """Log a stage, e.g. train_sft@flexmuse, that DVC restored from its run cache."""
    client, experiment = _connect()
    stage, _, _ = stage_name.partition("@")
    tags = {"polymuse.stage": stage, "polymuse.cached": "true", _PARENT_TAG: parent}
    run_id = _create_run(client, experiment, stage_name, {}, tags, stage_name)
    TrackingRun(client, run_id, stage_name)._finish("FINISHED")


def download_model(address: str, folder: Path) -> Path:
    """Copy the model at models:/... or runs:/ID/NAME to `folder`. Raises InputError."""
    uri = get_tracking_uri()
    if (
        uri.startswith(SQLITE_PREFIX)
        and not (database := Path(uri.removeprefix(SQLITE_PREFIX))).exists()
    ):
        raise InputError(
            f"{address}: there is no {database.name} yet: train a model, or name a folder"
        )
    for name, value in _MLFLOW_ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from stages.shared.runtime import model_logging

    try:
        return model_logging.download_model(uri, address, folder)
    except Exception as error:  # stores, servers and addresses have their own types
        raise InputError(
            f"{address}: {_redact_secrets(uri)} has no such model ({_error_reason(error)}): see "
            "the Models page of `polymuse ui` for the address"
        ) from None


def get_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db of the project; the path of a database file is absolute.

    Pass it as MLFLOW_TRACKING_URI to stages that run in another folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE_PREFIX}mlflow.db"
    if uri.startswith(SQLITE_PREFIX):
        return f"{SQLITE_PREFIX}{_project_root() / uri.removeprefix(SQLITE_PREFIX)}"
    return uri


def _project_root() -> Path:
    """The folder of dvc.yaml; in a temporary workspace of `dvc exp`, that of the project."""
    current = Path.cwd()
    roots = (folder for folder in [current, *current.parents] if (folder / "dvc.yaml").exists())
    root = Path(os.environ.get("DVC_ROOT") or next(roots, current)).absolute()
    project, is_workspace, _ = root.as_posix().partition("/.dvc/tmp/exps/")
    return Path(project) if is_workspace else root


def _connect() -> tuple["MlflowClient", str]:
    """A client and the id of the experiment, which is created if needed. Raises InputError."""
    for name, value in _MLFLOW_ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    uri = get_tracking_uri()
    database = Path(uri.removeprefix(SQLITE_PREFIX)) if uri.startswith(SQLITE_PREFIX) else None
    lock = Path(f"{database}.lock") if database else work_dir() / "locks" / "tracking"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # concurrent creation of the tables fails
            client = MlflowClient(uri)
            return client, _get_or_create_experiment(client, database)
    except Exception as error:  # drivers, sockets and databases have their own types
        raise InputError(
            f"MLFLOW_TRACKING_URI: {_redact_secrets(uri)} cannot be used ({_error_reason(error)}): "
            "start that server, or unset the variable to use mlflow.db"
        ) from None


def _get_or_create_experiment(client: "MlflowClient", database: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT_NAME)
    if experiment is None:
        location = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return client.create_experiment(EXPERIMENT_NAME, artifact_location=location)
        except MlflowException:  # another machine has created it meanwhile
            experiment = client.get_experiment_by_name(EXPERIMENT_NAME)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ValueError(
            f"experiment {EXPERIMENT_NAME} was deleted, restore it with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`"
        )
    return experiment.experiment_id


@contextmanager
def _open_run(
    client: "MlflowClient",
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    dvc_stage: str,
) -> Iterator[TrackingRun]:
    with _detect_killed_run(client, experiment, name) as save_run_id:
        run_id = _create_run(client, experiment, name, params, tags, dvc_stage)
        run = TrackingRun(client, run_id, name)
        save_run_id(run_id)
        status = "FINISHED"
        try:
            yield run
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            run._finish(status)


def _create_run(
    client: "MlflowClient",
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    dvc_stage: str,
) -> str:
    """Create a run with its params, tags and datasets; returns its id. Raises InputError."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    inputs = _input_hashes(dvc_stage)
    tags = tags | {f"dvc.md5.{path}": md5 for path, md5 in inputs.items()} | _source_tags(dvc_stage)
    run_params = [
        Param(_sanitize_key(key), _truncate_value(value)) for key, value in _flatten(params).items()
    ]
    run_tags = [RunTag(_sanitize_key(key), value) for key, value in tags.items()]
    context = [InputTag("mlflow.data.context", "input")]
    datasets = [
        DatasetInput(Dataset(path, md5, "local", json.dumps({"uri": path})), context)
        for path, md5 in inputs.items()
        if path.startswith("data/")
    ]
    try:
        # The tags are created with the run, so that a run killed before its params has a parent.
        all_tags = {tag.key: tag.value for tag in run_tags}
        run_id = client.create_run(experiment, run_name=name, tags=all_tags).info.run_id
        for start in range(0, len(run_params), _ENTRIES_PER_BATCH):
            client.log_batch(run_id, params=run_params[start : start + _ENTRIES_PER_BATCH])
        if datasets:
            client.log_inputs(run_id, datasets)
    except Exception as error:
        raise InputError(
            f"MLflow did not accept the run {name} ({_error_reason(error)}): see its log"
        ) from None
    return run_id


def _input_hashes(dvc_stage: str) -> dict[str, str]:
    """path -> md5 of the dependencies of a stage, as DVC computes it; empty outside of DVC."""
    if not dvc_stage:
        return {}
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        # DVC releases its lock while a stage runs, so that another DVC may rewrite dvc.lock.
        with Repo(os.environ.get("DVC_ROOT"), _wait_for_lock=True) as repo, repo.lock:
            deps = repo.stage.load_one(name=dvc_stage).deps
            hashes = {dep.def_path: dep.get_hash() for dep in deps if dep.exists}
    except DvcException:  # dvc.yaml was edited after DVC started this stage
        return {}
    return {path: hashed.value for path, hashed in hashes.items() if hashed.name == "md5"}


def _source_tags(dvc_stage: str) -> dict[str, str]:
    """Tags for the source of a run: stage and commit, without user and machine."""
    source = {"dvc.stage": dvc_stage} if dvc_stage else {}
    command = ["git", "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return source
    if commit.returncode == 0:
        source["mlflow.source.git.commit"] = commit.stdout.strip()
    return source


@contextmanager
def _detect_killed_run(
    client: "MlflowClient", experiment: str, name: str
) -> Iterator[Callable[[str], Any]]:
    """Mark the last run of this name KILLED if it was; yields a function that saves a run id.

    A killed process releases its lock but leaves the file with its run id. If the name is open in
    another process, the id of the second run is not saved.
    """
    id_file = work_dir() / "runs" / name
    id_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{id_file}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield lambda run_id: None
        return
    try:
        if id_file.exists():
            _mark_killed(client, experiment, id_file.read_text())
        yield id_file.write_text
    finally:
        id_file.unlink(missing_ok=True)
        lock.release()


def _mark_killed(client: "MlflowClient", experiment: str, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")
            _kill_children(client, experiment, run_id)
    except MlflowException:  # the run is in another store, or was deleted
        pass


def _kill_children(client: "MlflowClient", experiment: str, run_id: str) -> None:
    open_children = f"tags.`{_PARENT_TAG}` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([experiment], open_children):
        client.set_terminated(child.info.run_id, "KILLED")


def _flatten(params: dict[str, Any], parent: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}; lists and None as JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{parent}{key}.")
        else:
            flat[f"{parent}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _final_path(file: Path) -> str:
    """Path in the project, with the name that the output folder has after the stage has ended."""
    path = file.absolute()
    path = (
        path.relative_to(_workspace_root())
        if path.is_relative_to(_workspace_root())
        else Path(path.name)
    )
    return re.sub(r"(^|/)\.([^/]+)\.partial(?=/|$)", r"\1\2", path.as_posix())


def _workspace_root() -> Path:
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).absolute()


def _sanitize_key(name: str) -> str:
    return re.sub(r"[^\w./ :-]", "_", name)[:_MAX_KEY_LENGTH]


def _truncate_value(value: str) -> str:
    value = _redact_secrets(value)
    return value if len(value) <= _MAX_VALUE_LENGTH else f"{value[: _MAX_VALUE_LENGTH - 3]}..."


def _redact_secrets(text: str) -> str:
    """`text` with addresses stripped of user, password and query."""
    return re.sub(r"(\w+://)[^/\s]*@", r"\1", re.sub(r"(\w+://[^\s?]*)\?\S*", r"\1", text))


def _error_reason(error: Exception) -> str:
    text = _redact_secrets(" ".join(str(error).split()))
    if "failed with exception" in text or "Max retries" in text:
        return "it does not answer"
    return text[:200] or type(error).__name__
