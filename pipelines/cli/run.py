"""`polymuse run`: run the stale stages, `run.workers` at once, and print the metrics."""

import math
import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Event

from pipelines import summary, vega_script
from pipelines.cli.display import create_display
from pipelines.runner import dag, dvc_locks, dvc_repro, process_group, up_to_date
from pipelines.runner.eta import RunProgress, StageDurations
from pipelines.runner.scheduler import StageScheduler
from stages.shared.runtime import tracking
from stages.shared.runtime.project_lock import hold_project
from stages.shared.runtime.stage import InputError


def main(targets: list[str]) -> None:
    """Bring `targets`, or all stages, up to date and print the summary table.

    Waits for another run of the project, at most run.lock_timeout seconds. Raises InputError after
    that, and with the message of the first stage that failed.
    """
    settings = dvc_repro.load_runner_config()
    usage = None
    if targets or not up_to_date.is_up_to_date():
        usage = _run_stale_stages(targets, settings)
    if usage is None:
        print("Everything is up to date.")
    vega_script.write_vega_script()
    print(summary.format_summary(settings.expected_skill, usage or ""))


def _run_stale_stages(targets: list[str], settings: dvc_repro.RunnerConfig) -> str | None:
    """Run the stale stages; returns a line about the CPU time, None if there are none."""
    report = partial(print, flush=True)
    with hold_project(" ".join(["polymuse run", *targets]), settings.lock_timeout, report):
        tracking.end_killed_runs()
        graph = dvc_locks.retry_while_busy(
            lambda: dag.load_dag(targets), settings.lock_timeout, report, Event()
        )
        if not graph.stale:
            return None
        dvc_repro.check_params(graph)
        return run_stages(graph, settings)


def run_stages(graph: dag.Dag, settings: dvc_repro.RunnerConfig) -> str:
    """Run every stale stage and show its progress; returns a line about the CPU time.

    After a failure no further stage starts; the running ones finish, then InputError is raised.
    """
    os.environ.setdefault("TQDM_MININTERVAL", "1")  # seconds between updates of a stage's bars
    durations = StageDurations(settings.cpu_budget)
    schedule = StageScheduler(graph, durations.estimate)
    progress = RunProgress(schedule.critical_path_seconds, durations, settings.workers)
    cpu_seconds: dict[str, float] = {}
    first_error: InputError | None = None
    running: dict[str, Future[float]] = {}
    lines: SimpleQueue[tuple[str, str]] = SimpleQueue()  # (stage, line); "" when the stage ends

    def begin(stage: str) -> Future[float]:
        future = pool.submit(reproduce, stage, lambda line: lines.put((stage, line)))
        future.add_done_callback(lambda _: lines.put((stage, "")))
        return future

    pool = ThreadPoolExecutor(settings.workers)
    threads = settings.threads_per_stage()
    with (
        dvc_repro.serve_forks(graph, threads) as server,
        dvc_repro.track_parent_run("polymuse run") as parent,
        create_display() as display,
        pool,
        process_group.stop_event_scope() as stop,
    ):
        reproduce = partial(
            dvc_repro.reproduce_stage,
            parent=parent,
            threads=threads,
            server=server,
            timeout=math.inf,
            lock_timeout=settings.lock_timeout,
            stop=stop,
        )
        while running or (schedule and not first_error):
            free = 0 if first_error else settings.workers - len(running)
            running |= {stage: begin(stage) for stage in schedule.take_ready(free)}
            stage, line = lines.get()
            if line.strip():
                if headline := progress.start_message(stage, line):
                    display.start(stage, headline)
                display.show_output(stage, line)
            elif not line:
                try:
                    used = running.pop(stage).result()
                    if (seconds := progress.record_end(stage)) is not None:
                        cpu_seconds[stage] = used
                        display.end(stage, seconds)
                    schedule.mark_done(stage)
                except InputError as error:
                    first_error = first_error or error
                    if running:
                        display.show(f"{stage} | failed; waiting for {', '.join(running)}")
        if first_error:
            raise first_error
        return summary.format_usage(cpu_seconds, durations.budget)
