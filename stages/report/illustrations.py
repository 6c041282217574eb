"""Images that 08_illustrate retrieved or generated for chunks without one, and how well they fit.

reads   08_illustrate/<corpus>/illustrations.parquet and summary.json
"""

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
        """The number of illustrations by backend, in order of name."""
        return dict(sorted(Counter(row["backend"] for row in self.rows).items()))

    @property
    def similarities_by_backend(self) -> dict[str, list[float]]:
        """Backend -> known similarities of title and illustration."""
        similarities: dict[str, list[float]] = {}
        for row in sorted(self.rows, key=lambda row: row["backend"]):
            if row["similarity"] is not None:
                similarities.setdefault(row["backend"], []).append(row["similarity"])
        return similarities


def load_illustrations(folder: Path) -> IllustrationData:
    """Load 08_illustrate/<corpus>. Raises InputError if a file is missing."""
    return IllustrationData(
        schemas.read_parquet(folder / "illustrations.parquet", schemas.ILLUSTRATIONS),
        schemas.read_json(folder / "summary.json"),
    )
