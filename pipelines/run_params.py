"""Parameters of one run: the parameter files have other values until it ends.

    with run_params.use_params(after, print):
        ...                  # run stages

A file that somebody edited meanwhile is not restored. If the run is killed, the next command of the
project restores the files.

writes  the parameter files; POLYMUSE_HOME/run_params.json, their text before and during the run;
        POLYMUSE_HOME/run_params.lock, locked while the run lives
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.project import write_atomically
from stages.shared.core.config import params_files
from stages.shared.runtime.errors import damaged_file, work_dir


@contextmanager
def use_params(after: Mapping[str, str], report: Callable[[str], object]) -> Iterator[None]:
    """Let the parameter files have the text `after` (by name) in this block.

    `report` is told which files change, and which ones are not restored.
    """
    before = {str(file): file.read_bytes().decode() for file in params_files()}
    changed = [name for name in before if after[name] != before[name]]
    if not changed:
        yield
        return
    with _lock():
        state = {name: [before[name], after[name]] for name in changed}
        write_atomically(_state_file(), json.dumps(state))
        try:
            for name in changed:
                write_atomically(Path(name), after[name])
            report(f"{' and '.join(changed)}: other values until this run ends")
            yield
        finally:
            _restore(report)


def restore_params(report: Callable[[str], object]) -> None:
    """Restore the parameter files after a run that was killed; `report` is told about it.

    Raises InputError if the record of that run is damaged.
    """
    if not _state_file().exists():
        return
    try:
        with _lock():
            if _state_file().exists():
                report("A run with other parameters was killed: restoring the parameter files")
                _restore(report)
    except Timeout:  # that run lives
        return


def _restore(report: Callable[[str], object]) -> None:
    try:
        state = json.loads(_state_file().read_text(encoding="utf-8"))
        files = [(Path(name), before, during) for name, (before, during) in state.items()]
    except (ValueError, TypeError, AttributeError) as error:
        fix = "restore params.yaml and config/ from git, then delete it"
        raise damaged_file(_state_file(), error, fix) from None
    for file, before, during in files:
        current = file.read_bytes().decode() if file.exists() else ""
        if current == during:
            write_atomically(file, before)
        elif current != before:
            copy = work_dir() / "params_before_run" / file
            write_atomically(copy, before)
            report(f"{file} was edited during the run and stays; its text before is in {copy}")
    _state_file().unlink()


def _state_file() -> Path:
    return work_dir() / "run_params.json"


def _lock() -> FileLock:
    work_dir().mkdir(parents=True, exist_ok=True)
    return FileLock(work_dir() / "run_params.lock", timeout=0)
