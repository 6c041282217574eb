"""A stage of a tiny project: it takes some seconds and logs its start and end in `log`."""

import time
from pathlib import Path

from stages.shared.runtime.stage import run_stage


def main(output: Path, seconds: float) -> None:
    with Path("log").open("a", buffering=1) as log:
        log.write(f"begin {output}\n")
        time.sleep(seconds)
        output.write_text("done\n")
        log.write(f"end {output}\n")


if __name__ == "__main__":
    run_stage(main)
