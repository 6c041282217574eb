"""Validate the parameter files in a process of its own, and remember that they were valid.

writes  POLYMUSE_HOME/valid_params, the fingerprint of valid parameter files and their code
"""

import math
import os
import sys
from hashlib import sha256
from pathlib import Path
from threading import Event

from pipelines.project import write_atomically
from pipelines.runner import process_group, up_to_date
from pipelines.runner.error_collector import ErrorCollector
from stages.shared.core import config
from stages.shared.runtime.stage import InputError, work_dir

CODE = [str(Path(__file__).parents[2] / name) for name in ("stages", "pipelines")]


def validate() -> None:
    """Validate params.yaml as the stages will read it. Raises InputError with the first error."""
    errors = ErrorCollector()
    fingerprint = _fingerprint()
    # In a process of its own, because it imports every stage and their libraries.
    command = [sys.executable, "-m", "pipelines.validate_params"]
    result = process_group.run_process(
        command, Path.cwd(), os.environ, errors.collect, math.inf, Event()
    )
    if result.code:
        raise InputError(errors.to_sentence(command, result.code))
    write_atomically(_record_file(), fingerprint)


def is_remembered() -> bool:
    """Whether the parameter files and the code are as they were when last found valid."""
    file = _record_file()
    return file.exists() and file.read_bytes() == _fingerprint().encode()


def _fingerprint() -> str:
    files = up_to_date.hash_files([*map(str, config.params_files()), *CODE])
    corpora = config.read_params().get("corpora") or {}
    present = [
        Path(row["path"]).exists()
        for row in corpora.values()
        if isinstance(row, dict) and isinstance(row.get("path"), str)
    ]
    return sha256(f"{files} {present}".encode()).hexdigest()


def _record_file() -> Path:
    return work_dir() / "valid_params"
