"""A DVC project of one-line stages, for the tests of what drives them."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from stages.shared.core.config import read_params

RUN_PARAMS = read_params()["run"]
DVC_COMMAND = [sys.executable, "-m", "dvc"]
KILL_TIMEOUT_SECONDS = 5  # seconds within which Linux has ended what was killed
SLEEP_COMMAND = "sh -c 'sleep 300 & sleep 300; echo never'"  # a stage with a process of its own


def create_project(folder: Path, run: dict | None = None, **stages: dict) -> Path:
    """A git and DVC repository in `folder` with these stages; `run` changes numbers of it."""
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump({"run": RUN_PARAMS | (run or {})}))
    write_stages(folder, **stages)
    for command in (["git", "init", "-q"], [*DVC_COMMAND, "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


def write_stages(folder: Path, **stages: dict) -> None:
    """Replace the stages of a project."""
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))


def make_copy_stage(target: str, *sources: str) -> dict:
    """A stage that copies its sources into `target`."""
    text = f"echo {target} | cat {' '.join(sources)} - > {target}"
    return {"cmd": text, "deps": list(sources), "outs": [target]}


def make_failing_stage(sentence: str, target: str, *sources: str) -> dict:
    """A stage that ends as ours do for wrong input."""
    command = f"echo 'error: {sentence}' >&2; exit 1"
    return {"cmd": command, "deps": list(sources), "outs": [target]}


def make_rendezvous_stage(target: str, other: str, *sources: str) -> dict:
    """A stage that ends only once the one that `other` is the target of has begun."""
    command = f"touch {target}.began; while [ ! -e {other}.began ]; do sleep .05; done"
    return make_copy_stage(target, *sources) | {"cmd": f"{command}; touch {target}"}


def list_processes(folder: Path) -> list[psutil.Process]:
    """What runs in `folder`: stages, their children and what drives them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_until(condition, seconds: float = 60) -> None:
    """Fail unless `condition()` holds within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.05)


def is_sleeping(folder: Path) -> bool:
    """Whether both processes of SLEEPER run."""
    return sum(process.name() == "sleep" for process in list_processes(folder)) == 2
