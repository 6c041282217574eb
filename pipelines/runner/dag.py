"""The DAG of DVC: its stages, their dependencies, and which stages are stale."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipelines import renamed_keys
from pipelines.runner import up_to_date
from stages.shared.core import config
from stages.shared.runtime.stage import InputError


@dataclass(frozen=True)
class Dag:
    """Stages by their names in `dvc repro`, e.g. train_sft@flexmuse, in topological order."""

    stages: list[str]
    edges: set[tuple[str, str]]  # (before, after)
    stale: list[str]  # reported by `dvc status`, and all stages downstream
    commands: dict[str, str]  # by stage

    def dependencies(self, stage: str) -> list[str]:
        """The stages whose outputs `stage` reads."""
        return [before for before in self.stages if (before, stage) in self.edges]


def load_dag(targets: Sequence[str]) -> Dag:
    """The DAG of the current folder's project: `targets` and their dependencies, or all stages.

    Waits while another DVC command holds the repository's lock. Raises InputError for errors in
    dvc.yaml, params.yaml or the targets.
    """
    logging.getLogger("dvc").setLevel(logging.ERROR)
    params = config.read_params()
    renamed_keys.check_names(params)
    _check_empty_sections(params)
    try:
        repo = Repo(_wait_for_lock=True)
        graph = repo.index.graph.reverse()  # DVC's edges point from a stage to its dependencies
        selected = [stage for target in targets for stage in repo.stage.collect(target)]
        paths = _list_files(repo)
        fingerprint = up_to_date.fingerprint_files(paths) if paths else ""
        status = repo.status()
    except DvcException as error:
        raise InputError(f"DVC cannot read the project: {_format_error(error)}") from None
    if fingerprint and not status:
        up_to_date.record(paths, fingerprint)
    if selected:
        ancestors = (nx.ancestors(graph, stage) for stage in selected)
        graph = graph.subgraph(set(selected).union(*ancestors))
    stages = {stage.addressing: stage for stage in nx.lexicographical_topological_sort(graph, str)}
    changed = {stages[name] for name in status if name in stages}
    stale = changed.union(*(nx.descendants(graph, stage) for stage in changed))
    return Dag(
        stages=list(stages),
        edges={(before.addressing, after.addressing) for before, after in graph.edges},
        stale=[name for name, stage in stages.items() if stage in stale],
        commands={name: stage.cmd for name, stage in stages.items()},
    )


def _list_files(repo: Repo) -> list[str]:
    """All dependencies and outputs, relative to the project; [] if some are not local."""
    files = [*repo.index.deps, *repo.index.outs]
    files = [file for file in files if not isinstance(file, ParamsDependency)]
    if not all(file.protocol == "local" for file in files):
        return []
    return sorted({os.path.relpath(file.fs_path) for file in files})


def _check_empty_sections(params: dict[str, Any]) -> None:
    """Raises InputError for a section without rows: YAML reads it as null, which DVC rejects."""
    for name, rows in params.items():
        if rows is None:
            raise InputError(
                f"params.yaml: {name} has no row: write `{name}: {{}}` if that is intended"
            )


def _format_error(error: BaseException) -> str:
    """The messages of an error and its causes, on one line."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    return ": ".join(message for message in messages if message)
