"""`dvc repro` as a command whose lines are followed and whose fault becomes one sentence."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from pipelines import summary
from pipelines.runner import dag, process_group
from pipelines.runner.eta import STARTS
from stages.shared.core import config
from stages.shared.data import parallel
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import WrongInput

_RECORDING = Lock()  # DVC's Repo changes the umask for a moment, which threads share


@dataclass(frozen=True)
class Params:
    """The section `run` of params.yaml."""

    expected_seconds: dict[str, float]  # by verb, or by stage
    workers: int
    stage_timeout: float  # seconds
    mlflow_port: int
    prefect_port: int

    def __post_init__(self) -> None:
        config.at_least(self, workers=1)

    def threads(self) -> int:
        """Of each stage: the share that it has of the cores when `workers` run at once."""
        return max(1, parallel.cores() // self.workers)


def settings() -> Params:
    """The section `run`. Raises WrongInput."""
    return config.load(Params, "run")


def check(graph: dag.Dag) -> None:
    """Read params.yaml as the project's stages will. Raises WrongInput with the first fault."""
    if not any(graph.commands[name].startswith("exec python -m stages.") for name in graph.stale):
        return
    faults = Faults()
    command = [
        sys.executable,
        "-m",
        "pipelines.validate_params",
    ]  # apart: it imports what stages import
    code = process_group.run(command, Path.cwd(), os.environ, faults.keep, math.inf, Event())
    if code:
        raise WrongInput(faults.sentence(command, code))


@contextmanager
def tracked(name: str) -> Iterator[str]:
    """The MLflow run that stages started in this block hang under; it ends with all headlines."""
    with tracking.parent(name, config.read()) as parent:
        os.environ[tracking.PARENT] = parent
        try:
            yield parent
            tracking.copy_metrics(parent, summary.metrics())
        finally:
            del os.environ[tracking.PARENT]


def reproduce(
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
    faults = Faults()
    cached = f"Stage '{stage}' is cached"
    # After one of these DVC only advises to commit and to push, of each stage anew.
    ends = (cached, f"Stage '{stage}' didn't change", "Updating lock file")
    said: list[str] = []

    def follow(text: str) -> None:
        if faults.keep(text) or said:
            return
        if text.startswith(ends):
            said.append(text)
        line(text)

    command = ["dvc", "--wait-for-lock", "repro", "--single-item", stage]
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    code = process_group.run(command, Path.cwd(), environment, follow, timeout, stop)
    if code:
        raise WrongInput(faults.sentence(command, code))
    if said and said[0].startswith(cached):
        with _RECORDING:
            tracking.cached(stage, parent)


class Faults:
    """What a stage and DVC said went wrong, held back so that it can be shown last, and once."""

    def __init__(self) -> None:
        self.stage = ""  # the one that runs
        self.of_stage = ""
        self.of_dvc = ""

    def keep(self, line: str) -> bool:
        """Whether `line` names a fault."""
        if found := STARTS.match(line):
            self.stage, self.of_stage = found[1], ""
        elif line.startswith("error: "):
            self.of_stage = line.removeprefix("error: ").strip()
        elif line.startswith("ERROR: "):
            self.of_dvc = line.removeprefix("ERROR: ").strip()
        else:
            return False
        return not found

    def sentence(self, command: list[str], code: int) -> str:
        """One sentence for a command that ended with `code`."""
        if self.of_stage:
            return f"{self.stage}: {self.of_stage}" if self.stage else self.of_stage
        return self.of_dvc or f"{' '.join(command)} ended with exit code {code}"
