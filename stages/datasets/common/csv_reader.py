"""Read tables as CSV or TSV, for the formats that consist of them.

The first row names the columns; the delimiter is the one that splits it into the most columns. A
quoted cell may contain delimiters, line ends and doubled quotes. If a row is malformed or has the
wrong number of cells, only its first line is rejected and reading continues on the next line, so
that an unclosed quote does not swallow the rows below it.
"""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from stages.shared.data.records import Rejection, decode_text
from stages.shared.runtime.stage import InputError

DELIMITERS = (",", "\t", ";", "|")
UTF_16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Rejected for these reasons, a line may be part of a row, or contain several.
MALFORMED_REASONS = ("not CSV", "wrong count")

CsvRow = tuple[str, dict[str, str]]  # file:line, column -> cell


def read_csv(
    path: Path, encodings: list[str], encodings_key: str
) -> tuple[list[str], Iterator[CsvRow | Rejection]]:
    """The columns of a file, and its rows or rejections in order. Blank rows are skipped.

    encodings: tried in this order for each cell
    encodings_key: the key of config/formats.yaml that holds them, for messages

    Raises InputError if the file has no header, or the header names a column twice.
    """
    content = path.read_bytes()
    if content.startswith(UTF_16_BOMS):
        content, encodings = _transcode_to_utf_8(content, path), ["utf-8"]
    # Latin-1 keeps every byte: the CSV syntax is parsed first, and the cells are decoded after it.
    text = content.removeprefix(codecs.BOM_UTF8).decode("latin-1")
    lines = list(io.StringIO(text, newline=""))
    start = next((index for index, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise InputError(f"{path} is empty: add a line that names its columns, and rows")
    headers = {delimiter: _read_row(lines, start, delimiter) for delimiter in DELIMITERS}
    delimiter = max(headers, key=lambda delimiter: len(headers[delimiter][0] or []))
    cells, start = headers[delimiter]
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
    return columns, _read_rows(
        lines, start, delimiter, columns, path.name, encodings, encodings_key
    )


def check_columns(needed: Iterable[str], columns: Iterable[str], path: Path, fix: str) -> None:
    """Raises InputError that names every missing column and ends with `fix`."""
    columns = list(columns)
    if missing := [column for column in dict.fromkeys(needed) if column not in columns]:
        present = ", ".join(columns)[:200]
        raise InputError(
            f"{path} has no column {', '.join(missing)} (its columns: {present}): {fix}"
        )


def _transcode_to_utf_8(content: bytes, path: Path) -> bytes:
    try:
        return content.decode("utf-16").encode()
    except UnicodeDecodeError:
        raise InputError(
            f"{path} has a UTF-16 byte order mark but is not UTF-16: save it as UTF-8"
        ) from None


def _read_rows(
    lines: list[str],
    start: int,
    delimiter: str,
    columns: list[str],
    file_name: str,
    encodings: list[str],
    encodings_key: str,
) -> Iterator[CsvRow | Rejection]:
    while start < len(lines):
        source = f"{file_name}:{start + 1}"
        cells, end = _read_row(lines, start, delimiter)
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


def _read_row(lines: list[str], start: int, delimiter: str) -> tuple[list[str] | None, int]:
    """The cells of the row that starts at a line, None if malformed, and the next row's line."""
    reader = csv.reader(
        (lines[index] for index in range(start, len(lines))), delimiter=delimiter, strict=True
    )
    try:
        return next(reader), start + reader.line_num
    except csv.Error:
        return None, start + 1


def _decode_cells(cells: list[str], encodings: list[str], encodings_key: str) -> list[str] | None:
    texts = []
    for cell in cells:
        text = decode_text(cell.encode("latin-1"), encodings, encodings_key)
        if text is None:
            return None
        texts.append(text)
    return texts
