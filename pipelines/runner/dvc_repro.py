"""Run `dvc repro`, follow its output and turn its errors into one sentence."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from pipelines import summary
from pipelines.runner import dag, process_group
from pipelines.runner.eta import STAGE_START_PATTERN
from stages.shared.core import config
from stages.shared.core.config import Field, config_class
from stages.shared.data import parallel
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError


@config_class
class RunnerConfig:
    """The section `run` of params.yaml."""

    workers: int = Field(ge=1, description="stages that run at once; they share the cores")
    stage_timeout: float = Field(description="seconds after which the flow ends a stage")
    mlflow_port: int = Field(description="port of MLflow in `polymuse ui`")
    prefect_port: int = Field(description="port of Prefect in `polymuse ui`")
    cpu_budget: dict[str, float] = Field(
        description="planned CPU seconds of a stage, by its name or that of a row"
    )
    expected_skill: dict[str, float] = Field(
        description="lowest skill that is expected of a run, or its share of the ceiling"
    )

    def threads_per_stage(self) -> int:
        """Threads for each stage, so that `workers` stages share the cores."""
        return max(1, parallel.get_num_cores() // self.workers)


def load_runner_config() -> RunnerConfig:
    """Load the section `run`. Raises InputError."""
    return config.load_config(RunnerConfig, "run")


def check_params(graph: dag.Dag) -> None:
    """Validate params.yaml as the stages will read it. Raises InputError with the first error."""
    if not any(graph.commands[name].startswith("exec python -m stages.") for name in graph.stale):
        return
    errors = ErrorCollector()
    # In a process of its own, because it imports every stage and their libraries.
    command = [sys.executable, "-m", "pipelines.validate_params"]
    result = process_group.run_process(
        command, Path.cwd(), os.environ, errors.collect, math.inf, Event()
    )
    if result.code:
        raise InputError(errors.to_sentence(command, result.code))


@contextmanager
def track_parent_run(name: str) -> Iterator[tracking.TrackingRun]:
    """The parent of the MLflow runs of stages in this block; it receives the summary metrics."""
    with tracking.start_parent_run(name, config.read_params()) as parent:
        yield parent
        parent.log_metrics(summary.collect_metrics(), 0)


def reproduce_stage(
    stage: str,
    on_line: Callable[[str], None],
    parent: tracking.TrackingRun,
    threads: int,
    timeout: float,
    stop: Event,
) -> float:
    """Bring one stage of the current folder up to date; call `on_line` with each output line.

    Other stages may run at the same time. OMP_NUM_THREADS is set to `threads` unless it is set
    already. A stage that DVC restores from its run cache does not execute, so that it is recorded
    here, as a child of `parent`. Returns the CPU seconds that the stage and DVC took. Raises
    InputError with the error message of the stage, TimeoutError after `timeout` seconds and
    ProcessStopped once `stop` is set.
    """
    errors = ErrorCollector()
    cached = f"Stage '{stage}' is cached"
    # After one of these lines DVC only prints advice to commit and push.
    last_lines = (cached, f"Stage '{stage}' didn't change", "Updating lock file")
    outcome: list[str] = []

    def follow(line: str) -> None:
        if errors.collect(line) or outcome:
            return
        if line.startswith(last_lines):
            outcome.append(line)
        on_line(line)

    command = ["dvc", "--wait-for-lock", "repro", "--single-item", stage]
    # Without the bars of transformers, which loads the weights in no time.
    defaults = {"OMP_NUM_THREADS": str(threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = defaults | os.environ
    result = process_group.run_process(command, Path.cwd(), environment, follow, timeout, stop)
    if result.code:
        raise InputError(errors.to_sentence(command, result.code))
    if outcome and outcome[0].startswith(cached):
        tracking.log_cached_stage(stage, parent)
    return result.cpu_seconds


class ErrorCollector:
    """Collects the error messages of a stage and of DVC, so that they can be shown last."""

    def __init__(self) -> None:
        self.current_stage = ""
        self.stage_error = ""
        self.dvc_error = ""

    def collect(self, line: str) -> bool:
        """Whether `line` is an error message."""
        if start := STAGE_START_PATTERN.match(line):
            self.current_stage, self.stage_error = start[1], ""
        elif line.startswith("error: "):
            self.stage_error = line.removeprefix("error: ").strip()
        elif line.startswith("ERROR: "):
            self.dvc_error = line.removeprefix("ERROR: ").strip()
        else:
            return False
        return not start

    def to_sentence(self, command: list[str], code: int) -> str:
        """One sentence for a command that ended with exit code `code`."""
        if self.stage_error:
            prefix = f"{self.current_stage}: " if self.current_stage else ""
            return prefix + self.stage_error
        return self.dvc_error or f"{' '.join(command)} ended with exit code {code}"
