"""Image-text pairs of any corpus, and the files with their features.

The stage pair writes these files and the stage align reads them:

    pairs.parquet        PAIRS of stages/shared/core/schemas.py: image, split, texts
    image_features.npy   (N, Dv) fp16, pooled features of each image
    text_features.npy    (M, Dt) fp16, those of the texts of all images, consecutively
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from stages.shared.core.schemas import PAIRS, read_parquet, write_parquet

FeatureRows = Iterable[dict[str, np.ndarray]]  # with pooled (D,)


@dataclass(frozen=True)
class ImageTexts:
    """An image (sha256) with the texts that describe it, at least one."""

    image: str
    texts: list[str]
    split: str


def collect_pairs(records: list[dict], kind: str, languages: list[str]) -> list[ImageTexts]:
    """Each image of the records in these languages with its texts, sorted by hash.

    An image of several records keeps the texts of the first. The text of an article's image is the
    first one between it and the next image; images without text make no pair.
    """
    pairs: dict[str, ImageTexts] = {}
    for record in records:
        if record["language"] in languages:
            for image, texts in _list_pairs(record, kind):
                if image and (texts := [text for text in texts if text]):
                    pairs.setdefault(image, ImageTexts(image, texts, record["split"]))
    return [pairs[image] for image in sorted(pairs)]


def _list_pairs(record: dict, kind: str) -> Iterable[tuple[str | None, list[str]]]:
    match kind:
        case "articles":
            return _list_article_pairs(record["blocks"])
        case "captions":
            return [(record["image"], record["captions"])]
        case "tweets":
            return [(record["image"], [" ".join(record["words"])])]
        case _:
            return [(record["image"], [record["text"]])]


def _list_article_pairs(blocks: list[dict]) -> list[tuple[str, list[str]]]:
    return [
        (block["image"], [after["text"]]) for block, after in pairwise(blocks) if block["image"]
    ]


def select_held_out(pairs: list[ImageTexts], max_pairs: int) -> tuple[str, list[ImageTexts]]:
    """The split on which retrieval is measured, and its first `max_pairs` pairs by hash.

    It is the test split, or validation if that has more than one pair and test has not.
    """
    by_split = {
        split: [pair for pair in pairs if pair.split == split] for split in ("test", "validation")
    }
    split = "test" if len(by_split["test"]) > 1 else "validation"
    return split, by_split[split][:max_pairs]


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


def write_pairs(
    folder: Path, pairs: list[ImageTexts], images: FeatureRows, texts: FeatureRows
) -> None:
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


def read_pairs(folder: Path) -> PairFeatures:
    """The pairs of a folder. Raises InputError if it is missing."""
    rows = read_parquet(folder / "pairs.parquet", PAIRS)
    pairs = [ImageTexts(row["image"], row["texts"], row["split"]) for row in rows]
    return PairFeatures(
        pairs,
        np.load(folder / "image_features.npy", mmap_mode="r"),
        np.load(folder / "text_features.npy", mmap_mode="r"),
        np.cumsum([0, *(len(pair.texts) for pair in pairs)]),
    )
