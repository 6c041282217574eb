"""The features of one corpus, written by the stages embed and illustrate and read by the models.

    summary.json       counts, and whether texts have features
    pictures.parquet   sha256, pooled (D)                  one row per image
    patches.parquet    patches (P, Dp)                     the same rows
    texts.parquet      text, length, pieces, pooled (D)    one row per text
    tokens.parquet     token (Dt)                          `length` rows per text, consecutively

Without images, the first two tables are absent. All features are fp16. Token and patch features are
separate files, so that reading only pooled features is cheap. Features are memory-mapped
(stages/shared/features/mapped_rows.py): memory holds the rows of a batch, whatever N and M are.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.shared.core.schemas import read_json
from stages.shared.features.mapped_rows import (
    MappedRows,
    Rows,
    StoredRows,
    map_column,
    open_writer,
    to_column,
)

FeatureRow = dict[str, np.ndarray]
# texts, the subwords of each, a feature row of each
TextFeatures = tuple[list[str], list[list[str]], Iterable[FeatureRow]]
NameT = TypeVar("NameT")
IMAGE_FIELDS = ("image_index", "pooled", "patches")  # of Features
ROWS_PER_BATCH = 512  # in memory while writing


@dataclass(frozen=True)
class Features:
    """N images and M texts of at most L tokens; rows are indexed by sha256 and by text.

    What the texts have is empty if their features are learned. Rows that no index names are unused.
    """

    image_index: dict[str, int]
    pooled: Rows  # (N, D) fp16, unit length
    patches: Rows  # (N, P, Dp) fp16
    text_kind: Literal["encoder", "learned"]  # learned: language not supported
    text_index: dict[str, int] = field(default_factory=dict)
    text_pooled: Rows = field(  # (M, D) fp16, unit length
        default_factory=lambda: np.zeros((0, 0), np.float16)
    )
    tokens: Rows = field(  # (M, L, Dt) fp16, zero where masked
        default_factory=lambda: np.zeros((0, 0, 0), np.float16)
    )
    token_mask: np.ndarray = field(  # (M, L) bool, true at tokens
        default_factory=lambda: np.zeros((0, 0), np.bool_)
    )
    subwords: list[list[str]] = field(default_factory=list)  # the tokens of each text as strings

    def text_tokens(self, row: int) -> np.ndarray:
        """The tokens of one text, (length, Dt) fp16."""
        return self.tokens[row][self.token_mask[row]]

    @property
    def token_width(self) -> int:
        """Dt; 0 where text features are learned."""
        return self.tokens.shape[2]


class PaddedTokens(StoredRows):
    """Consecutive tokens of M texts, mapped, as rows (M, L, Dt) that are zero where masked."""

    def __init__(self, tokens: MappedRows, lengths: np.ndarray):
        """tokens (sum of lengths, Dt), lengths (M,) of at least one text"""
        self.tokens, self.starts = tokens, np.cumsum(lengths) - lengths
        self.mask = np.arange(lengths.max()) < lengths[:, None]  # (M, L)
        self.shape = (*self.mask.shape, tokens.shape[1])

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """A copy of the rows at an index or at indices of any shape."""
        mask = self.mask[index]
        rows = self.starts[index][..., None] + np.arange(mask.shape[-1])
        padded = np.zeros((*mask.shape, self.shape[2]), np.float16)
        padded[mask] = self.tokens[rows[mask]]
        return padded


def write_features(
    folder: Path,
    images: tuple[list[str], Iterable[FeatureRow]],
    texts: TextFeatures | None,
) -> None:
    """Write the features of images and texts to `folder`; rows are consumed one by one.

    images: sha256 of each image, and its row: `pooled` (D,) and `patches` (P, Dp).
    texts: each text, its L subwords, and its row: `pooled` (D,) and `tokens` (L, Dt). If None,
    models learn text features themselves.
    """
    _write_images(folder, *images)
    if texts is not None:
        _write_texts(folder, *texts)
    summary = {
        "pictures": len(images[0]),
        "text": "learned" if texts is None else "encoder",
        "texts": 0 if texts is None else len(texts[0]),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def read_text_kind(folder: Path) -> Literal["encoder", "learned"]:
    """`encoder` if the texts have features, else `learned`. Raises InputError without features."""
    return _read_summary(folder)["text"]


def _read_summary(folder: Path) -> dict:
    return read_json(folder / "summary.json")


def read_pooled_images(folder: Path) -> tuple[dict[str, int], np.ndarray]:
    """The row of each image by its sha256, and the pooled features (N, D) fp16."""
    if not _read_summary(folder)["pictures"]:
        return {}, np.zeros((0, 0), np.float16)
    index = _read_index(folder / "pictures.parquet", "sha256")
    return index, map_column(folder / "pictures.parquet", "pooled").read()


def read_pooled_texts(folder: Path) -> tuple[dict[str, int], np.ndarray]:
    """The row of each text, and the pooled features (M, D) fp16; none if they are learned."""
    if read_text_kind(folder) == "learned":
        return {}, np.zeros((0, 0), np.float16)
    index = _read_index(folder / "texts.parquet", "text")
    return index, map_column(folder / "texts.parquet", "pooled").read()


def read_features(folder: Path, *more: Path) -> Features:
    """The features in `folder`, and the images of further folders, which may be absent.

    For an image in two folders, the first row is used. Raises InputError if `folder` has no
    features.
    """
    features = _read_folder(folder)
    for path in more:
        if path.exists():
            features = _merge_images(features, _read_folder(path))
    return features


def _merge_images(features: Features, extra: Features) -> Features:
    """`features` with the images of `extra` that are not in it yet."""
    if not extra.image_index:
        return features
    if not features.image_index:  # its arrays have no shapes to concatenate to
        return replace(features, **{name: getattr(extra, name) for name in IMAGE_FIELDS})
    offset = features.patches.shape[0]
    index = {name: offset + row for name, row in extra.image_index.items()}
    return replace(
        features,
        image_index=features.image_index
        | {name: row for name, row in index.items() if name not in features.image_index},
        pooled=_append_rows(features.pooled, extra.pooled),
        patches=_append_rows(features.patches, extra.patches),
    )


def _append_rows(rows: Rows, more: Rows) -> MappedRows:
    assert isinstance(rows, MappedRows) and isinstance(more, MappedRows)
    return rows.append(more)


def _read_folder(folder: Path) -> Features:
    text_kind = read_text_kind(folder)
    images: dict[str, Any] = {
        "image_index": {},
        "pooled": np.zeros((0, 0), np.float16),
        "patches": np.zeros((0, 0, 0), np.float16),
    }
    if _read_summary(folder)["pictures"]:
        images = {
            "image_index": _read_index(folder / "pictures.parquet", "sha256"),
            "pooled": map_column(folder / "pictures.parquet", "pooled"),
            "patches": map_column(folder / "patches.parquet", "patches"),
        }
    if text_kind == "learned":
        return Features(text_kind=text_kind, **images)
    table = pq.read_table(folder / "texts.parquet", columns=["text", "length", "pieces"])
    tokens = PaddedTokens(
        map_column(folder / "tokens.parquet", "token"), table.column("length").to_numpy()
    )
    return Features(
        text_kind=text_kind,
        text_index=_index_rows(table.column("text")),
        text_pooled=map_column(folder / "texts.parquet", "pooled"),
        tokens=tokens,
        token_mask=tokens.mask,
        subwords=table.column("pieces").to_pylist(),
        **images,
    )


def _write_images(folder: Path, names: list[str], rows: Iterable[FeatureRow]) -> None:
    with _ParquetWriters(folder, "pictures", "patches") as files:
        for part, batch in _iter_batches(names, rows):
            pooled = to_column(np.stack([row["pooled"] for row in batch]))
            files.add("pictures", sha256=pa.array(part, pa.string()), pooled=pooled)
            files.add("patches", patches=to_column(np.stack([row["patches"] for row in batch])))


def _write_texts(
    folder: Path, texts: list[str], subwords: list[list[str]], rows: Iterable[FeatureRow]
) -> None:
    with _ParquetWriters(folder, "texts", "tokens") as files:
        for part, batch in _iter_batches(list(zip(texts, subwords, strict=True)), rows):
            lengths = [len(row["tokens"]) for row in batch]
            assert lengths == [len(tokens) for _, tokens in part]
            files.add(
                "texts",
                text=pa.array([text for text, _ in part], pa.string()),
                length=pa.array(lengths, pa.int32()),
                pieces=pa.array([tokens for _, tokens in part], pa.list_(pa.string())),
                pooled=to_column(np.stack([row["pooled"] for row in batch])),
            )
            files.add("tokens", token=to_column(np.concatenate([row["tokens"] for row in batch])))


def _iter_batches(
    names: list[NameT], rows: Iterable[FeatureRow]
) -> Iterator[tuple[list[NameT], list[FeatureRow]]]:
    pairs = zip(names, rows, strict=True)
    while batch := list(islice(pairs, ROWS_PER_BATCH)):
        yield [name for name, _ in batch], [row for _, row in batch]


class _ParquetWriters:
    """Writers of Parquet files, each opened with the schema of its first batch."""

    def __init__(self, folder: Path, *names: str):
        self.paths = {name: folder / f"{name}.parquet" for name in names}
        self.writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> "_ParquetWriters":
        return self

    def add(self, name: str, **columns: pa.Array) -> None:
        table = pa.table(columns)
        if name not in self.writers:
            self.writers[name] = open_writer(self.paths[name], table.schema)
        self.writers[name].write_table(table, row_group_size=table.num_rows)

    def __exit__(self, *error: object) -> None:
        for writer in self.writers.values():
            writer.close()


def _read_index(path: Path, column: str) -> dict[str, int]:
    """The row of each name in a column."""
    return _index_rows(pq.read_table(path, columns=[column]).column(0))


def _index_rows(names: pa.ChunkedArray) -> dict[str, int]:
    return {name: row for row, name in enumerate(names.to_pylist())}
