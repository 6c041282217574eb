"""Checkpoints of training runs under POLYMUSE_HOME, and the key that says when one may be resumed."""

import os
import sys
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.shared.runtime.stage import work_dir
from stages.shared.torch_setup.devices import get_device

# Modules that cannot change a result.
RESULT_NEUTRAL_MODULES = Path("stages/shared/runtime")


def fingerprint(values: list[Any], inputs: list[Path]) -> str:
    """Key of a training run: its numbers, its input files, and the code that is loaded now.

    Of a module counts how it is built (its printed form tells sizes and dropout) and its weights.
    """
    digest = sha256(f"{torch.__version__} {torch.get_num_threads()} {get_device()}".encode())
    for value in values:
        digest.update(repr(asdict(value) if is_dataclass(value) else value).encode())
        if isinstance(value, nn.Module):
            for name, weight in value.state_dict().items():
                digest.update(name.encode() + weight.cpu().numpy().tobytes())
    for given in inputs:  # folders and files
        for path in sorted(path for path in [given, *given.rglob("*")] if path.is_file()):
            digest.update(str(path.relative_to(given)).encode() + path.read_bytes())
    for path in sorted(Path("stages").rglob("*.py")):
        if RESULT_NEUTRAL_MODULES not in path.parents and _is_loaded(path):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _is_loaded(path: Path) -> bool:
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return str(path.absolute()) in files


class Checkpoint:
    """The latest state of a run, outside DVC's outs, replaced as a whole; one key per name."""

    def __init__(self, name: str, key: str):
        self.folder = work_dir() / "checkpoints" / name
        self.path = self.folder / f"{key}.pt"

    def read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        return torch.load(self.path, map_location=get_device(), weights_only=True)

    def write(self, state: dict[str, Any]) -> None:
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
