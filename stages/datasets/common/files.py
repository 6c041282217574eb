"""What several formats share: where files lie, why a row does not fit, published splits."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from stages.shared.data.records import CaptionRecord, ImageFile, Rejection, decode_text
from stages.shared.runtime.stage import InputError

# published: as the source names them; hash: ingest decides; auto: as published where that leaves
# something to train on and to test, else by hash (a part of a corpus may be of one split only).
SplitPolicy = Literal["published", "hash", "auto"]
SPLIT_ALIASES = {"val": "validation", "dev": "validation"}  # other names that are in use
SPLIT_FILES = {
    "train": ("train.txt",),
    "validation": ("valid.txt", "dev.txt", "val.txt"),
    "test": ("test.txt",),
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
APPLE_DOUBLE_PREFIX = (
    "._"  # macOS puts a file of this name beside each file that it packs: AppleDouble
)


def describe_validation_error(error: ValidationError) -> str:
    """Why a row is rejected, by the first field that does not fit."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"not JSON: {first['msg']}"
    place = ".".join(map(str, first["loc"])) or "the line"
    return f"wrong field: {place}: {first['msg']}"


def find_corpus_dir(source: Path, names: Iterable[str], fix: str) -> Path:
    """The folder that holds a file of one of the names: `source`, or one within it.

    Raises WrongInput, which says `fix`, if there is none, and if there are two.
    """
    if not source.is_dir():
        raise InputError(f"{source} is a file: give the folder that holds it and the pictures")
    names, within = list(names), sorted(path for path in source.iterdir() if path.is_dir())
    found = [
        folder for folder in (source, *within) if any((folder / name).is_file() for name in names)
    ]
    if not found:
        sought = " or ".join(names)
        raise InputError(f"{source} holds no {sought}, and no folder in it does: {fix}")
    if len(found) > 1:
        both = f"{found[0].name} and {found[1].name}"
        raise InputError(f"{source} holds {' or '.join(names)} in {both}: keep one")
    return found[0]


def read_lines(
    path: Path, encodings: list[str], name: str
) -> Iterator[tuple[str, str] | Rejection]:
    """(file:line, text without its end) of each line that is not blank, or Reject.

    Only a line feed ends a line; `name` is the key of params.yaml that lists the encodings.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            source = f"{path.name}:{number}"
            text = decode_text(line.rstrip(b"\r\n"), encodings, name)
            if text is None:
                yield Rejection(source, f"undecodable line: not {' or '.join(encodings)}")
            elif text.strip():
                yield source, text


def find_split_files(folder: Path) -> dict[str, Path]:
    """The files of the splits that are there. Raises WrongInput without train, or without both
    of validation and test."""
    found = {
        split: folder / name
        for split, names in SPLIT_FILES.items()
        for name in reversed(names)  # the first counts
        if (folder / name).is_file()
    }
    if "train" not in found or len(found) == 1:
        needed = "train.txt" if "train" not in found else "valid.txt and no test.txt"
        raise InputError(f"{folder} holds no {needed}: put it there")
    return found


def index_files(source: Path, folders: list[str], suffixes: tuple[str, ...]) -> dict[str, str]:
    """The files of some folders under `source`: name without suffix -> path from `source`.

    Folders that are not there are passed over; of files with one name the first folder's counts,
    and in it the first of the suffixes.
    """
    found: dict[str, str] = {}
    for folder in folders:
        place = source / folder
        names = [entry.name for entry in os.scandir(place)] if place.is_dir() else []
        for suffix in suffixes:
            for name in sorted(names):
                stem, end = os.path.splitext(name)
                if end.lower() == suffix and not name.startswith(APPLE_DOUBLE_PREFIX):
                    found.setdefault(stem, os.path.join(folder, name))
    return found


def index_images(source: Path, folders: list[str]) -> dict[str, str]:
    """The picture files of some folders under `source`, as `files` finds them."""
    return index_files(source, folders, IMAGE_SUFFIXES)


def resolve_image_file(name: str, found: dict[str, str], source: Path) -> ImageFile:
    """The picture of a name; where there is none, one that ingest will miss."""
    return ImageFile(found.get(name, f"{name}{IMAGE_SUFFIXES[0]}"), source)


def apply_split_policy(rows: Iterable[CaptionRecord], splits: SplitPolicy) -> list[CaptionRecord]:
    """The rows with their split kept, or left to ingest, as `splits` says."""
    rows = list(rows)
    whole = {"train", "test"} <= {row.split for row in rows}
    if splits == "published" or (splits == "auto" and whole):
        return rows
    return [replace(row, split=None) for row in rows]
