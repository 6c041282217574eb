"""Read tables as CSV or TSV, for the formats that consist of them.

The first row names the columns; the delimiter is the one that splits it into the most columns. A
quoted cell may contain delimiters, line ends and doubled quotes. If a row is malformed or has the
wrong number of cells, only its first line is rejected and reading continues on the next line, so
that an unclosed quote does not swallow the rows below it. If lines of a quoted cell look like rows
by themselves, two stray quotes have joined them: the lines of the quotes are rejected, and a line
between them that has the labels of other rows is read as a row.

Quotes between tabs are letters (IANA, text/tab-separated-values), unless the file shows that a CSV
writer quoted its cells: it quotes the names of columns, doubles quotes, or has line ends in a cell.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from stages.datasets.common.encodings import decode_text
from stages.datasets.common.files import read_bytes
from stages.shared.data.records import Rejection
from stages.shared.runtime.stage import InputError

DELIMITERS = (",", "\t", ";", "|")
# Rejected for these reasons, a line may be part of a row, or contain several.
MALFORMED_REASONS = ("not CSV", "wrong count")
# A column of labels, in which values that occur often make up most of the cells.
MIN_OCCURRENCES, MIN_SHARE = 3, 0.8


@dataclass(frozen=True)
class Dialect:
    """has_quotes: whether quotes delimit cells; else they are letters."""

    delimiter: str
    has_quotes: bool = True


CsvRow = tuple[str, dict[str, str]]  # file:line, column -> cell


def read_csv(
    path: Path, encodings: list[str], encodings_key: str
) -> tuple[list[str], Iterator[CsvRow | Rejection]]:
    """The columns of a file, and its rows or rejections in order. Blank rows are skipped.

    encodings: tried in this order for each cell
    encodings_key: the key of config/formats.yaml that holds them, for messages

    Raises InputError if the file has no header, or the header names a column twice.
    """
    content, encodings = read_bytes(path, encodings)
    # Latin-1 keeps every byte: the CSV syntax is parsed first, and the cells are decoded after it.
    lines = list(io.StringIO(content.decode("latin-1"), newline=""))
    start = next((index for index, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise InputError(f"{path} is empty: add a line that names its columns, and rows")
    dialects = [Dialect(delimiter) for delimiter in DELIMITERS]
    headers = {dialect: _read_row(lines, start, dialect) for dialect in dialects}
    dialect = max(dialects, key=lambda dialect: len(headers[dialect][0] or []))
    if dialect.delimiter == "\t" and not _has_quoted_cells(lines, start, dialect):
        dialect = Dialect("\t", has_quotes=False)
        headers[dialect] = _read_row(lines, start, dialect)
    cells, start = headers[dialect]
    header = _decode_cells(cells, encodings, encodings_key) if cells else None
    if header is None:
        raise InputError(
            f"{path}: its first line does not name columns in {' or '.join(encodings)}: fix the "
            f"line, or add its encoding to {encodings_key} of config/formats.yaml"
        )
    columns = [column.strip() for column in header]
    repeated = [column for column, count in Counter(columns).items() if column and count > 1]
    if repeated:
        raise InputError(f"{path} names the column {repeated[0][:60]!r} twice: name it once")
    return columns, _read_rows(lines, start, dialect, columns, path.name, encodings, encodings_key)


def check_columns(needed: Iterable[str], columns: Iterable[str], path: Path, fix: str) -> None:
    """Raises InputError that names every missing column and ends with `fix`."""
    columns = list(columns)
    if missing := [column for column in dict.fromkeys(needed) if column not in columns]:
        present = " ".join(", ".join(columns).split())[:200]  # a name may have line ends
        raise InputError(
            f"{path} has no column {', '.join(missing)} (its columns: {present}): {fix}"
        )


def _read_rows(
    lines: list[str],
    start: int,
    dialect: Dialect,
    columns: list[str],
    file_name: str,
    encodings: list[str],
    encodings_key: str,
) -> Iterator[CsvRow | Rejection]:
    stray: dict[int, str] = {}  # lines of stray quotes, and why they are rejected
    labels: dict[int, set[str]] | None = None
    first = start
    while start < len(lines):
        source = f"{file_name}:{start + 1}"
        if start in stray:
            yield Rejection(source, f"{MALFORMED_REASONS[0]}: {stray[start]}")
            start += 1
            continue
        cells, end = _read_row(lines, start, dialect)
        if cells is not None and end > start + 1:
            if labels is None:
                labels = _find_labels(lines, first, dialect, len(columns))
            if wrong := _find_joined_lines(lines, start, end, dialect, len(columns), labels):
                fault = f"its quote closes in line {end}, so that one of them is no row"
                stray |= dict.fromkeys(wrong, fault)
                continue
        if cells is None:
            fault = "a quote is not closed, or text follows a closed one"
            yield Rejection(source, f"{MALFORMED_REASONS[0]}: {fault}")
            start += 1
            continue
        if not any(map(str.strip, cells)):
            start = end
            continue
        if len(cells) != len(columns):
            fault = f"{len(cells)} cells under {len(columns)} columns"
            yield Rejection(source, f"{MALFORMED_REASONS[1]}: {fault}")
            start += 1
            continue
        start, texts = end, _decode_cells(cells, encodings, encodings_key)
        if texts is None:
            yield Rejection(source, f"undecodable line: not {' or '.join(encodings)}")
        else:
            yield source, dict(zip(columns, texts, strict=True))


def _read_row(lines: list[str], start: int, dialect: Dialect) -> tuple[list[str] | None, int]:
    """The cells of the row that starts at a line, None if malformed, and the next row's line."""
    reader = csv.reader(
        (lines[index] for index in range(start, len(lines))),
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_MINIMAL if dialect.has_quotes else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        return next(reader), start + reader.line_num
    except csv.Error:
        return None, start + 1


def _find_labels(
    lines: list[str], start: int, dialect: Dialect, num_columns: int
) -> dict[int, set[str]]:
    """The frequent cells of each column that holds labels, from the rows on one line."""
    counts = [Counter[str]() for _ in range(num_columns)]
    while start < len(lines):
        cells, end = _read_row(lines, start, dialect)
        if cells is not None and len(cells) == num_columns and end == start + 1:
            for count, cell in zip(counts, cells, strict=True):
                count[cell] += 1
        start = end
    frequent = [{cell: n for cell, n in count.items() if n >= MIN_OCCURRENCES} for count in counts]
    return {
        column: set(cells)
        for column, (cells, count) in enumerate(zip(frequent, counts, strict=True))
        if cells and sum(cells.values()) >= MIN_SHARE * count.total()
    }


def _find_joined_lines(
    lines: list[str],
    start: int,
    end: int,
    dialect: Dialect,
    num_columns: int,
    labels: dict[int, set[str]],
) -> list[int]:
    """The lines to reject if the row from `start` to `end` consists of several; else none.

    A line between the quotes is a row if it has the labels of half of the columns of labels.
    """
    letters = Dialect(dialect.delimiter, has_quotes=False)
    inner = [_read_row([line], 0, letters)[0] or [] for line in lines[start + 1 : end - 1]]
    is_row = [
        bool(labels)
        and len(cells) == num_columns
        and 2 * sum(cells[column] in values for column, values in labels.items()) >= len(labels)
        for cells in inner
    ]
    if not any(is_row) and not _swallows_rows(lines[start:end], dialect, num_columns):
        return []
    wrong = [number for number, good in enumerate(is_row, start=start + 1) if not good]
    return [start, *wrong, end - 1]


def _swallows_rows(lines: list[str], dialect: Dialect, num_columns: int) -> bool:
    """Whether the lines of one row look like as many rows, if its quotes are read as letters.

    They have the right number of cells, and in one column they all look alike, as ids and labels
    do. The lines of a text with delimiters seldom do.
    """
    letters = Dialect(dialect.delimiter, has_quotes=False)
    rows = [_read_row([line], 0, letters)[0] or [] for line in lines]
    return (
        len(rows) > 1
        and all(len(row) == num_columns for row in rows)
        and any(len(set(map(_describe_shape, cells))) == 1 for cells in zip(*rows, strict=True))
    )


def _describe_shape(cell: str) -> str:
    """A cell with `a` for each run of letters and 0 for each number, such as a0.a for m12.png."""
    return "".join(
        character
        for character, _ in groupby(
            "a" if c.isalpha() else "0" if c.isdigit() else c for c in cell if c != '"'
        )
    )


def _has_quoted_cells(lines: list[str], start: int, dialect: Dialect) -> bool:
    """Whether a CSV writer quoted cells of the table whose header is at line `start`."""
    header, index = _read_row(lines, start, dialect)
    if header is None or lines[start].startswith('"'):
        return header is not None
    while index < len(lines):
        cells, end = _read_row(lines, index, dialect)
        if cells is None or len(cells) != len(header):
            index += 1
            continue
        row = lines[index:end]
        is_over_lines = len(row) > 1 and not _swallows_rows(row, dialect, len(cells))
        if is_over_lines or any(
            '"' in cell and cell.replace('"', '""') in "".join(row) for cell in cells
        ):
            return True
        index = end
    return False


def _decode_cells(cells: list[str], encodings: list[str], encodings_key: str) -> list[str] | None:
    texts = []
    for cell in cells:
        text = decode_text(cell.encode("latin-1"), encodings, encodings_key)
        if text is None:
            return None
        texts.append(text)
    return texts
