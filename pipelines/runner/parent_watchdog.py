"""Run one command and kill its whole process group when the driver dies.

python parent_watchdog.py DRIVER_PID COMMAND...

pipelines/runner/process_group.py starts it in a process group of its own. If the driver is killed,
Linux sends this process SIGTERM, and it kills its group, itself included. It imports nothing of the
project, so that it starts quickly.
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
    """Run `command`; its exit code, as a shell reports it."""
    signal.signal(signal.SIGTERM, kill_process_group)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != driver:  # the driver died before prctl was called
        kill_process_group()
    try:
        code = subprocess.call(command)
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error.strerror}", flush=True)
        return 127
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
