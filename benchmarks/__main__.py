"""Benchmarks that report speed as a ratio to a baseline, with both timed in the same run.

python -m benchmarks [NAME ...]      all of them without names (`make bench`)

A benchmark is a module in this folder with `main() -> Iterable[str]`: the lines to print.
"""

import sys
from importlib import import_module
from pathlib import Path


def main(names: list[str]) -> None:
    modules = {path.stem for path in Path(__file__).parent.glob("[!_]*.py")}
    benchmarks = sorted(modules - {"timing"})
    if unknown := sorted(set(names) - set(benchmarks)):
        sys.exit(
            f"error: unknown benchmark {', '.join(unknown)}: choose from {', '.join(benchmarks)}"
        )
    for name in names or benchmarks:
        print(f"\n{name}")
        for line in import_module(f"benchmarks.{name}").main():
            print("  " + line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
