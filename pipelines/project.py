"""Where the user's project is, and the environment that its commands run in."""

import os
import sys
from pathlib import Path

from stages.shared.runtime.stage import InputError, work_dir

SITE_CACHE = Path("/var/tmp/dvc")  # DVC's own choice on Linux, in its dirs.py


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` that holds a project. Raises WrongInput if none."""
    for folder in [start, *start.parents]:
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    raise InputError(
        f"{start} is in no Polymuse project: go to a folder that has dvc.yaml and params.yaml"
    )


def enter_project() -> None:
    """Make the project of the current folder the current folder and prepare the environment."""
    folder = find_project(Path.cwd())
    os.chdir(folder)
    # Stages run with this Python, whether or not its virtual environment is activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["POLYMUSE_HOME"] = str(work_dir())
    if not _is_writable(SITE_CACHE):
        os.environ.setdefault("DVC_SITE_CACHE_DIR", str(folder / ".dvc" / "tmp" / "site"))


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or `folder` itself be made."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
