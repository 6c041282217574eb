"""The files of this repository, and copies of the project for tests."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def list_files(folder: Path) -> dict[str, int]:
    """Path in `folder` -> time of the last change, for every file."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file()
    }


def list_project_files() -> list[Path]:
    """Files that git tracks or would track, relative to the project's root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(path for name in listed.split("\0") if (path := Path(name)).is_file() and name)


def clone_project(parent: Path) -> Path:
    """Copy the project with uncommitted edits into `parent`."""
    folder = parent / "project"
    for name in list_project_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for command in [["init", "-q"], ["add", "-A"]]:
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder
