"""Log stages to MLflow: one run for each execution of a stage, below the run of its driver.

    with tracking.start_run(stage="train_sft", name="flexmuse", params=asdict(config)) as run:
        run.log_metrics({"loss": 1.5}, step)
        run.log_artifact_hash(target / "history.csv", "history")
        run.log_artifact(target / "map.png", "maps")
        run.log_model(target / "model", "model")

Stages do not depend on this file in DVC, because it cannot change their results. If the server
cannot be used at the start, the stage stops; if it fails later, the stage prints a warning and
continues.

reads   POLYMUSE_PARENT_RUN, DVC_STAGE and DVC_ROOT, which DVC sets
writes  the tracking store; POLYMUSE_HOME/runs/, the ids of open runs, to detect killed ones
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from time import monotonic, time
from typing import Any

from filelock import FileLock, Timeout

from stages.shared.runtime.mlflow_store import (
    PARENT_TAG,
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

    def __init__(self, store: Store, run_id: str, name: str):
        self.run_id = run_id
        self._store, self._name = store, name
        self._metrics: list[MetricRow] = []
        self._artifacts: list[dict[str, Any]] = []
        self._next_flush = monotonic() + _FLUSH_SECONDS
        self._warned = False

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step; they are sent in batches some seconds later."""
        now = int(time() * 1000)
        self._metrics += [(key, float(value), now, step) for key, value in metrics.items()]
        if monotonic() > self._next_flush:
            self._flush_metrics()

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

    def log_model(self, folder: Path, name: str) -> None:
        """Upload a model folder as an MLflow model, found at runs:/ID/NAME and models:/m-ID."""
        self._call_safely(lambda: self._store.log_model(self.run_id, folder.absolute(), name))

    def _flush_metrics(self) -> None:
        self._next_flush = monotonic() + _FLUSH_SECONDS
        rows = self._metrics
        if not rows:
            return
        if self._call_safely(lambda: self._store.log_metrics(self.run_id, rows)):
            self._metrics = []
        else:
            self._next_flush = monotonic() + _RETRY_SECONDS

    def _finish(self, status: str) -> None:
        self._flush_metrics()
        if self._artifacts:
            listing = {"artifacts": self._artifacts}
            self._call_safely(lambda: self._store.log_dict(self.run_id, listing, "artifacts.json"))
        self._call_safely(lambda: self._store.end_run(self.run_id, status))

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
    tags = {"polymuse.stage": stage}
    if os.environ.get(PARENT_RUN_ENV):
        tags[PARENT_TAG] = os.environ[PARENT_RUN_ENV]
    dvc_stage = os.environ.get("DVC_STAGE", "")
    run_name = f"{stage}@{name}" if name else stage
    with _open_run(find_store(), run_name, params, tags, dvc_stage) as run:
        yield run


@contextmanager
def start_parent_run(name: str, params: dict[str, Any]) -> Iterator[TrackingRun]:
    """A parent for the runs of the stages that are started in the block.

    The stages use its store. Children that are still open at the end are marked KILLED.
    """
    store = MlflowStore()
    with _open_run(store, name, params, {"polymuse.parent": "true"}, "") as run:
        os.environ[PARENT_RUN_ENV] = run.run_id
        try:
            with serve_store(store):
                yield run
        finally:
            del os.environ[PARENT_RUN_ENV]
            run._call_safely(lambda: store.kill_children(run.run_id))


def log_cached_stage(stage_name: str, parent: TrackingRun) -> None:
    """Log a stage, e.g. train_sft@flexmuse, that DVC restored from its run cache."""
    stage, _, _ = stage_name.partition("@")
    tags = {"polymuse.stage": stage, "polymuse.cached": "true", PARENT_TAG: parent.run_id}
    store = parent._store
    run_id = _create_run(store, stage_name, {}, tags, stage_name)
    TrackingRun(store, run_id, stage_name)._finish("FINISHED")


@contextmanager
def _open_run(
    store: Store, name: str, params: dict[str, Any], tags: dict[str, str], dvc_stage: str
) -> Iterator[TrackingRun]:
    with _detect_killed_run(store, name) as save_run_id:
        run_id = _create_run(store, name, params, tags, dvc_stage)
        run = TrackingRun(store, run_id, name)
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
    store: Store, name: str, params: dict[str, Any], tags: dict[str, str], dvc_stage: str
) -> str:
    """Create a run; returns its id. Raises InputError."""
    try:
        return store.create_run(name, params, tags, dvc_stage, os.environ.get("DVC_ROOT", ""))
    except TrackingError as error:
        raise InputError(f"MLflow did not accept the run {name} ({error}): see its log") from None


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
