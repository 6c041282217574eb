"""`polymuse run`: every stale stage, `run.workers` at once, and the figures at the end."""

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

ERASE_LINE = "\x1b[K"  # what a longer progress bar left of the line (ECMA-48: erase in line)


def main(targets: list[str]) -> None:
    """Bring `targets`, or everything, up to date and print the headline table.

    Raises WrongInput with the sentence of the stage that failed.
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
    """Run every stale stage and show what each writes, with a headline where it starts.

    Once one has failed no other starts, and those under way end. Raises WrongInput then.
    """
    durations = StageDurations(settings.expected_seconds)
    schedule = StageScheduler(graph, durations.estimate)
    progress = RunProgress(schedule.critical_path_seconds, durations, settings.workers)
    erase = ERASE_LINE if sys.stdout.isatty() else ""
    fault: InputError | None = None
    running: dict[str, Future] = {}
    lines: SimpleQueue[tuple[str, str]] = SimpleQueue()  # each with its stage; "" when that ended

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
        given = {
            "parent": parent,
            "threads": settings.threads_per_stage(),
            "timeout": math.inf,
            "stop": stop,
        }
        reproduce = partial(dvc_repro.reproduce_stage, **given)
        while running or (schedule and not fault):
            free = 0 if fault else settings.workers - len(running)
            running |= {stage: begin(stage) for stage in schedule.take_ready(free)}
            stage, line = lines.get()
            if line.strip():
                if start := progress.start_message(stage, line):
                    print(erase + start, flush=True)
                print(f"{erase}{stage} | {line}", end="", flush=True)
            elif not line:
                try:
                    running.pop(stage).result()
                    progress.record_end(stage)
                    schedule.mark_done(stage)
                except InputError as error:
                    fault = fault or error
                    if running:
                        print(f"{erase}{stage} | failed; {', '.join(running)} will end", flush=True)
        if fault:
            raise fault
