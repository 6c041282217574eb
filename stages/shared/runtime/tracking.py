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

from stages.shared.runtime.stage import WrongInput, home

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

PARENT = "POLYMUSE_PARENT_RUN"  # environment of a stage: the id of the run that drives it
EXPERIMENT = "polymuse"
SQLITE = "sqlite:///"
_PARENT_TAG = "mlflow.parentRunId"  # what MLflow's own pages nest runs by

# Chosen here unless the user's environment chose already.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own 7 keep a stage waiting for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # would draw from the stage's random numbers
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # an address may hold a password
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_METRICS_PER_BATCH = 1000  # what one call of MLflow's API takes
_ENTRIES_PER_BATCH = 100  # the same for params and for tags
_VALUE = 500  # characters of a param; what the oldest servers take
_KEY = 250  # characters of a key
_SEND_SECONDS = 10.0  # between two batches of metrics
_PAUSE_SECONDS = 60.0  # the same after a server failed


class Run:
    """An open run. Metrics are buffered; what is only named by path and hash is not uploaded."""

    def __init__(self, client: "MlflowClient", id: str, name: str):
        self.id = id
        self._client, self._name = client, name
        self._metrics: list[Metric] = []
        self._artifacts: list[dict[str, Any]] = []
        self._next_send = monotonic() + _SEND_SECONDS
        self._warned = False

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Note the metrics of one step; they reach the server some seconds later."""
        from mlflow.entities import Metric

        now = int(time() * 1000)
        self._metrics += [Metric(_key(k), float(v), now, step) for k, v in metrics.items()]
        if monotonic() > self._next_send:
            self._send()

    def artifact(self, path: Path, name: str) -> None:
        """Note a file, or each file of a folder, by its path in the project, sha256 and size."""
        files = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
        for file in files:
            with file.open("rb") as content:
                digest = file_digest(content, "sha256").hexdigest()
            inner = "" if file == path else f"/{file.relative_to(path).as_posix()}"
            self._artifacts.append(
                {
                    "name": name + inner,
                    "path": _final(file),
                    "sha256": digest,
                    "bytes": file.stat().st_size,
                }
            )

    def upload(self, path: Path, name: str) -> None:
        """Upload a file, or the files of a folder, into the folder `name` of the run's artifacts.

        With `name` "" they lie on top.
        """
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._try(lambda: send(self.id, str(path), name or None))

    def model(self, folder: Path, name: str) -> None:
        """Upload a trained folder as a model of MLflow, found by runs:/ID/NAME and models:/m-ID."""
        from stages.shared.runtime import model_logging

        self._try(lambda: model_logging.log(self._client, self.id, folder, name))

    def _send(self) -> None:
        self._next_send = monotonic() + _SEND_SECONDS
        while self._metrics:
            batch = self._metrics[:_METRICS_PER_BATCH]
            if not self._try(lambda batch=batch: self._client.log_batch(self.id, metrics=batch)):
                self._next_send = monotonic() + _PAUSE_SECONDS
                return
            del self._metrics[: len(batch)]

    def _end(self, status: str) -> None:
        self._send()
        if self._artifacts:
            listing = {"artifacts": self._artifacts}
            self._try(lambda: self._client.log_dict(self.id, listing, "artifacts.json"))
        self._try(lambda: self._client.set_terminated(self.id, status))

    def _try(self, call: Callable[[], Any]) -> bool:
        """Whether the call worked. Whatever a server raises now must not cost finished work."""
        try:
            call()
        except Exception as error:
            if not self._warned:
                print(f"warning: MLflow run {self._name}: {_reason(error)}", file=sys.stderr)
            self._warned = True
            return False
        return True


@contextmanager
def run(stage: str, name: str, params: dict[str, Any]) -> Iterator[Run]:
    """The run of one stage execution, e.g. train_sft@flexmuse (`name` "" for a stage without one).

    Ends FINISHED, FAILED (an exception) or KILLED. `params` may nest. Raises WrongInput if the
    tracking store cannot be used.
    """
    client, experiment = _connect()
    tags = {"polymuse.stage": stage}
    if os.environ.get(PARENT):
        tags[_PARENT_TAG] = os.environ[PARENT]
    address = os.environ.get("DVC_STAGE", "")
    title = f"{stage}@{name}" if name else stage
    with _opened(client, experiment, title, params, tags, address) as opened:
        yield opened


@contextmanager
def parent(name: str, params: dict[str, Any]) -> Iterator[str]:
    """The run that stage runs hang under; yields its id: set it as POLYMUSE_PARENT_RUN for stages.

    Children that are still open at the end were killed, and are marked so.
    """
    client, experiment = _connect()
    with _opened(client, experiment, name, params, {"polymuse.parent": "true"}, "") as opened:
        try:
            yield opened.id
        finally:
            opened._try(lambda: _kill_children(client, experiment, opened.id))


def copy_metrics(run_id: str, metrics: dict[str, float]) -> None:
    """Put headline metrics on a run that is open elsewhere, the parent, to compare parents by."""
    client, _ = _connect()
    copied = Run(client, run_id, "parent")
    copied.log(metrics, 0)
    copied._send()


def cached(stage_name: str, parent: str) -> None:
    """Record a stage, e.g. train_sft@flexmuse, that DVC restored from its run cache unexecuted."""
    client, experiment = _connect()
    stage, _, _ = stage_name.partition("@")
    tags = {"polymuse.stage": stage, "polymuse.cached": "true", _PARENT_TAG: parent}
    restored = Run(
        client, _create(client, experiment, stage_name, {}, tags, stage_name), stage_name
    )
    restored._end("FINISHED")


def fetch(address: str, folder: Path) -> Path:
    """Copy the model at models:/... or runs:/ID/NAME to `folder`. Raises WrongInput."""
    place = uri()
    if place.startswith(SQLITE) and not (database := Path(place.removeprefix(SQLITE))).exists():
        raise WrongInput(f"{address}: there is no {database.name} yet: train, or name a folder")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from stages.shared.runtime import model_logging

    try:
        return model_logging.fetch(place, address, folder)
    except Exception as error:  # stores, servers and addresses each have their own kinds
        raise WrongInput(
            f"{address}: no model is found by it in {_without_secrets(place)} ({_reason(error)}): "
            "see the Models page of `polymuse ui` for its address"
        ) from None


def uri() -> str:
    """Where runs go: MLFLOW_TRACKING_URI, else mlflow.db of the project; a file's path is absolute.

    Whoever starts stages in another folder hands this on as MLFLOW_TRACKING_URI.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if given.startswith(SQLITE):
        return f"{SQLITE}{_project() / given.removeprefix(SQLITE)}"
    return given


def _project() -> Path:
    """The folder of dvc.yaml; for a temporary workspace of `dvc exp` the project that made it."""
    here = Path.cwd()
    above = (folder for folder in [here, *here.parents] if (folder / "dvc.yaml").exists())
    root = Path(os.environ.get("DVC_ROOT") or next(above, here)).absolute()
    outer, found, _ = root.as_posix().partition("/.dvc/tmp/exps/")
    return Path(outer) if found else root


def _connect() -> tuple["MlflowClient", str]:
    """A client whose store exists, and the id of the experiment. Raises WrongInput."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    place = uri()
    database = Path(place.removeprefix(SQLITE)) if place.startswith(SQLITE) else None
    lock = Path(f"{database}.lock") if database else home() / "locks" / "tracking"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):  # processes that create the tables at the same time crash each other
            client = MlflowClient(place)
            return client, _experiment(client, database)
    except Exception as error:  # drivers, sockets and databases each have their own kinds
        raise WrongInput(
            f"MLFLOW_TRACKING_URI: {_without_secrets(place)} cannot be used ({_reason(error)}): "
            "start that server, or unset the variable and runs go to mlflow.db"
        ) from None


def _experiment(client: "MlflowClient", database: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        place = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=place)
        except MlflowException:  # another machine was first
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"experiment {EXPERIMENT} was deleted there, "
            f"`mlflow experiments restore -x {found.experiment_id}` brings it back"
        )
    return found.experiment_id


@contextmanager
def _opened(
    client: "MlflowClient",
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    dvc_stage: str,
) -> Iterator[Run]:
    with _alone(client, experiment, name) as note:
        opened = Run(client, _create(client, experiment, name, params, tags, dvc_stage), name)
        note(opened.id)
        status = "FINISHED"
        try:
            yield opened
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            opened._end(status)


def _create(
    client: "MlflowClient",
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    dvc_stage: str,
) -> str:
    """Create a run with its params, tags and datasets; its id. Raises WrongInput."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    inputs = _inputs(dvc_stage)
    tags = tags | {f"dvc.md5.{path}": md5 for path, md5 in inputs.items()} | _source(dvc_stage)
    pairs = [Param(_key(key), _short(value)) for key, value in _flatten(params).items()]
    marks = [RunTag(_key(key), value) for key, value in tags.items()]
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
        raise WrongInput(
            f"MLflow did not take the run {name} ({_reason(error)}): see its log"
        ) from None
    return made.info.run_id


def _inputs(dvc_stage: str) -> dict[str, str]:
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


def _source(dvc_stage: str) -> dict[str, str]:
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
def _alone(client: "MlflowClient", experiment: str, name: str) -> Iterator[Callable[[str], Any]]:
    """Notice that the last run of this name was killed; yields where to note the id of the new one.

    A killed process releases its lock and leaves its note. A name that is open in another process
    keeps its note and gets none for the second.
    """
    note = home() / "runs" / name
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


def _final(file: Path) -> str:
    """Path within the project, under the name that the folder has once its stage has ended."""
    path = file.absolute()
    path = path.relative_to(_workspace()) if path.is_relative_to(_workspace()) else Path(path.name)
    return re.sub(r"(^|/)\.([^/]+)\.partial(?=/|$)", r"\1\2", path.as_posix())


def _workspace() -> Path:
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).absolute()


def _key(name: str) -> str:
    return re.sub(r"[^\w./ :-]", "_", name)[:_KEY]


def _short(value: str) -> str:
    value = _without_secrets(value)
    return value if len(value) <= _VALUE else f"{value[: _VALUE - 3]}..."


def _without_secrets(text: str) -> str:
    """Addresses without user, password and query."""
    return re.sub(r"(\w+://)[^/\s]*@", r"\1", re.sub(r"(\w+://[^\s?]*)\?\S*", r"\1", text))


def _reason(error: Exception) -> str:
    text = _without_secrets(" ".join(str(error).split()))
    if "failed with exception" in text or "Max retries" in text:
        return "it does not answer"
    return text[:200] or type(error).__name__
