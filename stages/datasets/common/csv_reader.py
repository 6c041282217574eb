"""Tables of delimited text, CSV or TSV, for the formats that read them.

The first record names the columns; the delimiter is the one that cuts it into most. A quoted cell
may hold delimiters, line ends and, doubled, quotes. A record that is no CSV or has another number
of cells costs its first line alone: reading goes on behind that line, so that a quote which nobody
closed does not swallow the rows below it.
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

MALFORMED_REASONS = (
    "not CSV",
    "wrong count",
)  # reasons of lines that may be a part of a row, or several

CsvRow = tuple[str, dict[str, str]]  # file:line, column -> cell


def read_csv(
    path: Path, encodings: list[str], name: str
) -> tuple[list[str], Iterator[CsvRow | Rejection]]:
    """The columns of a file, and its rows, or Reject, in order; blank ones are passed over.

    `name` is the key of params.yaml that lists the encodings. Raises WrongInput if the file has no
    header, or one in which a column stands twice.
    """
    content = path.read_bytes()
    if content.startswith(UTF_16_BOMS):
        content, encodings = _transcode_to_utf_8(content, path), ["utf-8"]
    # Latin-1 keeps every byte: CSV's own characters are found first, and cells decoded then.
    text = content.removeprefix(codecs.BOM_UTF8).decode("latin-1")
    lines = list(io.StringIO(text, newline=""))
    place = next((number for number, line in enumerate(lines) if line.strip()), None)
    if place is None:
        raise InputError(f"{path} is empty: give it a line that names its columns, and rows")
    found = {mark: _read_record(lines, place, mark) for mark in DELIMITERS}
    delimiter = max(found, key=lambda mark: len(found[mark][0] or []))  # of equals the first
    cells, place = found[delimiter]
    header = _decode_cells(cells, encodings, name) if cells else None
    if header is None:
        raise InputError(
            f"{path}: its first line names no columns as text in {' or '.join(encodings)}: repair "
            f"it, or add its encoding to {name} of params.yaml"
        )
    columns = [column.strip() for column in header]
    if twice := [column for column, count in Counter(columns).items() if column and count > 1]:
        raise InputError(f"{path} names the column {twice[0][:60]!r} twice: name each column once")
    return columns, _read_rows(lines, place, delimiter, columns, path.name, encodings, name)


def check_columns(needed: Iterable[str], columns: Iterable[str], path: Path, fix: str) -> None:
    """Raises WrongInput that names every column that the file lacks, and says `fix`."""
    columns = list(columns)
    if missing := [column for column in dict.fromkeys(needed) if column not in columns]:
        named = ", ".join(columns)[:200]
        raise InputError(f"{path} has no column {', '.join(missing)} (there: {named}): {fix}")


def _transcode_to_utf_8(content: bytes, path: Path) -> bytes:
    try:
        return content.decode("utf-16").encode()
    except UnicodeDecodeError:
        raise InputError(f"{path} begins as UTF-16 and is none: save it as UTF-8") from None


def _read_rows(
    lines: list[str],
    place: int,
    delimiter: str,
    columns: list[str],
    file: str,
    encodings: list[str],
    name: str,
) -> Iterator[CsvRow | Rejection]:
    while place < len(lines):
        source = f"{file}:{place + 1}"
        cells, end = _read_record(lines, place, delimiter)
        if cells is None:
            fault = "a quote is not closed, or text follows a closed one"
            yield Rejection(source, f"{MALFORMED_REASONS[0]}: {fault}")
            place += 1
            continue
        if not any(map(str.strip, cells)):
            place = end
            continue
        if len(cells) != len(columns):
            found = f"{len(cells)} cells under {len(columns)} columns"
            yield Rejection(source, f"{MALFORMED_REASONS[1]}: {found}")
            place += 1
            continue
        place, texts = end, _decode_cells(cells, encodings, name)
        if texts is None:
            yield Rejection(source, f"undecodable line: not {' or '.join(encodings)}")
        else:
            yield source, dict(zip(columns, texts, strict=True))


def _read_record(lines: list[str], place: int, delimiter: str) -> tuple[list[str] | None, int]:
    """The cells of the record that begins in a line, None if it is no CSV, and the line behind."""
    reader = csv.reader(
        (lines[n] for n in range(place, len(lines))), delimiter=delimiter, strict=True
    )
    try:
        return next(reader), place + reader.line_num
    except csv.Error:
        return None, place + 1


def _decode_cells(cells: list[str], encodings: list[str], name: str) -> list[str] | None:
    texts = [decode_text(cell.encode("latin-1"), encodings, name) for cell in cells]
    return None if None in texts else texts
