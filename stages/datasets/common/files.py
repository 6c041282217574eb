"""Helpers of several formats: corpus folders, split lists, image files, reasons of rejection."""

import codecs
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar
from unicodedata import normalize

from pydantic import TypeAdapter, ValidationError

from stages.datasets.common.encodings import UTF_16_BOMS, decode_text, select_plausible
from stages.shared.data.records import CaptionRecord, ImageFile, Rejection
from stages.shared.runtime.stage import InputError

T = TypeVar("T")

# published: the splits that the source names; hash: ingest assigns them; auto: published if there
# are both train and test records, else hash (a part of a corpus may be from one split only).
SplitPolicy = Literal["published", "hash", "auto"]
SPLIT_ALIASES = {"val": "validation", "dev": "validation"}  # other names in use
SPLIT_FILES = {
    "train": ("train.txt",),
    "validation": ("valid.txt", "dev.txt", "val.txt"),
    "test": ("test.txt",),
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
APPLE_DOUBLE_PREFIX = "._"  # macOS packs an AppleDouble file of this name next to every file


def describe_validation_error(error: ValidationError) -> str:
    """The reason why a row is rejected, by its first invalid field."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"not JSON: {first['msg']}"
    field = ".".join(map(str, first["loc"])) or "the line"
    return f"wrong field: {field}: {first['msg']}"


def find_corpus_dir(source: Path, names: Iterable[str], fix: str) -> Path:
    """The folder that holds a file with one of the names: `source`, or a folder in it.

    Raises InputError if there is no such folder (the message ends with `fix`), or more than one.
    """
    if not source.is_dir():
        raise InputError(f"{source} is a file: give the folder that holds it and the images")
    names, subfolders = list(names), sorted(path for path in source.iterdir() if path.is_dir())
    folders = [
        folder
        for folder in (source, *subfolders)
        if any((folder / name).is_file() for name in names)
    ]
    if not folders:
        sought = " or ".join(names)
        raise InputError(f"{source} holds no {sought}, and no folder in it does: {fix}")
    if len(folders) > 1:
        both = f"{folders[0].name} and {folders[1].name}"
        raise InputError(f"{source} holds {' or '.join(names)} in {both}: keep one")
    return folders[0]


def read_lines(
    path: Path, encodings: list[str], encodings_key: str
) -> Iterator[tuple[str, str] | Rejection]:
    """(file:line, text without line end) of each non-blank line, or a Rejection.

    Only a line feed ends a line.

    encodings: tried in this order for each line
    encodings_key: the key of config/formats.yaml that holds them, for messages
    """
    content, encodings = read_bytes(path, encodings)
    for number, line in enumerate(BytesIO(content), start=1):
        source = f"{path.name}:{number}"
        text = decode_text(line.rstrip(b"\r\n"), encodings, encodings_key)
        if text is None:
            yield Rejection(source, f"undecodable line: not {' or '.join(encodings)}")
        elif text.strip():
            yield source, text


def read_bytes(path: Path, encodings: list[str]) -> tuple[bytes, list[str]]:
    """The content of a file without byte order mark, and the encodings to try for its lines.

    UTF-16, which only a whole file can be decoded from, becomes UTF-8.

    encodings: tried in this order, after UTF-8 if the file has its byte order mark; those in which
        it makes no plausible text are left out

    Raises InputError if a file with the byte order mark of UTF-16 is not UTF-16.
    """
    content = path.read_bytes()
    if content.startswith(codecs.BOM_UTF8):
        content = content.removeprefix(codecs.BOM_UTF8)
        encodings = list(dict.fromkeys(["utf-8", *encodings]))
    if not content.startswith(UTF_16_BOMS):
        return content, select_plausible(content.splitlines(), encodings)
    try:
        return content.decode("utf-16").encode(), ["utf-8"]
    except UnicodeDecodeError:
        raise InputError(
            f"{path} has a UTF-16 byte order mark but is not UTF-16: save it as UTF-8"
        ) from None


def parse_json_line(kind: type[T], source: str, line: str) -> T | Rejection:
    """Validate a line of JSON as `kind`, or reject it; `source` is its file:line.

    NaN, which pandas and json.dumps write for a missing value, is read as null. A key that occurs
    twice is rejected, since only one of its values would be read.
    """
    try:
        line = _replace_nan(line)
        return _json_adapter(kind).validate_json(line)
    except _RepeatedKey as error:
        return Rejection(source, f"not JSON: the key {str(error)[:60]!r} occurs twice")
    except ValidationError as error:
        return Rejection(source, describe_validation_error(error))


class _RepeatedKey(Exception):
    """A key that an object has twice."""


def _replace_nan(line: str) -> str:
    """The line with null for NaN; unchanged if it is not JSON. Raises _RepeatedKey."""
    constants: list[str] = []

    def parse_constant(name: str) -> float | None:
        constants.append(name)
        return None if name == "NaN" else float(name)

    try:
        value = json.loads(line, parse_constant=parse_constant, object_pairs_hook=_build_object)
    except (ValueError, RecursionError):  # validation describes what is wrong
        return line
    return json.dumps(value) if "NaN" in constants else line


def _build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _RepeatedKey(key)
    return values


@cache
def _json_adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def find_split_files(folder: Path) -> dict[str, Path]:
    """The existing files by split.

    Raises InputError if train is missing, or both validation and test are.
    """
    paths = {
        split: folder / name
        for split, names in SPLIT_FILES.items()
        for name in reversed(names)  # the first one that exists wins
        if (folder / name).is_file()
    }
    if "train" not in paths or len(paths) == 1:
        missing = "train.txt" if "train" not in paths else "valid.txt and no test.txt"
        raise InputError(f"{folder} holds no {missing}: put it there")
    return paths


def index_files(source: Path, folders: list[str], suffixes: tuple[str, ...]) -> dict[str, str]:
    """The files of some folders under `source`: name without suffix -> path relative to `source`.

    The names are in NFC, since macOS decomposes the letters of file names.

    Missing folders are skipped. Among files of one name the first folder wins, and in a folder the
    first suffix.
    """
    paths: dict[str, str] = {}
    for folder in folders:
        directory = source / folder
        names = [entry.name for entry in os.scandir(directory)] if directory.is_dir() else []
        for suffix in suffixes:
            for name in sorted(names):
                stem, name_suffix = os.path.splitext(name)
                if name_suffix.lower() == suffix and not name.startswith(APPLE_DOUBLE_PREFIX):
                    paths.setdefault(normalize("NFC", stem), os.path.join(folder, name))
    return paths


def index_images(source: Path, folders: list[str]) -> dict[str, str]:
    """The image files of some folders under `source`, as in `index_files`."""
    return index_files(source, folders, IMAGE_SUFFIXES)


def resolve_image_file(name: str, paths: dict[str, str], source: Path) -> ImageFile:
    """The image of a name; without one, a path that ingest reports as missing."""
    return ImageFile(paths.get(normalize("NFC", name), f"{name}{IMAGE_SUFFIXES[0]}"), source)


def apply_split_policy(rows: Iterable[CaptionRecord], policy: SplitPolicy) -> list[CaptionRecord]:
    """Keep the splits of the rows, or leave them to ingest."""
    rows = list(rows)
    has_train_and_test = {"train", "test"} <= {row.split for row in rows}
    if policy == "published" or (policy == "auto" and has_train_and_test):
        return rows
    return [replace(row, split=None) for row in rows]
