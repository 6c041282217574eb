"""Profile one stage: run its command under cProfile and print where its time goes.

python -m pipelines.profile_stage STAGE     e.g. embed@memes; `make profile STAGE=embed@memes`

The stage is executed whether it is stale or not, and writes its outputs again.

writes  POLYMUSE_HOME/profiles/STAGE.prof, for viewers such as snakeviz
"""

import argparse
import os
import pstats
import resource
import shlex
import subprocess
import sys

from pipelines.cli import run_in_project
from pipelines.runner import dag
from stages.shared.runtime.stage import InputError, work_dir

NUM_FUNCTIONS = 25
# Unlike `python -m cProfile`, it keeps the exit code and the error of the stage.
RUN_PROFILED = """
import cProfile, runpy, sys
target, module = sys.argv[1:3]
del sys.argv[1:3]
profile = cProfile.Profile()
try:
    profile.runcall(runpy.run_module, module, run_name="__main__", alter_sys=True)
finally:
    profile.dump_stats(target)
"""


def main() -> None:
    """Raises InputError if the stage does not exist, is no Python module, or fails."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.profile_stage")
    parser.add_argument("stage", help="as in `dvc repro`, e.g. embed@memes")
    stage = parser.parse_args().stage
    command = shlex.split(dag.load_dag([stage]).commands[stage])
    if command[:3] != ["exec", "python", "-m"]:
        raise InputError(f"{stage} is not a Python module: {' '.join(command)}")
    target = work_dir() / "profiles" / f"{stage}.prof"
    target.parent.mkdir(parents=True, exist_ok=True)
    profiled = [sys.executable, "-c", RUN_PROFILED, str(target), *command[3:]]
    if code := subprocess.run(profiled, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise InputError(f"{stage} ended with exit code {code}: see its output above")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    statistics = pstats.Stats(str(target))
    for order in ("cumulative", "tottime"):
        statistics.sort_stats(order).print_stats(NUM_FUNCTIONS)
    print(
        f"CPU time {usage.ru_utime + usage.ru_stime:.1f} s, peak memory {usage.ru_maxrss >> 10} MiB"
    )
    print(f"profile: {target}")


if __name__ == "__main__":
    run_in_project(main)
