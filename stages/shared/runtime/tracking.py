"""Log stages to MLflow: one run for each execution of a stage, below that of the pipeline.

    with tracking.start_run(stage="train_sft", name="flexmuse", params=asdict(config)) as run:
        run.log_metrics({"loss": 1.5}, step)
        run.log_artifact_hash(target / "history.csv", "history")
        run.log_artifact(target / "map.png", "maps")
        run.log_model(target / "model", "flexmuse")
    run.link_model(Path("data/09_train_sft/flexmuse/model"))  # an evaluation

Every execution of the pipeline has one parent run: that of its driver (`polymuse run`, the flow),
or one that the stages of a `dvc repro` or `dvc exp run` share.

Stages do not depend on this file in DVC, because it cannot change their results. If the server
cannot be used at the start, the stage stops; if it fails later, the stage prints a warning and
continues.

reads   POLYMUSE_PARENT_RUN; DVC_STAGE, DVC_ROOT and DVC_EXP_NAME, which DVC sets
writes  the tracking store; POLYMUSE_HOME/runs/, the ids of open runs, to detect killed ones, and
        POLYMUSE_HOME/executions/, the ids of the parent runs of DVC's processes
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from time import monotonic, time
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout
from psutil import NoSuchProcess, Process

from stages.shared.runtime.mlflow_store import (
    PARENT_TAG,
    EvaluatedModel,
    MetricRow,
    MlflowStore,
    TrackingError,
    download_model,
    get_tracking_uri,
)
from stages.shared.runtime.stage import InputError, work_dir
from stages.shared.runtime.store_server import RemoteStore, find_store, serve_store

__all__ = ["download_model", "get_tracking_uri"]  # of the store; the rest is defined here
PARENT_RUN_ENV = "POLYMUSE_PARENT_RUN"  # environment variable with the id of the parent run
_FLUSH_SECONDS = 10.0  # between two batches of metrics
_RETRY_SECONDS = 60.0  # between two batches after a failure
Store = MlflowStore | RemoteStore


class TrackingRun:
    """An open run, whose metrics are buffered."""

    def __init__(self, store: Store, run_id: str, name: str, parent_id: str = ""):
        self.run_id, self._parent_id = run_id, parent_id
        self._store, self._name = store, name
        self._metrics: list[MetricRow] = []
        self._model: EvaluatedModel | None = None
        self._artifacts: list[dict[str, Any]] = []
        self._next_flush = monotonic() + _FLUSH_SECONDS
        self._warned = False

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step; they are sent in batches some seconds later."""
        now = int(time() * 1000)
        self._metrics += [(key, float(value), now, step) for key, value in metrics.items()]
        if monotonic() > self._next_flush:
            self._flush_metrics()

    def log_to_parent(self, metrics: Mapping[str, float]) -> None:
        """Log the metrics by which executions of the pipeline are compared to its parent run."""
        now = int(time() * 1000)
        rows = [(key, float(value), now, 0) for key, value in metrics.items()]
        if self._parent_id and rows:
            self._call_safely(lambda: self._store.log_metrics(self._parent_id, rows))

    def log_table(self, values: Mapping[str, float], name: str) -> None:
        """Log values that are not compared between runs as the table `name`.json, an artifact."""
        self._call_safely(lambda: self._store.log_table(self.run_id, dict(values), f"{name}.json"))

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
        self._call_safely(lambda: self._store.log_artifact(self.run_id, path.absolute(), name))

    def page_address(self, ui_port: int) -> str:
        """The address of the run's page; ui_port: of `polymuse ui` if the store is no server."""
        return self._store.page_address(self.run_id, ui_port)

    def log_model(self, folder: Path, name: str) -> None:
        """Upload a model folder as an MLflow model, found at runs:/ID/NAME and models:/m-ID."""
        self._call_safely(lambda: self._store.log_model(self.run_id, folder.absolute(), name))

    def link_model(self, folder: Path) -> None:
        """The metrics that are logged from now on are also those of the model in `folder`.

        No effect if the folder was not logged as a model.
        """

        def link() -> None:
            self._model = self._store.link_model(self.run_id, folder.absolute())

        if folder.is_dir():
            self._flush_metrics()
            self._call_safely(link)

    def _flush_metrics(self) -> None:
        self._next_flush = monotonic() + _FLUSH_SECONDS
        rows = self._metrics
        if not rows:
            return
        if self._call_safely(lambda: self._store.log_metrics(self.run_id, rows, self._model)):
            self._metrics = []
        else:
            self._next_flush = monotonic() + _RETRY_SECONDS

    def _finish(self, status: str, end: Callable[[str, str], None]) -> None:
        self._flush_metrics()
        if self._artifacts:
            listing = {"artifacts": self._artifacts}
            self._call_safely(lambda: self._store.log_dict(self.run_id, listing, "artifacts.json"))
        self._call_safely(lambda: end(self.run_id, status))

    def _call_safely(self, call: Callable[[], Any]) -> bool:
        """Whether the call succeeded. An error becomes a warning, so that no work is lost."""
        try:
            call()
        except TrackingError as error:
            if not self._warned:
                print(f"warning: MLflow run {self._name}: {error}", file=sys.stderr)
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
    store = find_store()
    tags = {"polymuse.stage": stage}
    dvc_stage = os.environ.get("DVC_STAGE", "")
    run_name = f"{stage}@{name}" if name else stage
    with _join_execution(store) as parent_id:
        if parent_id:
            tags[PARENT_TAG] = parent_id

        def create() -> str:
            return _create_run(store, run_name, params, tags, dvc_stage)

        with _open_run(store, run_name, create, store.end_run, parent_id) as run:
            yield run


@contextmanager
def start_parent_run(
    command: str, params: dict[str, Any], tags: Mapping[str, str] = MappingProxyType({})
) -> Iterator[TrackingRun]:
    """A parent for the runs of the stages that are started in the block.

    command: what runs them, such as `polymuse run`. The stages use its store. Children that are
    still open at the end are marked KILLED.
    """
    store = MlflowStore()

    def create() -> str:
        return _create_parent_run(store, command, params, tags)

    with _open_run(store, command, create, store.end_parent_run) as run:
        os.environ[PARENT_RUN_ENV] = run.run_id
        try:
            with serve_store(store):
                yield run
        finally:
            del os.environ[PARENT_RUN_ENV]
            run._call_safely(lambda: store.kill_children(run.run_id))


def end_killed_runs() -> None:
    """Mark the open runs of this project whose process was killed as KILLED, with their children.

    Raises InputError if there are any and the tracking store cannot be used.
    """
    names = [file.name for file in (work_dir() / "runs").glob("*") if file.suffix != ".lock"]
    if not names:  # the usual case, which need not import MLflow
        return
    store = MlflowStore()
    for name in names:
        with _detect_killed_run(store, name):
            pass


@contextmanager
def log_system_metrics(run: TrackingRun) -> Iterator[None]:
    """Log load, memory, disk and network of the machine to a parent run, every 10 seconds.

    A sample takes 10 milliseconds of CPU time.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.run_id, tracking_uri=get_tracking_uri())
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


@contextmanager
def _join_execution(store: Store) -> Iterator[str]:
    """The id of the parent run of this stage; "" for a stage that neither a driver nor DVC started.

    The stages of one `dvc repro` or `dvc exp run` are children of one process, by which they find
    the parent run that the first of them has created. Between two stages that run has the status
    of the stages so far, since none of them knows that it is the last one.
    """
    if PARENT_RUN_ENV in os.environ or "DVC_STAGE" not in os.environ:
        yield os.environ.get(PARENT_RUN_ENV, "")
        return
    id_file = work_dir() / "executions" / _process_key(os.getppid())
    id_file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(id_file.with_name("lock")):
        if id_file.exists():
            parent_id = id_file.read_text()
        else:
            _end_killed_executions(store, id_file.parent)
            command = "dvc exp run" if "DVC_EXP_NAME" in os.environ else "dvc repro"
            parent_id = _create_parent_run(store, command, _read_params(), {})
            id_file.write_text(parent_id)
    with suppress(TrackingError):  # of a server that fails later, the stage's own run warns
        store.reopen_run(parent_id)
    status = "FINISHED"
    try:
        yield parent_id
    except BaseException as error:
        status = _status_after(error)
        raise
    finally:
        with suppress(TrackingError):
            store.end_run(parent_id, status)


def _read_params() -> dict[str, Any]:
    """The content of all parameter files of the current folder, which DVC has parsed before."""
    from dvc.utils.collections import merge_dicts
    from dvc.utils.serialize import load_yaml

    params: dict[str, Any] = {}
    for file in [Path("params.yaml"), *sorted(Path("config").glob("*.yaml"))]:
        merge_dicts(params, load_yaml(file))
    return params


def _process_key(pid: int) -> str:
    """A name for a process that no later process with the same id has; "" if it has ended."""
    try:
        return f"{pid}-{Process(pid).create_time():.2f}"
    except NoSuchProcess:
        return ""


def _end_killed_executions(store: Store, folder: Path) -> None:
    """Forget DVC's processes that have ended, and mark parent runs that are still open KILLED."""
    for file in folder.glob("*-*"):
        if _process_key(int(file.name.partition("-")[0])) != file.name:
            store.mark_killed(file.read_text(errors="replace"))
            file.unlink()


def _status_after(error: BaseException) -> str:
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def log_cached_stage(stage_name: str, parent: TrackingRun) -> None:
    """Log a stage, e.g. train_sft@flexmuse, that DVC restored from its run cache."""
    stage, _, _ = stage_name.partition("@")
    tags = {"polymuse.stage": stage, "polymuse.cached": "true", PARENT_TAG: parent.run_id}
    store = parent._store
    run_id = _create_run(store, stage_name, {}, tags, stage_name)
    TrackingRun(store, run_id, stage_name)._finish("FINISHED", store.end_run)


@contextmanager
def _open_run(
    store: Store,
    name: str,
    create: Callable[[], str],
    end: Callable[[str, str], None],
    parent_id: str = "",
) -> Iterator[TrackingRun]:
    with _detect_killed_run(store, name) as save_run_id:
        run_id = create()
        run = TrackingRun(store, run_id, name, parent_id)
        save_run_id(run_id)
        status = "FINISHED"
        try:
            yield run
        except BaseException as error:
            status = _status_after(error)
            raise
        finally:
            run._finish(status, end)


def _create_run(
    store: Store, name: str, params: dict[str, Any], tags: dict[str, str], dvc_stage: str
) -> str:
    """Create a run; returns its id. Raises InputError."""
    try:
        return store.create_run(name, params, tags, dvc_stage, os.environ.get("DVC_ROOT", ""))
    except TrackingError as error:
        raise InputError(f"MLflow did not accept the run {name} ({error}): see its log") from None


def _create_parent_run(
    store: Store, command: str, params: dict[str, Any], tags: Mapping[str, str]
) -> str:
    """Create the parent run of an execution; returns its id. Raises InputError."""
    try:
        return store.create_parent_run(params, {"mlflow.source.name": command, **tags})
    except TrackingError as error:
        raise InputError(f"MLflow did not accept a run ({error}): see its log") from None


@contextmanager
def _detect_killed_run(store: Store, name: str) -> Iterator[Callable[[str], Any]]:
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
            store.mark_killed(id_file.read_text(errors="replace"))
        yield id_file.write_text
    finally:
        id_file.unlink(missing_ok=True)
        lock.release()


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
