"""Whether the inputs, code, parameters and outputs of a run are those that dvc.lock records.

reads   dvc.yaml, dvc.lock, and what the stages of the run and before them read and write
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import Stage

from pipelines.evaluation import EVALUATION_STAGES, find_row
from stages.shared.runtime.stage import InputError

CODE_DIR = "stages/"
STATES = {  # of DVC -> in words
    "modified": "was modified",
    "deleted": "is missing",
    "new": "is new",
    "not in cache": "is not in the cache of DVC",
}


@dataclass(frozen=True)
class Change:
    """A difference to dvc.lock, which several stages may have.

    kind: code | params | input | output | command | run
    """

    kind: str
    text: str
    stages: list[str]


@dataclass(frozen=True)
class Verification:
    """The differences, and how many stages were compared."""

    num_stages: int
    changes: list[Change]


def verify(run: str) -> Verification:
    """Compare the evaluation of a run and all stages before it with dvc.lock.

    Raises InputError if there is no such run, or if DVC cannot read the project.
    """
    family, _ = find_row(run)
    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        with Repo(_wait_for_lock=True) as repo:
            (target,) = repo.stage.collect(f"{EVALUATION_STAGES[family]}@{run}")
            graph = repo.index.graph  # its edges point from a stage to its dependencies
            before = graph.subgraph({target, *nx.descendants(graph, target)}).reverse()
            status = repo.status([target.addressing], with_deps=True)
            stages = list(nx.lexicographical_topological_sort(before, str))
            changes: dict[tuple[str, str], list[str]] = {}
            for stage in stages:
                for change in _describe_stage(stage, status.get(stage.addressing, [])):
                    changes.setdefault(change, []).append(stage.addressing)
    except DvcException as error:
        reason = " ".join(str(error).split())
        raise InputError(f"DVC cannot read the project ({reason}): run `polymuse doctor`") from None
    return Verification(len(stages), [Change(*key, names) for key, names in changes.items()])


def _describe_stage(stage: Stage, status: list[Any]) -> Iterator[tuple[str, str]]:
    """Kind and text of each difference of a stage. status: of DVC, for this stage."""
    if status and not any(dep.hash_info for dep in stage.deps):
        yield "run", "has not run, or dvc.lock does not record it"
        return
    for entry in status:
        if entry == "changed command":
            yield "command", "its command in dvc.yaml was modified"
        elif isinstance(entry, dict):
            for path, state in entry.get("changed deps", {}).items():
                if isinstance(state, dict):
                    yield from (("params", text) for text in _describe_params(stage, path, state))
                else:
                    yield "code" if path.startswith(CODE_DIR) else "input", f"{path} {_say(state)}"
            for path, state in entry.get("changed outs", {}).items():
                yield "output", f"{path} {_say(state)}"


def _say(state: str) -> str:
    return STATES.get(state, state)


def _describe_params(stage: Stage, file: str, keys: dict[str, str]) -> Iterator[str]:
    """Old and new value of each changed number below `keys`, sections of a parameter file."""
    (dep,) = (d for d in stage.deps if isinstance(d, ParamsDependency) and d.def_path == file)
    recorded: Any = dep.hash_info.value or {}  # values by key, not a hash
    present = dep.read_params()
    for key in keys:
        before, after = (
            flatten({key: side[key]} if key in side else {}) for side in (recorded, present)
        )
        for name in before | after:
            if before.get(name) != after.get(name):
                old, new = (side.get(name, "missing") for side in (before, after))
                yield f"{file}: {name} was {old}, is {new}"


def flatten(values: Any, parent: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(values, dict) or (parent and not values):
        return {parent: values}
    children = (flatten(value, f"{parent}.{key}".lstrip(".")) for key, value in values.items())
    return {name: value for child in children for name, value in child.items()}
