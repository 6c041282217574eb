"""The files of an encoder folder (stages/align.py), without the reports that align adds."""

import shutil
from hashlib import sha256
from pathlib import Path

REPORT_FILES = {"summary.json", "history.csv"}
ENCODER_DIR = "encoder"  # subfolder of a model


def list_encoder_files(folder: Path) -> list[Path]:
    """The encoder's files, sorted, without reports."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name not in REPORT_FILES)


def copy_encoder(folder: Path, model: Path) -> None:
    """Copy the encoder in `folder` to the folder of a model."""
    for file in list_encoder_files(folder):
        target = model / ENCODER_DIR / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def fingerprint_folder(folder: Path) -> str:
    """sha256 of the names and contents of the encoder's files."""
    digest = sha256()
    for path in list_encoder_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
