"""Checkpoints of training runs under POLYMUSE_HOME, and the key that identifies a run."""

import os
import sys
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import nn

from stages.shared.runtime.stage import work_dir
from stages.shared.torch_setup.devices import get_device
from stages.shared.training.stage_code import RUNTIME, entry_point, imported_files

PROJECT_ROOT = Path(__file__).parents[3]
HASHED_BLOCK_BYTES = 2**20  # of a file in memory at a time


def fingerprint(values: list[Any], inputs: list[Path], stage: str, model: str = "") -> str:
    """Key of a training run: its configs, its input files, and the code of its stage.

    values: configs, plain values and modules. A module counts by its printed form, which includes
    sizes and dropout, and by its weights.
    inputs: files and folders, hashed with all their contents.
    stage, model: of the run; their files are hashed, see `hash_stage_code`.
    """
    digest = sha256(f"{torch.__version__} {torch.get_num_threads()} {get_device()}".encode())
    for value in values:
        plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        digest.update(repr(plain).encode())
        if isinstance(value, nn.Module):
            for name, weight in value.state_dict().items():
                digest.update(name.encode() + weight.cpu().numpy().tobytes())
    for source in inputs:
        for path in sorted(path for path in [source, *source.rglob("*")] if path.is_file()):
            digest.update(str(path.relative_to(source)).encode())
            with path.open("rb") as file:
                while block := file.read(HASHED_BLOCK_BYTES):
                    digest.update(block)
    digest.update(hash_stage_code(stage, model, PROJECT_ROOT).encode())
    return digest.hexdigest()[:24]


def hash_stage_code(stage: str, model: str, root: Path) -> str:
    """sha256 of the files that a stage of the project in `root` imports and that affect results.

    model: of the run; its modules are imported by name. Which other modules the process has
    imported does not matter.
    """
    files = imported_files(entry_point(stage, root), {"model": model} if model else {}, root)
    digest = sha256()
    for path in sorted(path for path in files if RUNTIME not in path.parents):
        digest.update(str(path).encode() + (root / path).read_bytes())
    return digest.hexdigest()


class Checkpoint:
    """The latest state of a run, kept outside DVC's outputs. One key per name is stored."""

    def __init__(self, name: str, key: str):
        """name: of the run; key: its `fingerprint`"""
        self.folder = work_dir() / "checkpoints" / name
        self.path = self.folder / f"{key}.pt"

    def read(self) -> dict[str, Any] | None:
        """The stored state, None if there is none under this key, or a damaged one."""
        if not self.path.exists():
            return None
        if _is_damaged(self.path):
            print(f"warning: {self.path} is damaged: training starts again", file=sys.stderr)
            return None
        return torch.load(self.path, map_location=get_device(), weights_only=True)

    def write(self, state: dict[str, Any]) -> None:
        """Replace the stored state atomically and delete those of other keys."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
        for other in self.folder.glob("*.pt"):
            if other != self.path:
                other.unlink()


def _is_damaged(file: Path) -> bool:
    """Whether a file of torch.save, a zip archive, lacks a part or has one with a wrong checksum.

    Errors of torch.load do not tell: it raises OSError and RuntimeError, also without memory.
    """
    try:
        with ZipFile(file) as archive:
            return archive.testzip() is not None
    except BadZipFile:
        return True
