"""The MLflow tracking store: all calls of MLflow that runs need.

Arguments and results are plain values, so that a stage can use the store of its driver instead of
one of its own (stages/shared/runtime/store_server.py): importing MLflow takes seconds of CPU.

reads   MLFLOW_TRACKING_URI (default: mlflow.db in the project)
writes  the tracking store
"""

import json
import os
import posixpath
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from functools import wraps
from hashlib import md5, sha256
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from filelock import FileLock

from stages.shared.runtime.artifact_addresses import (
    EXPERIMENT_NAME,
    artifacts_address,
    correct_addresses,
)
from stages.shared.runtime.errors import redact_secrets
from stages.shared.runtime.git_state import MAX_PATCH_CHARACTERS, read_git_state
from stages.shared.runtime.sqlite_files import is_cut
from stages.shared.runtime.stage import InputError, work_dir

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SQLITE_PREFIX = "sqlite:///"
OLD_SCHEMA_MESSAGE = "out-of-date database schema"  # of MLflow
DAMAGED_MESSAGES = ("database disk image is malformed", "file is not a database")  # of SQLite
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # pages of training runs
PARENT_TAG = "mlflow.parentRunId"  # by which the pages of MLflow nest runs
CORPORA_DIR = "data/01_ingest/"
IS_PARENT_TAG = "polymuse.parent"
CHANGED_PARAMS_FILE = "changed_params.json"  # artifacts of a run
DEPENDENCIES_FILE = "dependencies.json"
PATCH_FILE = "uncommitted.patch"
MetricRow = tuple[str, float, int, int]  # key, value, milliseconds since 1970, step
EvaluatedModel = tuple[str, str | None, str | None]  # model id; name and md5 of its corpus

# Defaults; values of the user's environment have precedence.
_MLFLOW_ENV_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's default of 7 takes minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",  # jitter would use the stage's random state
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # an address may contain a password
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # it logs the errors that it raises
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_METRICS_PER_BATCH = 1000  # limit of one call of MLflow's API
_ENTRIES_PER_BATCH = 100  # limit for params and for tags
_MAX_VALUE_LENGTH = 500  # characters of a param, the limit of the oldest servers
_MAX_KEY_LENGTH = 250  # characters of a key
_REPO_LOCK = Lock()  # DVC's Repo changes the umask of the process for a moment
P = ParamSpec("P")
T = TypeVar("T")


class TrackingError(Exception):
    """A call of the store failed. The message is the reason, without passwords."""


def _raises_tracking_error(call: Callable[P, T]) -> Callable[P, T]:
    """Turn every exception of MLflow, its drivers and sockets into a TrackingError."""

    @wraps(call)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            raise TrackingError(error_reason(error)) from None

    return wrapper


class MlflowStore:
    """The store at MLFLOW_TRACKING_URI. Raises InputError if it cannot be used.

    Methods raise TrackingError.
    """

    def __init__(self) -> None:
        _set_environment_defaults()
        from mlflow.tracking import MlflowClient

        uri = get_tracking_uri()
        database = database_path(uri)
        lock = Path(f"{database}.lock") if database else work_dir() / "locks" / "tracking"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):  # concurrent creation of the tables fails
                if database and _is_cut(database):
                    raise sqlite3.DatabaseError(DAMAGED_MESSAGES[0])
                print_correction(uri)
                self.client = MlflowClient(uri)
                self.experiment = _get_or_create_experiment(self.client, database)
        except Exception as error:  # drivers, sockets and databases have their own types
            if database and OLD_SCHEMA_MESSAGE in str(error):
                raise InputError(
                    f"{database} was written by an older MLflow: run `polymuse doctor --fix`, "
                    f"or copy it, then run `mlflow db upgrade {uri}`"
                ) from None
            damages = [message for message in DAMAGED_MESSAGES if message in str(error)]
            if database and damages:
                raise InputError(
                    f"{database} is damaged ({damages[0]}): run `polymuse doctor --fix`, which "
                    "moves it aside, or restore a copy"
                ) from None
            fix = (
                "run `polymuse doctor`, and end what else uses it"
                if database
                else "start that server, or unset the variable to use mlflow.db"
            )
            raise InputError(
                f"MLFLOW_TRACKING_URI: {redact_secrets(uri)} cannot be used "
                f"({error_reason(error)}): {fix}"
            ) from None

    @_raises_tracking_error
    def create_run(
        self, name: str, params: dict[str, Any], tags: dict[str, str], dvc_stage: str, dvc_root: str
    ) -> str:
        """Create a run with its params, tags and datasets; returns its id.

        dvc_stage: whose inputs are recorded; "" outside of DVC. dvc_root: its project; "" for that
        of the current folder.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        inputs = _input_hashes(dvc_stage, dvc_root)
        tags = tags | _source_tags(dvc_stage)
        run_params = [Param(key, value) for key, value in _list_params(params)]
        context = [InputTag("mlflow.data.context", "input")]
        datasets = [
            DatasetInput(Dataset(path, md5, "local", json.dumps({"uri": path})), context)
            for path, md5 in inputs.items()
            if path.startswith("data/")
        ]
        # The tags are created with the run, so that a run killed before its params has a parent.
        all_tags = {_sanitize_key(key): value for key, value in tags.items()}
        run = self.client.create_run(self.experiment, run_name=name, tags=all_tags)
        try:
            for start in range(0, len(run_params), _ENTRIES_PER_BATCH):
                batch = run_params[start : start + _ENTRIES_PER_BATCH]
                self.client.log_batch(run.info.run_id, params=batch)
            if datasets:
                self.client.log_inputs(run.info.run_id, datasets)
            if inputs:
                self.client.log_dict(run.info.run_id, {"md5": inputs}, DEPENDENCIES_FILE)
        except Exception as error:  # the stage runs without these entries
            print(f"warning: MLflow run {name}: {error_reason(error)}", file=sys.stderr)
        return run.info.run_id

    @_raises_tracking_error
    def create_parent_run(self, params: dict[str, Any], tags: dict[str, str]) -> str:
        """Create the parent run of an execution of the pipeline; returns its id.

        It is named after the experiment of `dvc exp run`, else the git branch and the time. It has
        tags and artifacts for the commit, what is not committed, dvc.lock at the start and the
        params that differ from those of the last parent run.
        """
        git = read_git_state()
        changes = _compare_params(self._read_last_params(), dict(_list_params(params)))
        tags = tags | _lock_tag("start") | {IS_PARENT_TAG: "true"}
        if git:
            tags["polymuse.git.dirty"] = json.dumps(git.is_dirty)
            if git.branch:
                tags["mlflow.source.git.branch"] = git.branch
        if changes:
            tags["mlflow.note.content"] = _describe_changes(changes)
        started = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        branch = git.branch if git else ""
        name = os.environ.get("DVC_EXP_NAME") or f"{branch} {started}".strip()
        run_id = self.create_run(name, params, tags, "", "")
        if changes:
            self.client.log_dict(run_id, changes, CHANGED_PARAMS_FILE)
        if git and git.patch and len(git.patch) <= MAX_PATCH_CHARACTERS:
            self.client.log_text(run_id, redact_secrets(git.patch), PATCH_FILE)
        return run_id

    def _read_last_params(self) -> dict[str, str] | None:
        """The params of the last parent run; None if there is none."""
        parents = self.client.search_runs(
            [self.experiment], f"tags.`{IS_PARENT_TAG}` = 'true'", max_results=1
        )
        return parents[0].data.params if parents else None

    def page_address(self, run_id: str, ui_port: int) -> str:
        """The address of a run's page, without password; see TrackingRun."""
        uri = get_tracking_uri()
        server = uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{ui_port}"
        return f"{redact_secrets(server)}/#/experiments/{self.experiment}/runs/{run_id}"

    @_raises_tracking_error
    def reopen_run(self, run_id: str) -> None:
        """Mark a run as RUNNING."""
        self.client.update_run(run_id, status="RUNNING")

    @_raises_tracking_error
    def end_parent_run(self, run_id: str, status: str) -> None:
        """End a parent run whose stages have all ended."""
        for key, value in _lock_tag("end").items():
            self.client.set_tag(run_id, key, value)
        self.client.set_terminated(run_id, status)

    @_raises_tracking_error
    def log_metrics(
        self, run_id: str, rows: list[MetricRow], model: EvaluatedModel | None = None
    ) -> None:
        """Log metrics to a run, and to the logged model that they are about."""
        from mlflow.entities import Metric

        about = model or (None, None, None)
        metrics = [
            Metric(_sanitize_key(key), value, now, step, *about) for key, value, now, step in rows
        ]
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])

    @_raises_tracking_error
    def log_artifact(self, run_id: str, path: Path, name: str) -> None:
        """Upload a file, or the files of a folder, into the folder `name` of the artifacts."""
        upload = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        upload(run_id, str(path), name or None)

    @_raises_tracking_error
    def log_dict(self, run_id: str, content: dict[str, Any], name: str) -> None:
        """Upload `content` as the JSON file `name`."""
        self.client.log_dict(run_id, content, name)

    @_raises_tracking_error
    def log_table(self, run_id: str, values: dict[str, float], name: str) -> None:
        """Upload `values` as the table `name`, which the pages of MLflow show and compare."""
        # As MlflowClient.log_table writes it, which needs pandas and warns about its version.
        table = {"columns": ["metric", "value"], "data": [list(row) for row in values.items()]}
        self.client.log_dict(run_id, table, name)
        artifacts = json.dumps([{"path": name, "type": "table"}])
        self.client.set_tag(run_id, "mlflow.loggedArtifacts", artifacts)

    @_raises_tracking_error
    def log_model(self, run_id: str, folder: Path, name: str) -> None:
        """Upload a model folder as an MLflow model."""
        from stages.shared.runtime import model_logging

        model_logging.log_model(self.client, run_id, folder, name)

    @_raises_tracking_error
    def link_model(self, run_id: str, folder: Path) -> EvaluatedModel | None:
        """Record that a run evaluates the logged model with the files of `folder`.

        Returns it with the name and md5 of the corpus that is the run's input; None if no such
        model is logged.
        """
        from mlflow.entities import LoggedModelInput

        from stages.shared.runtime import model_logging

        sha256 = model_logging.hash_folder(folder)
        model_id = model_logging.find_model(self.client, self.experiment, sha256)
        if model_id is None:
            return None
        self.client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        self.client.set_logged_model_tags(model_id, {model_logging.EVALUATION_TAG: run_id})
        inputs = self.client.get_run(run_id).inputs
        datasets = [entry.dataset for entry in inputs.dataset_inputs] if inputs else []
        corpora = [
            (data.name, data.digest) for data in datasets if data.name.startswith(CORPORA_DIR)
        ]
        name, digest = corpora[0] if corpora else (None, None)
        return model_id, name, digest

    @_raises_tracking_error
    def end_run(self, run_id: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)

    @_raises_tracking_error
    def mark_killed(self, run_id: str) -> None:
        """Mark a run that is still open as KILLED, with its open children."""
        from mlflow.exceptions import MlflowException

        try:
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, "KILLED")
                self.kill_children(run_id)
        except MlflowException:  # the run is in another store, or was deleted
            pass

    @_raises_tracking_error
    def kill_children(self, run_id: str) -> None:
        """Mark the open children of a run as KILLED."""
        open_children = f"tags.`{PARENT_TAG}` = '{run_id}' and attributes.status = 'RUNNING'"
        for child in self.client.search_runs([self.experiment], open_children):
            self.client.set_terminated(child.info.run_id, "KILLED")


def download_model(address: str, folder: Path) -> Path:
    """Copy the model at models:/... or runs:/ID/NAME to `folder`. Raises InputError."""
    uri = get_tracking_uri()
    database = database_path(uri)
    if database is not None and not database.exists():
        raise InputError(
            f"{address}: there is no {database.name} yet: train a model, or name a folder"
        )
    _set_environment_defaults()
    from stages.shared.runtime import model_logging

    try:
        print_correction(uri)
        return model_logging.download_model(uri, address, folder)
    except Exception as error:  # stores, servers and addresses have their own types
        raise InputError(
            f"{address}: {redact_secrets(uri)} has no such model ({error_reason(error)}): see "
            "the Models page of `polymuse ui` for the address"
        ) from None


def get_tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db of the project; the path of a database file is absolute.

    Pass it as MLFLOW_TRACKING_URI to stages that run in another folder. Raises InputError if that
    path is no address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE_PREFIX}mlflow.db"
    if not uri.startswith(SQLITE_PREFIX):
        return uri
    path = _project_root() / uri.removeprefix(SQLITE_PREFIX)
    if "?" in str(_project_root()):  # SQLAlchemy would read a query from there on
        raise InputError(
            f"{path} is no address for MLflow, because of the question mark: rename the folder, or "
            "set MLFLOW_TRACKING_URI to a server"
        )
    return f"{SQLITE_PREFIX}{path}"


def print_correction(uri: str) -> None:
    """Correct the addresses of a database that was moved, and say so. Raises sqlite3.Error."""
    database = database_path(uri)
    if database and (sentence := correct_addresses(database)):
        print(sentence, file=sys.stderr, flush=True)


def _set_environment_defaults() -> None:
    for name, value in _MLFLOW_ENV_DEFAULTS.items():
        os.environ.setdefault(name, value)


def database_path(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    return Path(uri.removeprefix(SQLITE_PREFIX)) if uri.startswith(SQLITE_PREFIX) else None


def _is_cut(database: Path) -> bool:
    """Whether the last page is not whole: SQLite reads what is missing as zeros."""
    if not database.exists():
        return False
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            return is_cut(connection, database)
        except sqlite3.OperationalError:  # in use: MLflow waits for it, or names the reason
            return False


def _project_root() -> Path:
    """The folder of dvc.yaml; in a temporary workspace of `dvc exp`, that of the project."""
    current = Path.cwd()
    roots = (folder for folder in [current, *current.parents] if (folder / "dvc.yaml").exists())
    root = Path(os.environ.get("DVC_ROOT") or next(roots, current)).absolute()
    project, is_workspace, _ = root.as_posix().partition("/.dvc/tmp/exps/")
    return Path(project) if is_workspace else root


def _get_or_create_experiment(client: "MlflowClient", database: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(EXPERIMENT_NAME)
    if experiment is None:
        location = artifacts_address(database) if database else None
        try:
            return client.create_experiment(EXPERIMENT_NAME, location, EXPERIMENT_TAGS)
        except MlflowException:  # another machine has created it meanwhile
            experiment = client.get_experiment_by_name(EXPERIMENT_NAME)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ValueError(
            f"experiment {EXPERIMENT_NAME} was deleted, restore it with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`"
        )
    for key, value in EXPERIMENT_TAGS.items():  # of a database of an earlier version
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return experiment.experiment_id


def _input_hashes(dvc_stage: str, dvc_root: str) -> dict[str, str]:
    """path -> md5 of the dependencies of a stage, as DVC computes it; empty outside of DVC."""
    if not dvc_stage:
        return {}
    from dvc.dvcfile import ProjectFile
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with _REPO_LOCK, Repo(dvc_root or None) as repo:
            file = ProjectFile(repo, str(Path(repo.root_dir, "dvc.yaml")))
            # DVC would parse all of dvc.lock for the hashes of the last execution.
            deps = file.LOADER(file, file.contents)[dvc_stage].deps
            hashes = {dep.def_path: dep.get_hash() for dep in deps if dep.exists}
    except DvcException:  # dvc.yaml was edited after DVC started this stage
        return {}
    return {
        path: hashed.value
        for path, hashed in hashes.items()
        if hashed.name == "md5" and hashed.value is not None
    }


def _source_tags(dvc_stage: str) -> dict[str, str]:
    """Tags for the source of a run: stage and commit, without user and machine."""
    source = {"mlflow.source.type": "LOCAL"}  # MLflow shows the commit of runs with a source
    if dvc_stage:
        source |= {"mlflow.source.name": f"dvc.yaml:{dvc_stage}", "dvc.stage": dvc_stage}
    command = ["git", "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return source
    if commit.returncode == 0:
        source["mlflow.source.git.commit"] = commit.stdout.strip()
    return source


def _lock_tag(moment: str) -> dict[str, str]:
    """A tag with the md5 of dvc.lock at the start or end of an execution; empty without one."""
    try:
        content = Path("dvc.lock").read_bytes()
    except FileNotFoundError:
        return {}
    return {f"dvc.lock.md5.{moment}": md5(content, usedforsecurity=False).hexdigest()}


def _list_params(params: dict[str, Any]) -> list[tuple[str, str]]:
    """The params of a run as MLflow stores them."""
    return [(_sanitize_key(key), _truncate_value(value)) for key, value in _flatten(params).items()]


def _compare_params(
    before: dict[str, str] | None, after: dict[str, str]
) -> dict[str, tuple[str | None, str | None]]:
    """key -> values before and after, of the params that differ; None: the key was missing."""
    if before is None:
        return {}
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def _describe_changes(changes: dict[str, tuple[str | None, str | None]]) -> str:
    """The first changed params as Markdown, for the description of a run."""
    lines = [
        f"- `{key}`: {before} to {after}" for key, (before, after) in islice(changes.items(), 20)
    ]
    more = [f"- {len(changes) - 20} more: see {CHANGED_PARAMS_FILE}"] if len(changes) > 20 else []
    return "\n".join(["Params changed since the last run:", "", *lines, *more])


def _flatten(params: dict[str, Any], parent: str = "") -> dict[str, str]:
    """{"a": {"b": 1}} -> {"a.b": "1"}; lists and None as JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{parent}{key}.")
        else:
            flat[f"{parent}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _sanitize_key(name: str) -> str:
    """A key that MLflow accepts. A changed one ends in a hash of the name, so that it is unique."""
    key = re.sub(r"[^\w./ :-]", "_", name)
    if key.startswith(("/", "..")) or posixpath.normpath(key) != key:  # MLflow takes it for a path
        key = key.replace("/", "_").replace("..", "_")
    if key == name and len(key) <= _MAX_KEY_LENGTH:
        return key
    digest = sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{key[: _MAX_KEY_LENGTH - len(digest) - 1]}-{digest}"


def _truncate_value(value: str) -> str:
    value = redact_secrets(value)
    return value if len(value) <= _MAX_VALUE_LENGTH else f"{value[: _MAX_VALUE_LENGTH - 3]}..."


def error_reason(error: Exception) -> str:
    """The message of an error on one line, without passwords, at most 200 characters."""
    text = redact_secrets(" ".join(str(error).split()))
    if "failed with exception" in text or "Max retries" in text:
        return "it does not answer"
    if reason := re.search(r"\(sqlite3\.\w+\) (.+?)(?: \[SQL: |$)", text):
        return reason[1]
    return text[:200] or type(error).__name__
