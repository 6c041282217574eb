"""Columns of Parquet files, memory-mapped: a row is read from the file when it is needed.

A column holds one array of fixed shape per row, as nested lists of fixed size. `open_writer`
writes it such that the file itself can be mapped: uncompressed, and with one page per row group. A
page ends with its values in plain encoding, one after the other without gaps (Parquet format, "Data
Pages" and "Plain"), so that the last bytes of a column chunk are its array.

Mapped pages belong to the page cache of the operating system, which drops them when memory is
short. They count as resident memory of the process (RssFile), not as its own memory (RssAnon).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, count
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.shared.runtime.stage import InputError

MAX_PAGE_BYTES = MAX_PAGE_ROWS = 2**31 - 1  # limits of the format: one page per row group
# The header of a page in thrift's compact protocol (parquet.thrift: PageHeader) up to the number of
# its values: type, two sizes, and the first field of the header of a data page of version 1.
PAGE_HEADER_FIELDS = b"\x15", b"\x15", b"\x15", b"\x2c\x15"
PAGE_HEADER_BYTES = 32  # of which these fields take at most 25


class StoredRows(ABC):
    """Arrays of one shape, read when they are indexed."""

    shape: tuple[int, ...]  # of all rows: their number, then the shape of a row

    @abstractmethod
    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """A copy of the rows at an index or at indices of any shape, counted from 0."""


Rows = np.ndarray | StoredRows  # rows in memory, or in a file


class MappedRows(StoredRows):
    """N arrays of one shape and type, in several parts of which each is an array (n, ...)."""

    def __init__(self, parts: Sequence[np.ndarray]):
        """parts: at least one"""
        self.parts, self.dtype = list(parts), parts[0].dtype
        self.ends = np.array(list(accumulate(map(len, parts))))
        self.shape = (int(self.ends[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """A copy of the rows at an index or at indices of any shape, counted from 0.

        Raises IndexError if there is no such row.
        """
        indices = np.asarray(index, dtype=np.int64)
        flat = indices.reshape(-1)
        if len(flat) and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"rows {flat.min()} to {flat.max()} of {len(self)}")
        rows = np.empty((len(flat), *self.shape[1:]), self.dtype)
        part_of = np.searchsorted(self.ends, flat, side="right")
        for number in np.unique(part_of):
            part, places = self.parts[number], np.flatnonzero(part_of == number)
            rows[places] = part[flat[places] - (self.ends[number] - len(part))]
        return rows.reshape(*indices.shape, *self.shape[1:])

    def read(self) -> np.ndarray:
        """All rows as an array in memory."""
        return np.concatenate(self.parts)

    def append(self, other: "MappedRows") -> "MappedRows":
        """These rows and then those of `other`."""
        return MappedRows([*self.parts, *other.parts])


def to_column(rows: np.ndarray) -> pa.Array:
    """Arrays of one shape as nested lists of fixed size, so that the file records the shape."""
    column = pa.array(rows.reshape(-1))
    for size in reversed(rows.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of a file that `map_column` can read; each table becomes one row group."""
    return pq.ParquetWriter(
        path,
        schema,
        compression="none",  # features do not compress; dictionaries would be useless
        use_dictionary=False,
        write_statistics=False,
        data_page_version="1.0",
        data_page_size=MAX_PAGE_BYTES,
        max_rows_per_page=MAX_PAGE_ROWS,
    )


def map_column(path: Path, column: str) -> MappedRows:
    """The rows of a column of fp16 arrays.

    Raises InputError if the file was not written as `open_writer` does.
    """
    file = pq.ParquetFile(path)
    kind, shape = file.schema_arrow.field(column).type, []
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    content = np.memmap(path, np.uint8, "r")
    parts = [np.empty((0, *shape), np.float16)]
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        chunk = next(
            chunk
            for chunk in map(group.column, count())
            if chunk.path_in_schema.partition(".")[0] == column
        )
        first, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
        num_values = _count_page_values(content[first : first + PAGE_HEADER_BYTES].tobytes())
        if chunk.compression != "UNCOMPRESSED" or num_values != chunk.num_values:
            raise InputError(f"{path} was written by another version: run `dvc repro`")
        size = group.num_rows * prod(shape) * np.float16().itemsize
        parts.append(content[end - size : end].view(np.float16).reshape(-1, *shape))
    return MappedRows(parts)


def _count_page_values(page: bytes) -> int | None:
    """The number of values in a data page of version 1, None if it is no such page."""
    position, value = 0, 0
    for field in PAGE_HEADER_FIELDS:
        if not page.startswith(field, position):
            return None
        position += len(field)
        length = next(n for n in count(1) if page[position + n - 1] < 0x80)  # of a varint
        digits = page[position : position + length]
        value = sum((digit & 0x7F) << 7 * place for place, digit in enumerate(digits))
        position += length
    return value >> 1  # zigzag encoding of a number that is not negative
