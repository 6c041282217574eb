"""A stage as DVC starts it, killed after its first checkpoint and started again."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.project_files import ROOT


def run_killed_and_uninterrupted(
    stage: str, options: dict[str, str | Path], folder: Path
) -> tuple[Path, Path]:
    """The folders that a killed and an undisturbed run of a stage wrote; nothing before its end."""

    def start(target: str, home: str) -> subprocess.Popen:
        arguments = options | {"output": folder / target}
        command = [f"--{name}={value}" for name, value in arguments.items()]
        return subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}", *command],
            env=os.environ | {"PYTHONPATH": str(ROOT), "POLYMUSE_HOME": str(folder / home)},
            stderr=subprocess.DEVNULL,
        )

    killed = start("killed", "one")
    checkpoints = folder / "one" / "checkpoints" / f"{stage}@{options['run']}"
    while not list(checkpoints.glob("*.pt")) and killed.poll() is None:
        time.sleep(0.005)
    killed.kill()
    assert killed.wait() != 0
    assert not (folder / "killed").exists()
    running = [start("killed", "one"), start("whole", "two")]
    assert [process.wait() for process in running] == [0, 0]
    return folder / "killed", folder / "whole"
