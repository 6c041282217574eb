"""The features of one corpus, written by the stages embed and illustrate and read by the models.

    summary.json       counts, and whether texts have features
    pictures.parquet   sha256, pooled (D)                  one row per image
    patches.parquet    patches (P, Dp)                     the same rows
    texts.parquet      text, length, pieces, pooled (D)    one row per text
    tokens.parquet     token (Dt)                          `length` rows per text, consecutively

Without images, the first two tables are absent. All features are fp16. Token and patch features are
separate files, so that reading only pooled features is cheap.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.shared.core.schemas import read_json

FeatureRow = dict[str, np.ndarray]
# texts, the subwords of each, a feature row of each
TextFeatures = tuple[list[str], list[list[str]], Iterable[FeatureRow]]
NameT = TypeVar("NameT")
IMAGE_FIELDS = ("image_index", "pooled", "patches")  # of Features
ROWS_PER_BATCH = 512  # in memory while writing or reading


@dataclass(frozen=True)
class Features:
    """N images and M texts of at most L tokens; rows are indexed by sha256 and by text.

    What the texts have is empty if their features are learned.
    """

    image_index: dict[str, int]
    pooled: np.ndarray  # (N, D) fp16, unit length
    patches: np.ndarray  # (N, P, Dp) fp16
    text_kind: Literal["encoder", "learned"]  # learned: language not supported
    text_index: dict[str, int] = field(default_factory=dict)
    text_pooled: np.ndarray = field(  # (M, D) fp16, unit length
        default_factory=lambda: np.zeros((0, 0), np.float16)
    )
    tokens: np.ndarray = field(  # (M, L, Dt) fp16, zero where masked
        default_factory=lambda: np.zeros((0, 0, 0), np.float16)
    )
    token_mask: np.ndarray = field(  # (M, L) bool, true at tokens
        default_factory=lambda: np.zeros((0, 0), np.bool_)
    )
    subwords: list[list[str]] = field(default_factory=list)  # the tokens of each text as strings

    @property
    def token_width(self) -> int:
        """Dt; 0 where text features are learned."""
        return self.tokens.shape[2]


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
    names = pq.read_table(folder / "pictures.parquet", columns=["sha256"])
    return _index_rows(names.column(0)), _read_array(folder / "pictures.parquet", "pooled")


def read_pooled_texts(folder: Path) -> tuple[dict[str, int], np.ndarray]:
    """The row of each text, and the pooled features (M, D) fp16; none if they are learned."""
    if read_text_kind(folder) == "learned":
        return {}, np.zeros((0, 0), np.float16)
    names = pq.read_table(folder / "texts.parquet", columns=["text"])
    return _index_rows(names.column(0)), _read_array(folder / "texts.parquet", "pooled")


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
    new = {name: row for name, row in extra.image_index.items() if name not in features.image_index}
    if not new:
        return features  # avoids a copy of the patches
    if not features.image_index:  # its arrays have no shapes to concatenate to
        return replace(features, **{name: getattr(extra, name) for name in IMAGE_FIELDS})
    rows = list(new.values())
    index = {name: len(features.image_index) + row for row, name in enumerate(new)}
    return replace(
        features,
        image_index=features.image_index | index,
        pooled=np.concatenate([features.pooled, extra.pooled[rows]]),
        patches=np.concatenate([features.patches, extra.patches[rows]]),
    )


def _read_folder(folder: Path) -> Features:
    text_kind = read_text_kind(folder)
    index, pooled = read_pooled_images(folder)
    images = {
        "image_index": index,
        "pooled": pooled,
        "patches": _read_array(folder / "patches.parquet", "patches")
        if index
        else np.zeros((0, 0, 0), np.float16),
    }
    if text_kind == "learned":
        return Features(text_kind=text_kind, **images)
    table = pq.read_table(folder / "texts.parquet", columns=["text", "length", "pieces"])
    tokens, mask = _pad_tokens(
        _read_array(folder / "tokens.parquet", "token"), table.column("length").to_numpy()
    )
    return Features(
        text_kind=text_kind,
        text_index=_index_rows(table.column("text")),
        text_pooled=_read_array(folder / "texts.parquet", "pooled"),
        tokens=tokens,
        token_mask=mask,
        subwords=table.column("pieces").to_pylist(),
        **images,
    )


def _write_images(folder: Path, names: list[str], rows: Iterable[FeatureRow]) -> None:
    with _ParquetWriters(folder, "pictures", "patches") as files:
        for part, batch in _iter_batches(names, rows):
            pooled = _to_column([row["pooled"] for row in batch])
            files.add("pictures", sha256=pa.array(part, pa.string()), pooled=pooled)
            files.add("patches", patches=_to_column([row["patches"] for row in batch]))


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
                pooled=_to_column([row["pooled"] for row in batch]),
            )
            files.add("tokens", token=_to_column(list(chain(*(row["tokens"] for row in batch)))))


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
            # Features do not compress; dictionaries and statistics would be useless.
            self.writers[name] = pq.ParquetWriter(
                self.paths[name],
                table.schema,
                compression="none",
                use_dictionary=False,
                write_statistics=False,
            )
        self.writers[name].write_table(table)

    def __exit__(self, *error: object) -> None:
        for writer in self.writers.values():
            writer.close()


def _to_column(rows: list[np.ndarray]) -> pa.Array:
    """Arrays of one shape as nested lists of fixed size, so that the file records the shape."""
    values = np.stack(rows)
    column = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _read_array(path: Path, column: str) -> np.ndarray:
    """A column of nested lists as one array, filled batch by batch to avoid a copy in memory."""
    file = pq.ParquetFile(path)
    kind, shape = file.schema_arrow.field(column).type, [file.metadata.num_rows]
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    array, start = np.empty(shape, np.float16), 0
    for batch in file.iter_batches(ROWS_PER_BATCH, columns=[column]):
        values = batch.column(0)
        while pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        part = values.to_numpy().reshape(-1, *shape[1:])
        array[start : start + len(part)] = part
        start += len(part)
    return array


def _index_rows(names: pa.ChunkedArray) -> dict[str, int]:
    return {name: row for row, name in enumerate(names.to_pylist())}


def _pad_tokens(tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sum of lengths, Dt), (M,) -> tokens (M, L, Dt), zero where masked; mask (M, L) bool."""
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros((*mask.shape, tokens.shape[1]), np.float16)
    padded[mask] = tokens
    return padded, mask
