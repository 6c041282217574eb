"""Which files of the folder that align wrote are the encoder, and which are about it."""

import shutil
from hashlib import sha256
from pathlib import Path

REPORT_FILES = {"summary.json", "history.csv"}
ENCODER_DIR = "encoder"  # folder within that of a model


def list_encoder_files(folder: Path) -> list[Path]:
    """The encoder's own files in a fixed order, whatever else align reported there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name not in REPORT_FILES)


def copy_encoder(folder: Path, model: Path) -> None:
    """Put a copy of the encoder that align left in `folder` into the folder of a model."""
    for file in list_encoder_files(folder):
        copied = model / ENCODER_DIR / file.relative_to(folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)


def fingerprint_folder(folder: Path) -> str:
    """sha256 over the names and bytes of the encoder's files."""
    digest = sha256()
    for path in list_encoder_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
