"""The features of one corpus: what stages/embed.py and illustrate.py write and models read.

    summary.json       counts, and whether texts have features
    pictures.parquet   sha256, pooled (D)          one row a picture
    patches.parquet    patches (P, Dp)             the same rows
    texts.parquet      text, length, pieces, pooled (D)    one row a text
    tokens.parquet     token (Dt)                  `length` rows a text, one after the other

Without any picture there are no files of pictures.

All features are fp16. The large ones are files of their own, so that who needs only pooled
features reads little.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.shared.runtime.stage import InputError

FeatureRow = dict[str, np.ndarray]
TextFeatures = tuple[
    list[str], list[list[str]], Iterable[FeatureRow]
]  # texts, their pieces, their rows
NameT = TypeVar("Name")
IMAGE_FIELDS = ("image_index", "pooled", "patches")  # of Features
ROWS_PER_BATCH = 512  # in memory while writing or reading


@dataclass(frozen=True)
class Features:
    """N pictures, M texts of at most L tokens. Index a row by sha256 or by the text itself."""

    image_index: dict[str, int]
    pooled: np.ndarray  # (N, D) fp16, unit length
    patches: np.ndarray  # (N, P, Dp) fp16
    text_kind: Literal["encoder", "learned"]  # learned: the encoder does not read the language
    text_index: dict[str, int] | None
    text_pooled: np.ndarray | None  # (M, D) fp16, unit length
    tokens: np.ndarray | None  # (M, L, Dt) fp16, zero where masked
    token_mask: np.ndarray | None  # (M, L) bool, true at tokens
    subwords: list[list[str]] | None  # the tokens of each text, as their tokenizer spells them

    @property
    def token_width(self) -> int:
        """Dt; 0 where text features are learned."""
        return 0 if self.tokens is None else self.tokens.shape[2]


def write_features(
    folder: Path,
    pictures: tuple[list[str], Iterable[FeatureRow]],
    texts: TextFeatures | None,
) -> None:
    """Write names with their rows, in the same order; rows are taken one by one.

    A picture's row has `pooled` (D,) and `patches` (P, Dp), a text's `pooled` (D,) and `tokens`
    (L, Dt), and L pieces. Without texts the models learn features of their own.
    """
    _write_images(folder, *pictures)
    if texts is not None:
        _write_texts(folder, *texts)
    summary = {
        "pictures": len(pictures[0]),
        "text": "learned" if texts is None else "encoder",
        "texts": 0 if texts is None else len(texts[0]),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def read_text_kind(folder: Path) -> Literal["encoder", "learned"]:
    """Whether the texts have features. Raises WrongInput if embed did not write the folder."""
    return _read_summary(folder)["text"]


def _read_summary(folder: Path) -> dict:
    try:
        return json.loads((folder / "summary.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder / 'summary.json'} is missing: run `dvc repro`") from None


def read_pooled_images(folder: Path) -> tuple[dict[str, int], np.ndarray]:
    """The row of each picture by its sha256, and the pooled features (N, D) fp16 alone."""
    if not _read_summary(folder)["pictures"]:
        return {}, np.zeros((0, 0), np.float16)
    names = pq.read_table(folder / "pictures.parquet", columns=["sha256"])
    return _index_rows(names.column(0)), _read_array(folder / "pictures.parquet", "pooled")


def read_features(folder: Path, *more: Path) -> Features:
    """All of a folder, and the pictures of further ones, which may be absent.

    Of a picture in two folders the first row counts. Raises WrongInput if embed wrote no `folder`.
    """
    found = _read_folder(folder)
    for other in more:
        if other.exists():
            found = _merge_images(found, _read_folder(other))
    return found


def _merge_images(found: Features, other: Features) -> Features:
    """`found` with those pictures of `other` that it lacks."""
    lacking = {
        name: row for name, row in other.image_index.items() if name not in found.image_index
    }
    if not lacking:
        return found  # no second copy of the patches
    if not found.image_index:  # and no shapes
        return replace(found, **{name: getattr(other, name) for name in IMAGE_FIELDS})
    rows = list(lacking.values())
    index = {name: len(found.image_index) + row for row, name in enumerate(lacking)}
    return replace(
        found,
        image_index=found.image_index | index,
        pooled=np.concatenate([found.pooled, other.pooled[rows]]),
        patches=np.concatenate([found.patches, other.patches[rows]]),
    )


def _read_folder(folder: Path) -> Features:
    text = read_text_kind(folder)
    index, pooled = read_pooled_images(folder)
    pictures = {
        "image_index": index,
        "pooled": pooled,
        "patches": _read_array(folder / "patches.parquet", "patches")
        if index
        else np.zeros((0, 0, 0), np.float16),
    }
    if text == "learned":
        return Features(
            text_kind=text,
            text_index=None,
            text_pooled=None,
            tokens=None,
            token_mask=None,
            subwords=None,
            **pictures,
        )
    table = pq.read_table(folder / "texts.parquet", columns=["text", "length", "pieces"])
    tokens, mask = _pad_tokens(
        _read_array(folder / "tokens.parquet", "token"), table.column("length").to_numpy()
    )
    return Features(
        text_kind=text,
        text_index=_index_rows(table.column("text")),
        text_pooled=_read_array(folder / "texts.parquet", "pooled"),
        tokens=tokens,
        token_mask=mask,
        subwords=table.column("pieces").to_pylist(),
        **pictures,
    )


def _write_images(folder: Path, names: list[str], rows: Iterable[FeatureRow]) -> None:
    with _ParquetWriters(folder, "pictures", "patches") as files:
        for part, batch in _iter_batches(names, rows):
            pooled = _to_column([row["pooled"] for row in batch])
            files.add("pictures", sha256=pa.array(part, pa.string()), pooled=pooled)
            files.add("patches", patches=_to_column([row["patches"] for row in batch]))


def _write_texts(
    folder: Path, texts: list[str], pieces: list[list[str]], rows: Iterable[FeatureRow]
) -> None:
    with _ParquetWriters(folder, "texts", "tokens") as files:
        for part, batch in _iter_batches(list(zip(texts, pieces, strict=True)), rows):
            lengths = [len(row["tokens"]) for row in batch]
            assert lengths == [len(spelt) for _, spelt in part]
            files.add(
                "texts",
                text=pa.array([text for text, _ in part], pa.string()),
                length=pa.array(lengths, pa.int32()),
                pieces=pa.array([spelt for _, spelt in part], pa.list_(pa.string())),
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
    """Parquet files that are opened with the schema of their first batch."""

    def __init__(self, folder: Path, *names: str):
        self.paths = {name: folder / f"{name}.parquet" for name in names}
        self.writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> "_ParquetWriters":
        return self

    def add(self, name: str, **columns: pa.Array) -> None:
        table = pa.table(columns)
        if name not in self.writers:
            # Features do not compress, and dictionaries and statistics of them are of no use.
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
    """Arrays of one shape as nested lists of fixed size, so that the file says their shape."""
    values = np.stack(rows)
    column = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _read_array(path: Path, column: str) -> np.ndarray:
    """A column of nested lists as one array, filled batch by batch: no second copy in memory."""
    file = pq.ParquetFile(path)
    kind, shape = file.schema_arrow.field(column).type, [file.metadata.num_rows]
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    found, start = np.empty(shape, np.float16), 0
    for batch in file.iter_batches(ROWS_PER_BATCH, columns=[column]):
        values = batch.column(0)
        while pa.types.is_fixed_size_list(values.type):
            values = values.flatten()
        part = values.to_numpy().reshape(-1, *shape[1:])
        found[start : start + len(part)] = part
        start += len(part)
    return found


def _index_rows(names: pa.ChunkedArray) -> dict[str, int]:
    return {name: row for row, name in enumerate(names.to_pylist())}


def _pad_tokens(tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sum of lengths, Dt), (M,) -> (M, L, Dt) zero where masked, (M, L) bool"""
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros((*mask.shape, tokens.shape[1]), np.float16)
    padded[mask] = tokens
    return padded, mask
