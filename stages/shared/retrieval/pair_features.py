"""Features of image-text pairs, written by the stage pair and read by the stage align.

pairs.parquet        PAIRS of stages/shared/core/schemas.py: image, split, texts
image_features.npy   (N, Dv) fp16, pooled features of each image
text_features.npy    (M, Dt) fp16, those of the texts of all images, consecutively
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stages.shared.core.schemas import PAIRS, read_parquet, write_parquet
from stages.shared.retrieval.pairs import ImageTexts

FeatureRows = Iterable[dict[str, np.ndarray]]  # with pooled (D,)


@dataclass(frozen=True)
class PairFeatures:
    """N images with M texts; image n has the texts text_starts[n] to text_starts[n + 1] - 1."""

    pairs: list[ImageTexts]
    images: np.ndarray  # (N, Dv) fp16, read from disk where used
    texts: np.ndarray  # (M, Dt) fp16
    text_starts: np.ndarray  # (N + 1,)

    def rows(self, split: str) -> list[int]:
        """The images of a split."""
        return [row for row, pair in enumerate(self.pairs) if pair.split == split]


def write(folder: Path, pairs: list[ImageTexts], images: FeatureRows, texts: FeatureRows) -> None:
    """Write the pairs and the feature rows of their images and texts, which are consumed singly."""
    write_parquet(folder / "pairs.parquet", [asdict(pair) for pair in pairs], PAIRS)
    _write_rows(folder / "image_features.npy", images, len(pairs))
    _write_rows(folder / "text_features.npy", texts, sum(len(pair.texts) for pair in pairs))


def _write_rows(path: Path, rows: FeatureRows, count: int) -> None:
    array = None
    for number, row in enumerate(rows):
        if array is None:
            shape = (count, len(row["pooled"]))
            array = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        array[number] = row["pooled"]
    assert array is not None
    array.flush()


def read(folder: Path) -> PairFeatures:
    """The pairs of a folder. Raises InputError if it is missing."""
    rows = read_parquet(folder / "pairs.parquet", PAIRS)
    pairs = [ImageTexts(row["image"], row["texts"], row["split"]) for row in rows]
    return PairFeatures(
        pairs,
        np.load(folder / "image_features.npy", mmap_mode="r"),
        np.load(folder / "text_features.npy", mmap_mode="r"),
        np.cumsum([0, *(len(pair.texts) for pair in pairs)]),
    )
