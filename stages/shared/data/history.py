"""history.csv of a training run: one row per step; cells without a measurement are empty."""

import csv
from pathlib import Path


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Write the metrics of each step, by name."""
    names = (name for row in rows for name in row)
    columns = list(dict.fromkeys(["step", "loss", *names]))  # dvc.yaml plots them
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def read_history(path: Path) -> list[dict[str, float]]:
    """The metrics of each step, by name, without empty cells."""
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
