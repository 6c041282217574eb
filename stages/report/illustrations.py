"""The pictures that 08_illustrate found or made for chunks without one, and how well they fit.

reads   08_illustrate/<corpus>/illustrations.parquet and summary.json
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.shared.core import schemas


@dataclass(frozen=True)
class IllustrationData:
    rows: list[dict]  # ILLUSTRATIONS
    summary: dict[str, Any]

    @property
    def rows_by_chunk(self) -> dict[tuple[str, int], dict]:
        return {(row["record"], row["position"]): row for row in self.rows}

    @property
    def backend_counts(self) -> dict[str, int]:
        """How many illustrations each backend gave, by name."""
        return dict(sorted(Counter(row["backend"] for row in self.rows).items()))

    @property
    def similarities_by_backend(self) -> dict[str, list[float]]:
        """Of title and illustration where they could be measured, by backend."""
        found: dict[str, list[float]] = {}
        for row in sorted(self.rows, key=lambda row: row["backend"]):
            if row["similarity"] is not None:
                found.setdefault(row["backend"], []).append(row["similarity"])
        return found


def load_illustrations(folder: Path) -> IllustrationData:
    """Of 08_illustrate/<corpus>."""
    rows = schemas.read_parquet(folder / "illustrations.parquet", schemas.ILLUSTRATIONS)
    return IllustrationData(rows, json.loads((folder / "summary.json").read_text(encoding="utf-8")))
