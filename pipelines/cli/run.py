"""`polymuse run`: every stale stage, `run.workers` at once, and the figures at the end."""

import math
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

from pipelines import summary
from pipelines.runner import dag, dvc_repro, process_group
from pipelines.runner.eta import Durations, Progress
from pipelines.runner.scheduler import Schedule
from stages.shared.runtime.stage import WrongInput

ERASE = "\x1b[K"  # what a longer progress bar left of the line (ECMA-48: erase in line)


def main(targets: list[str]) -> None:
    """Bring `targets`, or everything, up to date and print the headline table.

    Raises WrongInput with the sentence of the stage that failed.
    """
    settings = dvc_repro.settings()
    graph = dag.read(targets)
    if graph.stale:
        dvc_repro.check(graph)
        follow(graph, settings)
    else:
        print("Everything is up to date.")
    print(summary.table())


def follow(graph: dag.Dag, settings: dvc_repro.Params) -> None:
    """Run every stale stage and show what each writes, with a headline where it starts.

    Once one has failed no other starts, and those under way end. Raises WrongInput then.
    """
    durations = Durations(settings.expected_seconds)
    schedule = Schedule(graph, durations.seconds)
    progress = Progress(schedule.way, durations, settings.workers)
    erase = ERASE if sys.stdout.isatty() else ""
    fault: WrongInput | None = None
    running: dict[str, Future] = {}
    lines: SimpleQueue[tuple[str, str]] = SimpleQueue()  # each with its stage; "" when that ended

    def begin(stage: str) -> Future:
        future = pool.submit(reproduce, stage, lambda line: lines.put((stage, line)))
        future.add_done_callback(lambda _: lines.put((stage, "")))
        return future

    pool = ThreadPoolExecutor(settings.workers)
    with dvc_repro.tracked("run") as parent, pool, process_group.stopping() as stop:
        given = {"parent": parent, "threads": settings.threads(), "timeout": math.inf, "stop": stop}
        reproduce = partial(dvc_repro.reproduce, **given)
        while running or (schedule and not fault):
            free = 0 if fault else settings.workers - len(running)
            running |= {stage: begin(stage) for stage in schedule.start(free)}
            stage, line = lines.get()
            if line.strip():
                if start := progress.starts(stage, line):
                    print(erase + start, flush=True)
                print(f"{erase}{stage} | {line}", end="", flush=True)
            elif not line:
                try:
                    running.pop(stage).result()
                    progress.ends(stage)
                    schedule.end(stage)
                except WrongInput as error:
                    fault = fault or error
                    if running:
                        print(f"{erase}{stage} | failed; {', '.join(running)} will end", flush=True)
        if fault:
            raise fault
