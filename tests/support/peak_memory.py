"""The memory that a command needs."""

import os
import subprocess
import sys
from pathlib import Path

MEASURE = """
import resource, subprocess, sys
result = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
sys.stderr.buffer.write(result.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(result.returncode)
"""


def measure_peak_memory(command: list[str], folder: Path) -> int:
    """Run a command in `folder` with two threads; the peak of its resident memory in bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)
