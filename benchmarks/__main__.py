"""Speed as ratios against a peer, both sides in one run: `make bench`, or one by its name.

Each benchmark is a module of this folder with `main() -> Iterable[str]`, the lines of its table.
"""

import sys
from importlib import import_module
from pathlib import Path


def main(names: list[str]) -> None:
    every = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    unknown = sorted(set(names) - set(every) - {"timing"})
    if unknown:
        sys.exit(f"error: no benchmark is called {', '.join(unknown)}: there is {', '.join(every)}")
    for name in names or [one for one in every if one != "timing"]:
        print(f"\n{name}")
        for line in import_module(f"benchmarks.{name}").main():
            print("  " + line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
