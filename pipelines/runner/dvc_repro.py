"""Run `dvc repro`, follow its output and turn its errors into one sentence."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import MappingProxyType

from pipelines import summary
from pipelines.runner import dag, dvc_locks, fork_server, process_group, valid_params
from pipelines.runner.error_collector import ErrorCollector
from pipelines.runner.fork_server import ForkServer
from stages.shared.core import config
from stages.shared.core.config import Field, config_class
from stages.shared.data import parallel
from stages.shared.runtime import tracking


@config_class
class RunnerConfig:
    """The section `run` of params.yaml."""

    workers: int = Field(ge=1, description="stages that run at once; they share the cores")
    stage_timeout: float = Field(description="seconds after which the flow ends a stage")
    stage_timeouts: dict[str, float] = Field(
        description="other timeouts, by the name of a stage or that of a row"
    )
    stage_retries: int = Field(
        ge=0, description="how often the flow repeats a stage whose server is away or busy"
    )
    retry_delay: float = Field(
        ge=0, description="seconds before the first retry; doubled at each further one"
    )
    notification_block: str | None = Field(
        description="block of Prefect that reports failed flow runs, e.g. slack-webhook/alerts"
    )
    lock_timeout: float = Field(ge=0, description="seconds to wait for another run of the project")
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

    def timeout_of(self, stage: str) -> float:
        """Seconds after which the flow ends `stage`, e.g. train_sft@flexmuse."""
        name, _, _ = stage.partition("@")
        timeouts = self.stage_timeouts
        return timeouts.get(stage, timeouts.get(name, self.stage_timeout))


def load_runner_config() -> RunnerConfig:
    """Load the section `run`. Raises InputError."""
    return config.load_config(RunnerConfig, "run")


def check_params(graph: dag.Dag) -> None:
    """Validate params.yaml as the stages will read it. Raises InputError with the first error."""
    if not any(graph.commands[name].startswith("exec python -m stages.") for name in graph.stale):
        return
    valid_params.validate()


@contextmanager
def track_parent_run(
    command: str, tags: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tracking.TrackingRun]:
    """The parent of the MLflow runs of stages in this block; it receives the headline metrics."""
    with tracking.start_parent_run(command, config.read_params(), tags) as parent:
        with tracking.log_system_metrics(parent):
            yield parent
        parent.log_metrics(summary.collect_metrics(), 0)


@contextmanager
def serve_forks(graph: dag.Dag, threads: int) -> Iterator[ForkServer | None]:
    """A server that forks the stages of this block, if there are enough; else None."""
    if sys.platform == "linux" and len(graph.stale) >= fork_server.MIN_COMMANDS:
        with fork_server.start_server(_build_environment(threads)) as server:
            yield server
    else:
        yield None


def _build_environment(threads: int) -> dict[str, str]:
    """OMP_NUM_THREADS is `threads` unless it is set; transformers, which loads the weights in no
    time, shows no bars."""
    defaults = {"OMP_NUM_THREADS": str(threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return defaults | os.environ


def reproduce_stage(
    stage: str,
    on_line: Callable[[str], None],
    parent: tracking.TrackingRun,
    threads: int,
    server: ForkServer | None,
    timeout: float,
    lock_timeout: float,
    stop: Event,
    force: bool = False,
) -> float:
    """Bring one stage of the current folder up to date; call `on_line` with each output line.

    Other stages may run at the same time. OMP_NUM_THREADS is set to `threads` unless it is set
    already. `server` starts the process, if given. force: run the stage even if nothing changed. A
    stage that DVC restores from its run cache does not execute, so that it is recorded here, as a
    child of `parent`. Returns the CPU seconds that the stage and DVC took. Waits while another DVC
    command has locked the stage's files, at most `lock_timeout` seconds. Raises InputError with the
    error message of the stage, a TemporaryError if its server is away or busy, TimeoutError after
    `timeout` seconds and ProcessStopped once `stop` is set.
    """

    def reproduce() -> float:
        return _reproduce_once(stage, on_line, parent, threads, server, timeout, stop, force)

    return dvc_locks.retry_while_busy(
        reproduce, lock_timeout, lambda line: on_line(f"{line}\n"), stop
    )


def _reproduce_once(
    stage: str,
    on_line: Callable[[str], None],
    parent: tracking.TrackingRun,
    threads: int,
    server: ForkServer | None,
    timeout: float,
    stop: Event,
    force: bool,
) -> float:
    """As `reproduce_stage`. Raises Busy if another DVC command has locked the stage's files."""
    errors = ErrorCollector()
    cached = f"Stage '{stage}' is cached"
    # After one of these lines DVC only prints advice to commit and push.
    last_lines = (cached, f"Stage '{stage}' didn't change", "Updating lock file")
    outcome: list[str] = []

    def follow(line: str) -> None:
        if errors.collect(line) or outcome or dvc_locks.is_busy(errors.dvc_error):
            return
        if line.startswith(last_lines):
            outcome.append(line)
        on_line(line)

    options = ["--single-item", *(["--force"] if force else [])]
    command = ["dvc", "--wait-for-lock", "repro", *options, stage]
    result = process_group.run_process(
        command,
        Path.cwd(),
        _build_environment(threads),
        follow,
        timeout,
        stop,
        server.start if server else None,
    )
    if result.code:
        if dvc_locks.is_busy(errors.dvc_error):
            raise dvc_locks.Busy(errors.to_sentence(command, result.code))
        raise errors.to_error(command, result.code)
    if outcome and outcome[0].startswith(cached):
        tracking.log_cached_stage(stage, parent)
    return result.cpu_seconds
