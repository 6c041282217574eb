"""What several formats share: where files lie, why a row does not fit, published splits."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from stages.shared.data.records import Captioned, PictureFile, Reject, decode
from stages.shared.runtime.stage import WrongInput

# published: as the source names them; hash: ingest decides; auto: as published where that leaves
# something to train on and to test, else by hash (a part of a corpus may be of one split only).
Splits = Literal["published", "hash", "auto"]
SPLITS = {"val": "validation", "dev": "validation"}  # other names that are in use
SPLIT_FILES = {
    "train": ("train.txt",),
    "validation": ("valid.txt", "dev.txt", "val.txt"),
    "test": ("test.txt",),
}
SUFFIXES = (".jpg", ".jpeg", ".png")
HIDDEN = "._"  # macOS puts a file of this name beside each file that it packs: AppleDouble


def reason(error: ValidationError) -> str:
    """Why a row is rejected, by the first field that does not fit."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"not JSON: {first['msg']}"
    place = ".".join(map(str, first["loc"])) or "the line"
    return f"wrong field: {place}: {first['msg']}"


def holding(source: Path, names: Iterable[str], fix: str) -> Path:
    """The folder that holds a file of one of the names: `source`, or one within it.

    Raises WrongInput, which says `fix`, if there is none, and if there are two.
    """
    if not source.is_dir():
        raise WrongInput(f"{source} is a file: give the folder that holds it and the pictures")
    names, within = list(names), sorted(path for path in source.iterdir() if path.is_dir())
    found = [
        folder for folder in (source, *within) if any((folder / name).is_file() for name in names)
    ]
    if not found:
        sought = " or ".join(names)
        raise WrongInput(f"{source} holds no {sought}, and no folder in it does: {fix}")
    if len(found) > 1:
        both = f"{found[0].name} and {found[1].name}"
        raise WrongInput(f"{source} holds {' or '.join(names)} in {both}: keep one")
    return found[0]


def lines(path: Path, encodings: list[str], name: str) -> Iterator[tuple[str, str] | Reject]:
    """(file:line, text without its end) of each line that is not blank, or Reject.

    Only a line feed ends a line; `name` is the key of params.yaml that lists the encodings.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            source = f"{path.name}:{number}"
            text = decode(line.rstrip(b"\r\n"), encodings, name)
            if text is None:
                yield Reject(source, f"undecodable line: not {' or '.join(encodings)}")
            elif text.strip():
                yield source, text


def split_files(folder: Path) -> dict[str, Path]:
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
        raise WrongInput(f"{folder} holds no {needed}: put it there")
    return found


def files(source: Path, folders: list[str], suffixes: tuple[str, ...]) -> dict[str, str]:
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
                if end.lower() == suffix and not name.startswith(HIDDEN):
                    found.setdefault(stem, os.path.join(folder, name))
    return found


def pictures(source: Path, folders: list[str]) -> dict[str, str]:
    """The picture files of some folders under `source`, as `files` finds them."""
    return files(source, folders, SUFFIXES)


def picture(name: str, found: dict[str, str], source: Path) -> PictureFile:
    """The picture of a name; where there is none, one that ingest will miss."""
    return PictureFile(found.get(name, f"{name}{SUFFIXES[0]}"), source)


def settled(rows: Iterable[Captioned], splits: Splits) -> list[Captioned]:
    """The rows with their split kept, or left to ingest, as `splits` says."""
    rows = list(rows)
    whole = {"train", "test"} <= {row.split for row in rows}
    if splits == "published" or (splits == "auto" and whole):
        return rows
    return [replace(row, split=None) for row in rows]
