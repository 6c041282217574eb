"""`dvc repro` as a command whose lines are followed and whose fault becomes one sentence."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock

from pipelines import summary
from pipelines.runner import dag, process_group
from pipelines.runner.eta import STAGE_START_PATTERN
from stages.shared.core import config
from stages.shared.core.config import config_class
from stages.shared.data import parallel
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError

_RECORD_LOCK = Lock()  # DVC's Repo changes the umask for a moment, which threads share


@config_class
class RunnerConfig:
    """The section `run` of params.yaml."""

    expected_seconds: dict[str, float]  # by verb, or by stage
    workers: int
    stage_timeout: float  # seconds
    mlflow_port: int
    prefect_port: int

    def __post_init__(self) -> None:
        pass

    def threads_per_stage(self) -> int:
        """Of each stage: the share that it has of the cores when `workers` run at once."""
        return max(1, parallel.get_num_cores() // self.workers)


def load_runner_config() -> RunnerConfig:
    """The section `run`. Raises WrongInput."""
    return config.load_config(RunnerConfig, "run")


def check_params(graph: dag.Dag) -> None:
    """Read params.yaml as the project's stages will. Raises WrongInput with the first fault."""
    if not any(graph.commands[name].startswith("exec python -m stages.") for name in graph.stale):
        return
    faults = ErrorCollector()
    command = [
        sys.executable,
        "-m",
        "pipelines.validate_params",
    ]  # apart: it imports what stages import
    code = process_group.run_process(
        command, Path.cwd(), os.environ, faults.collect, math.inf, Event()
    )
    if code:
        raise InputError(faults.to_sentence(command, code))


@contextmanager
def track_parent_run(name: str) -> Iterator[str]:
    """The MLflow run that stages started in this block hang under; it ends with all headlines."""
    with tracking.start_parent_run(name, config.read_params()) as parent:
        os.environ[tracking.PARENT_RUN_ENV] = parent
        try:
            yield parent
            tracking.copy_metrics(parent, summary.collect_metrics())
        finally:
            del os.environ[tracking.PARENT_RUN_ENV]


def reproduce_stage(
    stage: str,
    line: Callable[[str], None],
    parent: str,
    threads: int,
    timeout: float,
    stop: Event,
) -> None:
    """Bring one stage of the current folder up to date; each line it writes goes to `line`.

    Others may run beside it, and it has so many threads unless OMP_NUM_THREADS is set. A stage that
    DVC takes from its run cache executes nothing, so that it is recorded here, under the MLflow run
    `parent`. Raises WrongInput with what the failed stage said last, TimeoutError after `timeout`
    seconds and process.Stopped once `stop` is set.
    """
    faults = ErrorCollector()
    cached = f"Stage '{stage}' is cached"
    # After one of these DVC only advises to commit and to push, of each stage anew.
    ends = (cached, f"Stage '{stage}' didn't change", "Updating lock file")
    said: list[str] = []

    def follow(text: str) -> None:
        if faults.collect(text) or said:
            return
        if text.startswith(ends):
            said.append(text)
        line(text)

    command = ["dvc", "--wait-for-lock", "repro", "--single-item", stage]
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    code = process_group.run_process(command, Path.cwd(), environment, follow, timeout, stop)
    if code:
        raise InputError(faults.to_sentence(command, code))
    if said and said[0].startswith(cached):
        with _RECORD_LOCK:
            tracking.log_cached_stage(stage, parent)


class ErrorCollector:
    """What a stage and DVC said went wrong, held back so that it can be shown last, and once."""

    def __init__(self) -> None:
        self.current_stage = ""  # the one that runs
        self.stage_error = ""
        self.dvc_error = ""

    def collect(self, line: str) -> bool:
        """Whether `line` names a fault."""
        if found := STAGE_START_PATTERN.match(line):
            self.current_stage, self.stage_error = found[1], ""
        elif line.startswith("error: "):
            self.stage_error = line.removeprefix("error: ").strip()
        elif line.startswith("ERROR: "):
            self.dvc_error = line.removeprefix("ERROR: ").strip()
        else:
            return False
        return not found

    def to_sentence(self, command: list[str], code: int) -> str:
        """One sentence for a command that ended with `code`."""
        if self.stage_error:
            return (
                f"{self.current_stage}: {self.stage_error}"
                if self.current_stage
                else self.stage_error
            )
        return self.dvc_error or f"{' '.join(command)} ended with exit code {code}"
