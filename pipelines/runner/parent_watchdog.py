"""Run one command and take its whole process group down when the driver dies, however it dies.

python leash.py DRIVER_PID COMMAND...      (started by pipelines/runner/process_group.py, which makes the group)

A driver that is killed cannot clean up after itself: Linux then sends this process SIGTERM, and it
kills its group, itself included. It imports nothing of the project, so that it starts at once.
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def kill_process_group(*_: object) -> None:
    """Kill the whole group, this process included."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(driver: int, command: list[str]) -> int:
    """The exit code of `command`, as a shell would give it."""
    signal.signal(signal.SIGTERM, kill_process_group)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != driver:  # it died before the request above was made
        kill_process_group()
    try:
        code = subprocess.call(command)
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error.strerror}", flush=True)
        return 127
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
