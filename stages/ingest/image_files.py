"""Find the image files that a source names, also if it names them as another system would.

A name may use backslashes (Windows), or another Unicode normalization form (macOS) or case than the
file on disk.
"""

import os
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

import regex

from stages.shared.data.image_store import ImageError
from stages.shared.data.records import ImageFile

URL_PATTERN = regex.compile(r"//|(?:https?|ftp|file|data|blob|cid):", regex.IGNORECASE)
WINDOWS_DRIVE_PATTERN = regex.compile(r"[A-Za-z]:[\\/]|\\")
MAX_BYTES_PER_PIXEL = 8  # RGBA with 16 bits: image files are hardly larger, whatever their format


def read_image_file(image: ImageFile, root: Path, max_pixels: int) -> bytes:
    """The bytes of an image file.

    Raises ImageError if it is remote, outside `root`, missing, unreadable or far too large.
    """
    name = image.path[:120]
    if URL_PATTERN.match(image.path):
        raise ImageError(f"remote image: addresses are not fetched ({name})")
    try:
        path = find_file(image.folder, image.path, root)
        if path is None:
            raise ImageError(f"missing image: {name}")
        if path.stat().st_size > MAX_BYTES_PER_PIXEL * max_pixels:
            raise ImageError(f"image larger than max_pixels: {path.stat().st_size} bytes ({name})")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError):  # no permission, NUL in the name, a link loop
        raise ImageError(f"missing image: {name!r} cannot be read") from None


def find_file(folder: Path, name: str, root: Path) -> Path | None:
    """The file called `name`, relative to `folder`, or None.

    A name that does not exist as it is written is read with slashes for backslashes, and compared
    in NFC, then without case. Raises ImageError if it leads out of `root`, or if several files fit.
    """
    names = [name, name.replace("\\", "/")] if "\\" in name else [name]
    for candidate in names:
        path = (folder / candidate).resolve()
        is_absolute = Path(candidate).is_absolute() or WINDOWS_DRIVE_PATTERN.match(name)
        if is_absolute or not path.is_relative_to(root.resolve()):
            raise ImageError(f"path leaves the folder: {name[:120]}")
        if path.is_file():
            return path
    return _find_similar_file(folder.resolve(), names[-1], root)


def _find_similar_file(folder: Path, name: str, root: Path) -> Path | None:
    path = folder
    for part in Path(name).parts:
        if part == "..":
            path = path.parent
            continue
        entries = _list_folder(path)
        similar = entries.get(normalize("NFC", part)) or entries.get(_fold(part), [])
        if len(similar) > 1:
            raise ImageError(
                f"missing image: {name[:120]} may be {similar[0]} or {similar[1]}: name one of them"
            )
        if not similar:
            return None
        path = path / similar[0]
    if not path.resolve().is_relative_to(root.resolve()):
        raise ImageError(f"path leaves the folder: {name[:120]}")
    return path if path.is_file() else None


@lru_cache(maxsize=64)
def _list_folder(folder: Path) -> dict[str, list[str]]:
    """The entries of a folder by their name in NFC, and by their name in NFC without case."""
    entries: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        for key in {normalize("NFC", name), _fold(name)}:
            entries.setdefault(key, []).append(name)
    return entries


def _fold(name: str) -> str:
    return normalize("NFC", normalize("NFC", name).casefold())
