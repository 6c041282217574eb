"""The DAG as DVC knows it: the stages, what each waits for, and which of them are stale."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.shared.core import config
from stages.shared.runtime.stage import InputError


@dataclass(frozen=True)
class Dag:
    """Stages by the names of `dvc repro`, e.g. train_sft@flexmuse, each after what it waits for."""

    stages: list[str]
    edges: set[tuple[str, str]]  # (before, after)
    stale: list[str]  # what `dvc status` reports, and everything that comes after
    commands: dict[str, str]  # by stage

    def dependencies(self, stage: str) -> list[str]:
        """The stages whose outputs `stage` reads."""
        return [other for other in self.stages if (other, stage) in self.edges]


def load_dag(targets: Sequence[str]) -> Dag:
    """The DAG of the project in the current folder: of `targets` and all they need, or the whole.

    Waits while another DVC command holds the repository's lock. Raises WrongInput where DVC finds
    a fault in dvc.yaml, params.yaml or the targets.
    """
    logging.getLogger("dvc").setLevel(logging.ERROR)
    _check_empty_sections()
    try:
        repo = Repo(_wait_for_lock=True)
        graph = repo.index.graph.reverse()  # DVC's edges point from a stage to what it reads
        wanted = [stage for target in targets for stage in repo.stage.collect(target)]
        status = repo.status()
    except DvcException as error:
        raise InputError(f"DVC cannot read the project: {_format_error(error)}") from None
    if wanted:
        graph = graph.subgraph(set(wanted).union(*(nx.ancestors(graph, one) for one in wanted)))
    stages = {stage.addressing: stage for stage in nx.lexicographical_topological_sort(graph, str)}
    touched = {stages[name] for name in status if name in stages}
    stale = touched.union(*(nx.descendants(graph, stage) for stage in touched))
    return Dag(
        stages=list(stages),
        edges={(before.addressing, after.addressing) for before, after in graph.edges},
        stale=[name for name, stage in stages.items() if stage in stale],
        commands={name: stage.cmd for name, stage in stages.items()},
    )


def _check_empty_sections() -> None:
    """Raises WrongInput at a section whose rows were all deleted: it is null, and DVC stops."""
    for name, rows in config.read_params().items():
        if rows is None:
            raise InputError(
                f"params.yaml: {name} has no row: write `{name}: {{}}` where none is meant"
            )


def _format_error(error: BaseException) -> str:
    """An error of DVC with the causes beneath it, in one line."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    return ": ".join(message for message in messages if message)
