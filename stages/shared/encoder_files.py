"""Which files of the folder that align wrote are the encoder, and which are about it."""

from pathlib import Path

REPORTS = {"summary.json", "history.csv"}


def encoder_files(folder: Path) -> list[Path]:
    """The encoder's own files in a fixed order, whatever else align reported there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.name not in REPORTS)
