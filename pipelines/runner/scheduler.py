"""The order in which stages start when several run at once.

A stage is ready when all its dependencies are done. Among the ready stages, the one with the
longest path to the end of the DAG starts first, because that path bounds the duration of the run.
"""

from collections.abc import Callable
from graphlib import TopologicalSorter

from pipelines.runner.dag import Dag


class StageScheduler:
    """The stale stages of a DAG. estimate: stage -> its expected duration in seconds."""

    def __init__(self, graph: Dag, estimate: Callable[[str], float]):
        stale = set(graph.stale)
        dependencies = {
            stage: stale.intersection(graph.dependencies(stage)) for stage in graph.stale
        }
        self.sorter = TopologicalSorter(dependencies)
        self.sorter.prepare()
        self.ready: list[str] = []
        # From the start of the stage to the end of the longest chain of stages that depend on it.
        path_seconds = self.critical_path_seconds = dict.fromkeys(graph.stale, 0.0)
        for stage in reversed(graph.stale):
            path_seconds[stage] += estimate(stage)
            for dependency in dependencies[stage]:
                path_seconds[dependency] = max(path_seconds[dependency], path_seconds[stage])

    def take_ready(self, limit: int) -> list[str]:
        """At most `limit` ready stages; each stage is returned once."""
        self.ready += self.sorter.get_ready()
        self.ready.sort(key=lambda stage: -self.critical_path_seconds[stage])
        selected, self.ready = self.ready[:limit], self.ready[limit:]
        return selected

    def mark_done(self, stage: str) -> None:
        """Mark `stage` as done, which may make other stages ready."""
        self.sorter.done(stage)

    def __bool__(self) -> bool:
        """Whether some stage is not done yet."""
        return self.sorter.is_active()
