"""Run a stage as DVC does, kill it after its first checkpoint, and run it again."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.project_files import ROOT


def run_killed_and_uninterrupted(
    stage: str, options: dict[str, str | Path], folder: Path
) -> tuple[Path, Path]:
    """The output folders of a killed and resumed run, and of an uninterrupted run.

    options: of the stage's command, without output
    """

    def start(output: str, home: str) -> subprocess.Popen:
        arguments = options | {"output": folder / output}
        command = [f"--{name}={value}" for name, value in arguments.items()]
        return subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}", *command],
            env=os.environ | {"PYTHONPATH": str(ROOT), "POLYMUSE_HOME": str(folder / home)},
            stderr=subprocess.DEVNULL,
        )

    killed = start("killed", "resumed_home")
    checkpoints = folder / "resumed_home" / "checkpoints" / f"{stage}@{options['run']}"
    while not list(checkpoints.glob("*.pt")) and killed.poll() is None:
        time.sleep(0.005)
    killed.kill()
    assert killed.wait() != 0
    assert not (folder / "killed").exists()
    running = [start("killed", "resumed_home"), start("uninterrupted", "other_home")]
    assert [process.wait() for process in running] == [0, 0]
    return folder / "killed", folder / "uninterrupted"
