"""`polymuse run`: `dvc repro` with the time left, one MLflow parent, and the figures at the end."""

import math
from threading import Event

from pipelines import dag, headline, repro
from pipelines.progress import Durations, Progress


def main(targets: list[str]) -> None:
    """Bring `targets`, or everything, up to date and print the headline table.

    Raises WrongInput with the sentence of the stage that failed.
    """
    expected = repro.settings().expected_seconds
    graph = dag.read(targets)
    if graph.stale:
        repro.check(graph)
        follow(targets, Progress(graph.stale, Durations(expected)))
    else:
        print("Everything is up to date.")
    print(headline.table())


def follow(targets: list[str], progress: Progress) -> None:
    """Run `dvc repro` and show what it writes, with a headline at the start of each stage."""

    def show(line: str) -> None:
        if start := progress.starts(line):
            print(start, flush=True)
        print(line, end="", flush=True)

    with repro.tracked("run") as parent:
        repro.reproduce(["repro", *targets], show, parent, math.inf, Event())
        progress.ends()
