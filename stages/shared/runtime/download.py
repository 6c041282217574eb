"""Download single files of weights, such as those of torchvision and LaMa.

Models of the Hugging Face Hub are downloaded and cached by huggingface_hub itself.
"""

import hashlib
from functools import partial
from http import HTTPStatus
from pathlib import Path

from filelock import FileLock

from stages.shared.runtime.progress import update_interval

CHUNK_SIZE = 1 << 20  # bytes that are hashed at once


class ChecksumError(Exception):
    """A complete file has another checksum than its name or its source promises."""


def download_file(url: str, path: Path, algorithm: str, checksum: str) -> None:
    """Download `url` to `path`, which appears only when its checksum is right.

    algorithm: of hashlib; checksum: its hexadecimal digest, or the beginning of it. What arrived
    before a connection broke or the process was killed lies beside `path` and is not requested
    again. Of several processes one downloads and the others wait. Shows a progress bar.

    Raises ChecksumError, and what the HTTP client raises. Does nothing if `path` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_name(f"{path.name}.incomplete")
    with FileLock(path.with_name(f"{path.name}.lock")):
        if path.exists():
            return
        if not _has_checksum(partial_file, algorithm, checksum):
            _append_rest(url, partial_file, path.name)
        if not _has_checksum(partial_file, algorithm, checksum):
            partial_file.unlink()
            raise ChecksumError(f"its {algorithm} checksum is not {checksum}: nothing was kept")
        partial_file.replace(path)


def _append_rest(url: str, file: Path, description: str) -> None:
    """Append what follows the bytes that `file` already has."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get  # resumes when the connection breaks
    from tqdm import tqdm  # when used, as in progress.py

    get = partial(
        http_get,
        displayed_filename=f"download {description}",
        tqdm_class=partial(tqdm, mininterval=update_interval(), dynamic_ncols=True),  # pyright: ignore[reportArgumentType] (called like a class)
    )
    with file.open("ab") as stream:
        try:
            get(url, stream, resume_size=stream.tell())
        except HfHubHTTPError as error:
            if error.response.status_code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            stream.truncate(0)  # longer than the server's file, so of another one
            get(url, stream)


def _has_checksum(file: Path, algorithm: str, checksum: str) -> bool:
    return file.exists() and compute_checksum(file, algorithm).startswith(checksum)


def compute_checksum(path: Path, algorithm: str) -> str:
    """The hexadecimal digest of a file. algorithm: of hashlib."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            digest.update(chunk)
    return digest.hexdigest()
