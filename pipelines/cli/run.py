"""`polymuse run`: run the stale stages, `run.workers` at once, and print the metrics."""

import math
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

from pipelines import summary
from pipelines.runner import dag, dvc_repro, process_group
from pipelines.runner.eta import RunProgress, StageDurations
from pipelines.runner.scheduler import StageScheduler
from stages.shared.runtime.stage import InputError

ERASE_LINE = "\x1b[K"  # erases the rest of a longer progress bar (ECMA-48: erase in line)


def main(targets: list[str]) -> None:
    """Bring `targets`, or all stages, up to date and print the summary table.

    Raises InputError with the message of the first stage that failed.
    """
    settings = dvc_repro.load_runner_config()
    graph = dag.load_dag(targets)
    if graph.stale:
        dvc_repro.check_params(graph)
        run_stages(graph, settings)
    else:
        print("Everything is up to date.")
    print(summary.format_table())


def run_stages(graph: dag.Dag, settings: dvc_repro.RunnerConfig) -> None:
    """Run every stale stage and print its output, with a headline at its start.

    After a failure no further stage starts; the running ones finish, then InputError is raised.
    """
    durations = StageDurations(settings.expected_seconds)
    schedule = StageScheduler(graph, durations.estimate)
    progress = RunProgress(schedule.critical_path_seconds, durations, settings.workers)
    erase = ERASE_LINE if sys.stdout.isatty() else ""
    first_error: InputError | None = None
    running: dict[str, Future] = {}
    lines: SimpleQueue[tuple[str, str]] = SimpleQueue()  # (stage, line); "" when the stage ends

    def begin(stage: str) -> Future:
        future = pool.submit(reproduce, stage, lambda line: lines.put((stage, line)))
        future.add_done_callback(lambda _: lines.put((stage, "")))
        return future

    pool = ThreadPoolExecutor(settings.workers)
    with (
        dvc_repro.track_parent_run("run") as parent,
        pool,
        process_group.stop_event_scope() as stop,
    ):
        reproduce = partial(
            dvc_repro.reproduce_stage,
            parent=parent,
            threads=settings.threads_per_stage(),
            timeout=math.inf,
            stop=stop,
        )
        while running or (schedule and not first_error):
            free = 0 if first_error else settings.workers - len(running)
            running |= {stage: begin(stage) for stage in schedule.take_ready(free)}
            stage, line = lines.get()
            if line.strip():
                if headline := progress.start_message(stage, line):
                    print(erase + headline, flush=True)
                print(f"{erase}{stage} | {line}", end="", flush=True)
            elif not line:
                try:
                    running.pop(stage).result()
                    progress.record_end(stage)
                    schedule.mark_done(stage)
                except InputError as error:
                    first_error = first_error or error
                    if running:
                        waiting = ", ".join(running)
                        print(f"{erase}{stage} | failed; waiting for {waiting}", flush=True)
        if first_error:
            raise first_error
