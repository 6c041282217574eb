"""MLflow remembers what ran: one run for each execution of a stage, under the parent that drove it.

    with tracking.run(stage="train_sft", name="flexmuse", params=asdict(params)) as run:
        run.log({"loss": 1.5}, step)
        run.artifact(target / "history.csv", "history")  # its hash
        run.upload(target / "map.png", "maps")  # the file itself
        run.model(target / "model", "model")

Nothing flows back from here into a stage, so that editing this file makes no stage stale. A server
that cannot be used stops a stage before its work begins; one that fails later costs a warning,
never the work. MLflow is imported where it is used: it costs seconds.

reads   MLFLOW_TRACKING_URI (default: mlflow.db in the project), POLYMUSE_PARENT_RUN,
        DVC_STAGE and DVC_ROOT, which DVC sets
writes  the tracking store; POLYMUSE_HOME/runs/ (which run is open, to notice one that was killed)
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

PARENT_RUN_ENV = "POLYMUSE_PARENT_RUN"  # environment of a stage: the id of the run that drives it
EXPERIMENT_NAME = "polymuse"
SQLITE_PREFIX = "sqlite:///"
_PARENT_TAG = "mlflow.parentRunId"  # what MLflow's own pages nest runs by

# Chosen here unless the user's environment chose already.
_MLFLOW_ENV_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own 7 keep a stage waiting for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # would draw from the stage's random numbers
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # an address may hold a password
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_METRICS_PER_BATCH = 1000  # what one call of MLflow's API takes
_ENTRIES_PER_BATCH = 100  # the same for params and for tags
_MAX_VALUE_LENGTH = 500  # characters of a param; what the oldest servers take
_MAX_KEY_LENGTH = 250  # characters of a key
_FLUSH_SECONDS = 10.0  # between two batches of metrics
_RETRY_SECONDS = 60.0  # the same after a server failed


class TrackingRun:
    """An open run. Metrics are buffered; what is only named by path and hash is not uploaded."""

    def __init__(self, client: "MlflowClient", id: str, name: str):
        self.run_id = id
        self._client, self._name = client, name
        self._metrics: list[Metric] = []
        self._artifacts: list[dict[str, Any]] = []
        self._next_flush = monotonic() + _FLUSH_SECONDS
        self._warned = False

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Note the metrics of one step; they reach the server some seconds later."""
        from mlflow.entities import Metric

        now = int(time() * 1000)
        self._metrics += [Metric(_sanitize_key(k), float(v), now, step) for k, v in metrics.items()]
        if monotonic() > self._next_flush:
            self._flush_metrics()

    def log_artifact_hash(self, path: Path, name: str) -> None:
        """Note a file, or each file of a folder, by its path in the project, sha256 and size."""
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

        With `name` "" they lie on top.
        """
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._call_safely(lambda: send(self.run_id, str(path), name or None))

    def log_model(self, folder: Path, name: str) -> None:
        """Upload a trained folder as a model of MLflow, found by runs:/ID/NAME and models:/m-ID."""
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
        """Whether the call worked. Whatever a server raises now must not cost finished work."""
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
    """The run of one stage execution, e.g. train_sft@flexmuse (`name` "" for a stage without one).

    Ends FINISHED, FAILED (an exception) or KILLED. `params` may nest. Raises WrongInput if the
    tracking store cannot be used.
    """
    client, experiment = _connect()
    tags = {"polymuse.stage": stage}
    if os.environ.get(PARENT_RUN_ENV):
        tags[_PARENT_TAG] = os.environ[PARENT_RUN_ENV]
    address = os.environ.get("DVC_STAGE", "")
    title = f"{stage}@{name}" if name else stage
    with _open_run(client, experiment, title, params, tags, address) as opened:
        yield opened


@contextmanager
def start_parent_run(name: str, params: dict[str, Any]) -> Iterator[str]:
    """The run that stage runs hang under; yields its id: set it as POLYMUSE_PARENT_RUN for stages.

    Children that are still open at the end were killed, and are marked so.
    """
    client, experiment = _connect()
    with _open_run(client, experiment, name, params, {"polymuse.parent": "true"}, "") as opened:
        try:
            yield opened.run_id
        finally:
            opened._call_safely(lambda: _kill_children(client, experiment, opened.run_id))


def copy_metrics(run_id: str, metrics: dict[str, float]) -> None:
    """Put headline metrics on a run that is open elsewhere, the parent, to compare parents by."""
    client, _ = _connect()
    copied = TrackingRun(client, run_id, "parent")
    copied.log_metrics(metrics, 0)
    copied._flush_metrics()


def log_cached_stage(stage_name: str, parent: str) -> None:
    """Record a stage, e.g. train_sft@flexmuse, that DVC restored from its run cache unexecuted."""
    client, experiment = _connect()
    stage, _, _ = stage_name.partition("@")
    tags = {"polymuse.stage": stage, "polymuse.cached": "true", _PARENT_TAG: parent}
    restored = TrackingRun(
        client, _create_run(client, experiment, stage_name, {}, tags, stage_name), stage_name
    )
    restored._finish("FINISHED")


def download_model(address: str, folder: Path) -> Path:
    """Copy the model at models:/... or runs:/ID/NAME to `folder`. Raises WrongInput."""
    place = get_tracking_uri()
    if (
        place.startswith(SQLITE_PREFIX)
        and not (database := Path(place.removeprefix(SQLITE_PREFIX))).exists()
    ):
        raise InputError(f"{address}: there is no {database.name} yet: train, or name a folder")
    for name, value in _MLFLOW_ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from stages.shared.runtime import model_logging

    try:
        return model_logging.download_model(place, address, folder)
    except Exception as error:  # stores, servers and addresses each have their own kinds
        raise InputError(
            f"{address}: no model is found by it in {_redact_secrets(place)} ({_error_reason(error)}): "
            "see the Models page of `polymuse ui` for its address"
        ) from None


def get_tracking_uri() -> str:
    """Where runs go: MLFLOW_TRACKING_URI, else mlflow.db of the project; a file's path is absolute.

    Whoever starts stages in another folder hands this on as MLFLOW_TRACKING_URI.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE_PREFIX}mlflow.db"
    if given.startswith(SQLITE_PREFIX):
        return f"{SQLITE_PREFIX}{_project_root() / given.removeprefix(SQLITE_PREFIX)}"
    return given


def _project_root() -> Path:
    """The folder of dvc.yaml; for a temporary workspace of `dvc exp` the project that made it."""
    here = Path.cwd()
    above = (folder for folder in [here, *here.parents] if (folder / "dvc.yaml").exists())
    root = Path(os.environ.get("DVC_ROOT") or next(above, here)).absolute()
    outer, found, _ = root.as_posix().partition("/.dvc/tmp/exps/")
    return Path(outer) if found else root


def _connect() -> tuple["MlflowClient", str]:
    """A client whose store exists, and the id of the experiment. Raises WrongInput."""
    for name, value in _MLFLOW_ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    place = get_tracking_uri()
    database = Path(place.removeprefix(SQLITE_PREFIX)) if place.startswith(SQLITE_PREFIX) else None
    lock = Path(f"{database}.lock") if database else work_dir() / "locks" / "tracking"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # processes that create the tables at the same time crash each other
            client = MlflowClient(place)
            return client, _get_or_create_experiment(client, database)
    except Exception as error:  # drivers, sockets and databases each have their own kinds
        raise InputError(
            f"MLFLOW_TRACKING_URI: {_redact_secrets(place)} cannot be used ({_error_reason(error)}): "
            "start that server, or unset the variable and runs go to mlflow.db"
        ) from None


def _get_or_create_experiment(client: "MlflowClient", database: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT_NAME)
    if found is None:
        place = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return client.create_experiment(EXPERIMENT_NAME, artifact_location=place)
        except MlflowException:  # another machine was first
            found = client.get_experiment_by_name(EXPERIMENT_NAME)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"experiment {EXPERIMENT_NAME} was deleted there, "
            f"`mlflow experiments restore -x {found.experiment_id}` brings it back"
        )
    return found.experiment_id


@contextmanager
def _open_run(
    client: "MlflowClient",
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    dvc_stage: str,
) -> Iterator[TrackingRun]:
    with _detect_killed_run(client, experiment, name) as note:
        opened = TrackingRun(
            client, _create_run(client, experiment, name, params, tags, dvc_stage), name
        )
        note(opened.run_id)
        status = "FINISHED"
        try:
            yield opened
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            opened._finish(status)


def _create_run(
    client: "MlflowClient",
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    dvc_stage: str,
) -> str:
    """Create a run with its params, tags and datasets; its id. Raises WrongInput."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    inputs = _input_hashes(dvc_stage)
    tags = tags | {f"dvc.md5.{path}": md5 for path, md5 in inputs.items()} | _source_tags(dvc_stage)
    pairs = [
        Param(_sanitize_key(key), _truncate_value(value)) for key, value in _flatten(params).items()
    ]
    marks = [RunTag(_sanitize_key(key), value) for key, value in tags.items()]
    context = [InputTag("mlflow.data.context", "input")]
    datasets = [
        DatasetInput(Dataset(path, md5, "local", json.dumps({"uri": path})), context)
        for path, md5 in inputs.items()
        if path.startswith("data/")
    ]
    try:
        # The tags come with the run: what is killed before its params came is still a child.
        made = client.create_run(experiment, run_name=name, tags={t.key: t.value for t in marks})
        for start in range(0, len(pairs), _ENTRIES_PER_BATCH):
            client.log_batch(made.info.run_id, params=pairs[start : start + _ENTRIES_PER_BATCH])
        if datasets:
            client.log_inputs(made.info.run_id, datasets)
    except Exception as error:
        raise InputError(
            f"MLflow did not take the run {name} ({_error_reason(error)}): see its log"
        ) from None
    return made.info.run_id


def _input_hashes(dvc_stage: str) -> dict[str, str]:
    """path -> md5 of all that a stage depends on, as DVC computes it. Empty outside of DVC."""
    if not dvc_stage:
        return {}
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        # DVC has let go of its lock while a stage runs; another stage's DVC may rewrite dvc.lock.
        with Repo(os.environ.get("DVC_ROOT"), _wait_for_lock=True) as repo, repo.lock:
            deps = repo.stage.load_one(name=dvc_stage).deps
            hashes = {dep.def_path: dep.get_hash() for dep in deps if dep.exists}
    except DvcException:  # dvc.yaml was edited after DVC had started this stage
        return {}
    return {path: hashed.value for path, hashed in hashes.items() if hashed.name == "md5"}


def _source_tags(dvc_stage: str) -> dict[str, str]:
    """The source of a run as MLflow's pages know it: stage and commit, no user, no machine."""
    source = {"dvc.stage": dvc_stage} if dvc_stage else {}
    command = ["git", "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a machine without git trains as well
        return source
    if commit.returncode == 0:
        source["mlflow.source.git.commit"] = commit.stdout.strip()
    return source


@contextmanager
def _detect_killed_run(
    client: "MlflowClient", experiment: str, name: str
) -> Iterator[Callable[[str], Any]]:
    """Notice that the last run of this name was killed; yields where to note the id of the new one.

    A killed process releases its lock and leaves its note. A name that is open in another process
    keeps its note and gets none for the second.
    """
    note = work_dir() / "runs" / name
    note.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{note}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield lambda id: None
        return
    try:
        if note.exists():
            _mark_killed(client, experiment, note.read_text())
        yield note.write_text
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _mark_killed(client: "MlflowClient", experiment: str, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")
            _kill_children(client, experiment, run_id)
    except MlflowException:  # the run went to another store, or was deleted there
        pass


def _kill_children(client: "MlflowClient", experiment: str, run_id: str) -> None:
    still = f"tags.`{_PARENT_TAG}` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([experiment], still):
        client.set_terminated(child.info.run_id, "KILLED")


def _flatten(params: dict[str, Any], above: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}; lists and None as JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _final_path(file: Path) -> str:
    """Path within the project, under the name that the folder has once its stage has ended."""
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
    """Addresses without user, password and query."""
    return re.sub(r"(\w+://)[^/\s]*@", r"\1", re.sub(r"(\w+://[^\s?]*)\?\S*", r"\1", text))


def _error_reason(error: Exception) -> str:
    text = _redact_secrets(" ".join(str(error).split()))
    if "failed with exception" in text or "Max retries" in text:
        return "it does not answer"
    return text[:200] or type(error).__name__
