"""The project: git, DVC's files, parameters, and the servers that record its runs."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines import prefect_server, renamed_keys
from pipelines.health import CheckResult, Problem, fixable
from pipelines.runner import valid_params
from stages.shared.core import config
from stages.shared.runtime import artifact_addresses, mlflow_store
from stages.shared.runtime.errors import InputError, redact_secrets
from stages.shared.runtime.sqlite_files import is_cut

DVC_LOCK = Path("dvc.lock")
VERSIONS = "alembic_version"  # the table with the version of MLflow's tables
PREFECT_TIMEOUT_SECONDS = 1.0
MAX_CHECKED_BYTES = 200_000_000  # of a database; of larger ones only the size is checked


def check_repository() -> CheckResult:
    """git, DVC's settings, dvc.yaml and dvc.lock."""
    problems = []
    for program in ("git", "dvc"):
        if shutil.which(program) is None:
            problems.append(Problem(f"{program} is not installed", "install it, or run `make run`"))
    if not Path(".dvc").is_dir():
        problems.append(Problem("the folder is no DVC project", "run `dvc init`"))
    elif shutil.which("git") and Path(".git").exists():
        command = ["git", "status", "--porcelain", "--untracked-files=no"]
        status = subprocess.run(command, capture_output=True, text=True, check=False)
        if status.returncode:
            reason = status.stderr.strip().splitlines()[:1]
            problems.append(Problem(f"git cannot read the project ({reason})", "run `git fsck`"))
    try:
        _read_yaml(Path("dvc.yaml"), "stages")
    except (OSError, ValueError, YAMLError) as error:
        text = f"dvc.yaml cannot be read ({_first_line(error)})"
        problems.append(Problem(text, "run `git restore dvc.yaml`"))
    try:
        read_lock()
    except (OSError, ValueError, YAMLError) as error:
        problems.append(
            fixable(
                f"dvc.lock is damaged ({_first_line(error)})",
                "moves it aside; `git restore dvc.lock` brings a committed one back",
                lambda: move_aside(DVC_LOCK),
            )
        )
    return CheckResult("git, dvc.yaml and dvc.lock can be read", problems)


def read_lock() -> dict[str, Any]:
    """The stages of dvc.lock; none if there is no such file. Raises ValueError or YAMLError."""
    return _read_yaml(DVC_LOCK, "stages") if DVC_LOCK.exists() else {}


def check_params() -> CheckResult:
    """All parameter files, as the stages read them."""
    try:
        renamed_keys.check_names(config.read_params())
        if not valid_params.is_remembered():
            valid_params.validate()
    except InputError as error:
        return CheckResult("", [Problem(str(error), "see `polymuse params`")])
    return CheckResult("params.yaml and config/ are valid")


def check_tracking() -> CheckResult:
    """The database of MLflow: readable, not damaged, with the tables of the installed version."""
    uri = mlflow_store.get_tracking_uri()
    if not uri.startswith(mlflow_store.SQLITE_PREFIX):
        return CheckResult(f"{redact_secrets(uri)} is not checked: it is no file")
    file = Path(uri.removeprefix(mlflow_store.SQLITE_PREFIX))
    if not file.exists() or not file.stat().st_size:
        return CheckResult(f"{file.name} is created by the first run")
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=0)) as database:
            if damage := find_damage(database, file):
                raise sqlite3.DatabaseError(damage)
            version = _read_version(database)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return CheckResult(f"{file.name} is in use: not checked")
        fix = "change its permissions" if not os.access(file, os.R_OK) else "see the message"
        return CheckResult("", [Problem(f"{file} cannot be read ({error})", fix)])
    except sqlite3.DatabaseError as error:
        phrase = "moves it aside: MLflow starts an empty one"
        problem = fixable(f"{file} is damaged ({error})", phrase, lambda: move_aside(file))
        return CheckResult("", [problem])
    known, newest = _read_migrations()
    if version in known and version != newest:
        problem = fixable(
            f"{file} was written by an older MLflow",
            f"copies it to {file.name}.DATE.backup and runs `mlflow db upgrade`",
            lambda: _upgrade_database(file, uri),
        )
        return CheckResult("", [problem])
    if version and version not in known:
        fix = "install that version, or set MLFLOW_TRACKING_URI to another file"
        return CheckResult("", [Problem(f"{file} was written by a newer MLflow", fix)])
    return CheckResult(f"{file.name} has the tables of this MLflow")


def check_artifact_addresses() -> CheckResult:
    """Whether MLflow's database names artifacts of this project, not of where it was before."""
    file = mlflow_store.database_path(mlflow_store.get_tracking_uri())
    try:
        former = artifact_addresses.find_former_folder(file) if file else None
    except sqlite3.Error:  # `check_tracking` reports it
        former = None
    if file is None or former is None:
        return CheckResult("MLflow stores artifacts where it should")
    text = f"{file.name} names artifacts in {former}, where it was before"
    phrase = f"changes these addresses to {file.parent}"
    repair = fixable(text, phrase, lambda: artifact_addresses.correct_addresses(file))
    return CheckResult("", [repair])


def check_prefect() -> CheckResult:
    """The server at PREFECT_API_URL, if that is set."""
    if not os.environ.get(prefect_server.API_URL_ENV):
        return CheckResult("PREFECT_API_URL is not set: flows start a temporary server")
    try:
        prefect_server.check_server("unset the variable", PREFECT_TIMEOUT_SECONDS)
    except InputError as error:
        text, _, fix = str(error).rpartition(": ")
        return CheckResult("", [Problem(text, fix)])
    return CheckResult("the server at PREFECT_API_URL responds")


def find_damage(database: sqlite3.Connection, file: Path) -> str:
    """What is damaged in a database; "" if nothing is. Raises sqlite3.DatabaseError too."""
    if is_cut(database, file):
        return "its last page is cut"
    if file.stat().st_size > MAX_CHECKED_BYTES:
        return ""
    result = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    return "" if result == "ok" else result


def move_aside(file: Path) -> Path:
    """Rename a damaged file, which is never deleted here; its new name."""
    target = file.with_name(f"{file.name}.{datetime.now():%Y%m%d-%H%M%S}.damaged")
    return file.rename(target)


def _read_yaml(file: Path, key: str) -> dict[str, Any]:
    """A section of a YAML file of DVC. Raises ValueError if the file has none."""
    content = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        raise ValueError(f"it has no section {key}")
    return content[key]


def _read_version(database: sqlite3.Connection) -> str | None:
    """The version of the tables; None if MLflow has not created them yet."""
    query = "SELECT name FROM sqlite_master WHERE name = ?"
    if database.execute(query, [VERSIONS]).fetchone() is None:
        return None
    return database.execute(f"SELECT version_num FROM {VERSIONS}").fetchone()[0]


def _read_migrations() -> tuple[set[str], str]:
    """All versions of MLflow's tables, and the newest, read without importing MLflow."""
    package = find_spec("mlflow")
    assert package and package.origin  # it is a dependency
    folder = Path(package.origin).parent / "store" / "db_migrations" / "versions"
    sources = [file.read_text(encoding="utf-8") for file in folder.glob("*.py")]
    versions, parents = (
        {match[1] for text in sources for match in _assignments(name, text)}
        for name in ("revision", "down_revision")
    )
    (newest,) = versions - parents
    return versions, newest


def _assignments(name: str, source: str) -> Iterable[re.Match]:
    return re.finditer(rf"^{name}\b[^=]*=\s*[\"'](\w+)[\"']", source, re.MULTILINE)


def _upgrade_database(file: Path, uri: str) -> None:
    """Raises InputError with the message of MLflow; the backup is kept."""
    backup = file.with_name(f"{file.name}.{datetime.now():%Y%m%d-%H%M%S}.backup")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        raise InputError(f"`mlflow db upgrade` failed ({reason}): the backup is {backup}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
