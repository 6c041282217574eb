"""history.csv of a training run: one row a step, an empty cell where nothing was measured."""

import csv
from pathlib import Path


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    names = (name for row in rows for name in row)
    columns = list(dict.fromkeys(["step", "loss", *names]))  # dvc.yaml plots them
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_history(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
