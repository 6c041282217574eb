"""The project of the current folder: its environment, and files of its commands."""

import os
import sys
from pathlib import Path

from stages.shared.runtime.stage import InputError, work_dir

SITE_CACHE = Path("/var/tmp/dvc")  # DVC's default on Linux, see its dirs.py


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` with a project. Raises InputError if there is none."""
    for folder in [start, *start.parents]:
        if is_project(folder):
            return folder
    raise InputError(
        f"{start} is not in a Polymuse project: go to a folder with dvc.yaml and params.yaml"
    )


def is_project(folder: Path) -> bool:
    return (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file()


def enter_project() -> None:
    """Change to the project's root folder and set the environment variables of its commands."""
    folder = find_project(Path.cwd())
    os.chdir(folder)
    path = os.environ.get("PATH", os.defpath)
    # Stages run with this Python even if its virtual environment is not activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    os.environ["POLYMUSE_HOME"] = str(work_dir())
    if not _is_writable(SITE_CACHE):
        os.environ.setdefault("DVC_SITE_CACHE_DIR", str(folder / ".dvc" / "tmp" / "site"))


def write_atomically(path: Path, text: str) -> None:
    """Write all of `text`, with its line endings, or leave the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(text.encode())
    partial.replace(path)


def _is_writable(folder: Path) -> bool:
    """Whether files can be created in `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
