"""In which order stages start where several run at once.

A stage starts once all that it reads from has ended; of several that may, first the one with the
longest way from its start to the end of the DAG, since the whole takes at least as long as that.
"""

from collections.abc import Callable
from graphlib import TopologicalSorter

from pipelines.runner.dag import Dag


class StageScheduler:
    """The stale stages of a DAG. seconds: how long a stage is expected to take."""

    def __init__(self, graph: Dag, seconds: Callable[[str], float]):
        stale = set(graph.stale)
        before = {stage: stale.intersection(graph.dependencies(stage)) for stage in graph.stale}
        self.sorter = TopologicalSorter(before)
        self.sorter.prepare()
        self.ready: list[str] = []
        self.critical_path_seconds = dict.fromkeys(
            graph.stale, 0.0
        )  # seconds, of the stage and what waits for it
        for stage in reversed(graph.stale):
            self.critical_path_seconds[stage] += seconds(stage)
            for other in before[stage]:
                self.critical_path_seconds[other] = max(
                    self.critical_path_seconds[other], self.critical_path_seconds[stage]
                )

    def take_ready(self, most: int) -> list[str]:
        """At most so many stages that may start now and have not yet."""
        self.ready += self.sorter.get_ready()
        self.ready.sort(key=lambda stage: -self.critical_path_seconds[stage])
        chosen, self.ready = self.ready[:most], self.ready[most:]
        return chosen

    def mark_done(self, stage: str) -> None:
        """`stage` has ended: what waited for it alone may start."""
        self.sorter.done(stage)

    def __bool__(self) -> bool:
        """Whether anything has not ended yet."""
        return self.sorter.is_active()
