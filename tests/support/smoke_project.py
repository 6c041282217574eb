"""A project with the preset smoke in which every stage has run: built once, copied by tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from stages.shared.runtime.artifact_addresses import correct_addresses
from tests.support.project_files import clone_project

BIN = Path(sys.executable).parent
UNSET = ("MLFLOW_TRACKING_URI", "POLYMUSE_HOME")  # a project uses its own store
IDENTITY = {"user.name": "Test", "user.email": "test@localhost"}


def run_command(folder: Path, *words: str) -> str:
    """Run a command in the project; returns its standard output. Fails with its last lines."""
    done = subprocess.run(
        words, cwd=folder, env=build_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def build_environment() -> dict[str, str]:
    """The variables of a shell in which the virtual environment is active."""
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    return environment | {"PATH": f"{BIN}{os.pathsep}{environment['PATH']}"}


def find_or_build(folder: Path) -> Path:
    """The finished project in `folder`; the first of several test processes builds it."""
    finished = folder / "finished"
    with FileLock(f"{folder}.lock"):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            build(folder)
            finished.touch()
    return folder / "project"


def build(parent: Path) -> None:
    """Run the whole DAG with the preset smoke in `parent/project`, and commit it on `main`."""
    folder = clone_project(parent)
    run_command(folder, "git", "symbolic-ref", "HEAD", "refs/heads/main")
    for name, value in IDENTITY.items():
        run_command(folder, "git", "config", name, value)
    run_command(folder, "polymuse", "preset", "smoke")
    run_command(folder, "polymuse", "run")
    run_command(folder, "git", "add", "-A")
    run_command(folder, "git", "commit", "-q", "-m", "Smoke")


def copy_project(source: Path, target: Path) -> Path:
    """Copy a finished project; the files of DVC's cache, which never change, are hard links."""

    def copy(file: str, new: str) -> None:
        if ".dvc/cache/files" in file:
            os.link(file, new)
        else:
            shutil.copy2(file, new)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)
    correct_addresses(target / "mlflow.db")
    return target
