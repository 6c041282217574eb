"""`polymuse run`: every stale stage, `run.workers` at once, and the figures at the end."""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from pipelines import dag, headline, process, repro
from pipelines.progress import Durations, Progress
from pipelines.schedule import Schedule


def main(targets: list[str]) -> None:
    """Bring `targets`, or everything, up to date and print the headline table.

    Raises WrongInput with the sentence of the stage that failed.
    """
    settings = repro.settings()
    graph = dag.read(targets)
    if graph.stale:
        repro.check(graph)
        follow(graph, settings)
    else:
        print("Everything is up to date.")
    print(headline.table())


def follow(graph: dag.Dag, settings: repro.Params) -> None:
    """Run every stale stage and show what each writes, with a headline where it starts.

    The first that fails ends those beside it; the next run goes on where they were.
    """
    durations = Durations(settings.expected_seconds)
    schedule = Schedule(graph, durations.seconds)
    progress = Progress(schedule.way, durations, settings.workers)
    running: dict[str, Future] = {}
    lines: SimpleQueue[tuple[str, str]] = SimpleQueue()  # each with its stage; "" when that ended
    pool = ThreadPoolExecutor(settings.workers)
    with repro.tracked("run") as parent, pool, process.stopping() as stop:
        given = {"parent": parent, "timeout": math.inf, "stop": stop}
        given["threads"] = settings.threads()
        while schedule:
            for stage in schedule.start(settings.workers - len(running)):
                running[stage] = pool.submit(_reproduce, stage, lines, **given)
            stage, line = lines.get()
            if not line:
                running.pop(stage).result()
                progress.ends(stage)
                schedule.end(stage)
            elif line.strip():
                if start := progress.starts(stage, line):
                    print(start, flush=True)
                print(f"{stage} | {line}", end="", flush=True)


def _reproduce(stage: str, lines: SimpleQueue, **given: object) -> None:
    try:
        repro.reproduce(stage, lambda line: lines.put((stage, line)), **given)
    finally:
        lines.put((stage, ""))
