"""The DAG of DVC: its stages, their dependencies, and which stages are stale."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

from pipelines import renamed_keys
from pipelines.runner import dvc_locks, up_to_date
from stages.shared.core import config
from stages.shared.runtime.stage import InputError

FIXES = {  # part of a message of DVC -> what mends it
    "dvc.lock": "run `polymuse doctor --fix`",
    "RWLock": "run `polymuse doctor --fix`",
    "config file error": "correct .dvc/config, or run `git restore .dvc/config`",
}
ROW_NAME_PATTERN = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Dag:
    """Stages by their names in `dvc repro`, e.g. train_sft@flexmuse, in topological order."""

    stages: list[str]
    edges: set[tuple[str, str]]  # (before, after)
    stale: list[str]  # reported by `dvc status`, and all stages downstream
    commands: dict[str, str]  # by stage; "" for data that `dvc add` or `dvc import-url` tracks
    forced: frozenset[str] = frozenset()  # stale ones that run even if nothing changed

    def dependencies(self, stage: str) -> list[str]:
        """The stages whose outputs `stage` reads."""
        return [before for before in self.stages if (before, stage) in self.edges]


def load_dag(targets: Sequence[str], force: bool = False) -> Dag:
    """The DAG of the current folder's project: `targets` and their dependencies, or all stages.

    force: the targets, or all stages, are stale even if nothing changed. Waits while another DVC
    command holds the repository's lock. Raises Busy if one has locked files of the project, and
    InputError for errors in dvc.yaml, params.yaml or the targets.
    """
    logging.getLogger("dvc").setLevel(logging.ERROR)
    params = config.read_params()
    renamed_keys.check_names(params)
    _check_empty_sections(params)
    _check_corpora(params.get("corpora"))
    try:
        repo = Repo(_wait_for_lock=True)
        graph = repo.index.graph.reverse()  # DVC's edges point from a stage to its dependencies
        selected = [stage for target in targets for stage in repo.stage.collect(target)]
        paths = _list_files(repo)
        fingerprint = up_to_date.fingerprint_files(paths) if paths else ""
        status = repo.status()
    except DvcException as error:
        reason = _format_error(error)
        fixes = [fix for place, fix in FIXES.items() if place in reason]
        kind = dvc_locks.Busy if isinstance(error, LockError) else InputError
        raise kind(": ".join(["DVC cannot read the project", reason, *fixes[:1]])) from None
    except UnicodeDecodeError:  # DVC checks this for YAML, but not for the JSON of its locks
        raise InputError("DVC cannot read .dvc/tmp/rwlock: run `polymuse doctor --fix`") from None
    except OSError as error:  # in a dependency, such as a corpus
        raise InputError(
            f"DVC cannot read {error.filename or 'a file'} ({error.strerror or error}): remove or "
            "repair it"
        ) from None
    if fingerprint and not status:
        up_to_date.record(paths, fingerprint)
    if selected:
        ancestors = (nx.ancestors(graph, stage) for stage in selected)
        graph = graph.subgraph(set(selected).union(*ancestors))
    stages = {stage.addressing: stage for stage in nx.lexicographical_topological_sort(graph, str)}
    forced = set(selected or stages.values()) if force else set()
    changed = forced.union(stages[name] for name in status if name in stages)
    stale = changed.union(*(nx.descendants(graph, stage) for stage in changed))
    return Dag(
        stages=list(stages),
        edges={(before.addressing, after.addressing) for before, after in graph.edges},
        stale=[name for name, stage in stages.items() if stage in stale],
        commands={name: stage.cmd or "" for name, stage in stages.items()},
        forced=frozenset(stage.addressing for stage in forced),
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


def _check_corpora(corpora: Any) -> None:
    """Raises InputError for a corpus that DVC or the shell would misread, or cannot read.

    Its name is part of the names of stages and folders, and its path stands in single quotes.
    """
    for name, row in corpora.items() if isinstance(corpora, dict) else ():
        if not isinstance(name, str) or not ROW_NAME_PATTERN.fullmatch(name):
            raise InputError(
                f"params.yaml: corpora: the name {name!r} is not usable: give one of letters, "
                "digits, _ and -"
            )
        path = row.get("path") if isinstance(row, dict) else None
        if not isinstance(path, str):
            continue  # validation reports it
        if "'" in path or "\n" in path:
            raise InputError(
                f"params.yaml: corpora.{name}.path is {path!r}: rename the folder, since a path "
                "may contain neither ' nor a line end"
            )
        _check_folder(name, Path(path))


def _check_folder(name: str, folder: Path) -> None:
    """Raises InputError for a file that DVC cannot hash: a dangling link, or no Unicode name."""
    for place, folders, files in os.walk(folder):
        for entry in (*folders, *files):
            path = Path(place, entry)
            printable = str(path).encode(errors="replace").decode()
            if printable != str(path):
                fault = "has a name that is not UTF-8"
            elif path.is_symlink() and not path.exists():
                fault = "is a link to a file that does not exist"
            else:
                continue
            raise InputError(
                f"corpora.{name}: {printable} {fault}: remove or rename it, because DVC cannot "
                "track the folder with it"
            )


def _format_error(error: BaseException) -> str:
    """The messages of an error and its causes, on one line."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    return ": ".join(message for message in messages if message)
