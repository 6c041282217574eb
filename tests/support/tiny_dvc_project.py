"""A DVC project of one-line stages, for tests of the commands, the runner and the flow."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from stages.shared.core.config import read_params

RUN_PARAMS = read_params()["run"]
DVC_COMMAND = [sys.executable, "-m", "dvc"]
LOGGED_STAGE = Path(__file__).with_name("logged_stage.py")
KILL_TIMEOUT_SECONDS = 5  # after which killed processes must be gone
SLEEP_COMMAND = "sh -c 'sleep 300 & sleep 300; echo never'"  # a stage with a child process


def create_project(folder: Path, run: dict | None = None, **stages: dict) -> Path:
    """A git and DVC repository in `folder` with these stages; `run` overrides values of `run`."""
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


def make_logged_stage(target: str, seconds: float, *sources: str) -> dict:
    """A stage that takes some seconds and logs its start and end, as `read_log` returns them."""
    command = f"exec python {LOGGED_STAGE} --output {target} --seconds {seconds}"
    return {"cmd": command, "deps": list(sources), "outs": [target]}


def read_log(folder: Path) -> list[str]:
    """The starts and ends of the logged stages, e.g. "begin a"."""
    log = folder / "log"
    return log.read_text().splitlines() if log.exists() else []


def make_failing_stage(sentence: str, target: str, *sources: str) -> dict:
    """A stage that fails with a one-sentence error."""
    command = f"echo 'error: {sentence}' >&2; exit 1"
    return {"cmd": command, "deps": list(sources), "outs": [target]}


def make_rendezvous_stage(target: str, other: str, *sources: str) -> dict:
    """A stage that ends only after the stage with target `other` has started."""
    command = f"touch {target}.began; while [ ! -e {other}.began ]; do sleep .05; done"
    return make_copy_stage(target, *sources) | {"cmd": f"{command}; touch {target}"}


def list_processes(folder: Path) -> list[psutil.Process]:
    """The processes in `folder`: stages, their children and their drivers."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return processes


def wait_until(condition, seconds: float = 60) -> None:
    """Wait for `condition()`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.05)


def is_sleeping(folder: Path) -> bool:
    """Whether both processes of SLEEP_COMMAND run."""
    try:
        return sum(process.name() == "sleep" for process in list_processes(folder)) == 2
    except psutil.NoSuchProcess:  # it ended in between
        return False


def check_killed_driver_leaves_nothing(
    command: list[str], folder: Path, sent: int, environment: dict[str, str] | None = None
) -> None:
    """Start a driver of SLEEP_COMMAND in `folder`, send it the signal, and look what is left."""
    driver = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: is_sleeping(folder))
    driver.send_signal(sent)
    _, errors = driver.communicate(timeout=30)
    assert driver.returncode == (-sent if sent == signal.SIGKILL else 128 + sent)
    assert "Traceback" not in errors
    wait_until(lambda: not list_processes(folder), KILL_TIMEOUT_SECONDS)
