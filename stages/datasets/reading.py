"""What several formats share: why a row does not fit, pictures by their names, published splits."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from stages.shared.records import Captioned, PictureFile, Reject, decode

# published: as the source names them; hash: ingest decides; auto: as published where that leaves
# something to train on and to test, else by hash (a part of a corpus may be of one split only).
Splits = Literal["published", "hash", "auto"]
SPLITS = {"val": "validation", "dev": "validation"}  # other names that are in use
SUFFIXES = (".jpg", ".jpeg", ".png")
HIDDEN = "._"  # macOS puts a file of this name beside each file that it packs: AppleDouble


def reason(error: ValidationError) -> str:
    """Why a row is rejected, by the first field that does not fit."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"not JSON: {first['msg']}"
    place = ".".join(map(str, first["loc"])) or "the line"
    return f"wrong field: {place}: {first['msg']}"


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


def pictures(source: Path, folders: list[str]) -> dict[str, str]:
    """The picture files of some folders under `source`: name without suffix -> path from `source`.

    Folders that are not there are passed over; of files with one name the first folder's counts,
    and in it the first suffix of SUFFIXES.
    """
    found: dict[str, str] = {}
    for folder in folders:
        place = source / folder
        names = [entry.name for entry in os.scandir(place)] if place.is_dir() else []
        for suffix in SUFFIXES:
            for name in sorted(names):
                stem, end = os.path.splitext(name)
                if end.lower() == suffix and not name.startswith(HIDDEN):
                    found.setdefault(stem, os.path.join(folder, name))
    return found


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
