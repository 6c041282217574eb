"""What paints over text: Telea's march from the edge inward (OpenCV), or LaMa (arXiv:2109.07161).

LaMa by simple-lama-inpainting. Its weights are TorchScript, which is code: only a file of the known
checksum is ever loaded. It is the file at LAMA_MODEL, or downloaded where that is allowed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import md5, sha256
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from stages.shared.core.config import Field, config_class
from stages.shared.runtime.stage import InputError, allow_downloads, model_load_error, work_dir

LAMA_MD5 = "e3aa4aaa15225a33ec84f9f4bc47e500"
LAMA_URL = (
    "https://github.com/enesmsahin/simple-lama-inpainting/releases/download/v0.1.0/big-lama.pt"
)

_load_lock = Lock()  # threads would load the weights each


@config_class
class InpainterConfig:
    """The section `inpaint.paint`."""

    backend: Literal["none", "telea", "lama"]
    context_pixels: int = Field(ge=1)
    max_crop_size: int = Field(ge=1)
    radius: float = Field(ge=1)


def fill_masked(picture: np.ndarray, mask: np.ndarray, params: InpainterConfig) -> np.ndarray:
    """The picture (H, W, 3; RGB) with something else where the mask (H, W) is 255."""
    if params.backend == "lama":
        return _fill_with_lama(picture, mask)
    return cv2.inpaint(np.ascontiguousarray(picture), mask, params.radius, cv2.INPAINT_TELEA)


def fingerprint(params: InpainterConfig) -> str:
    """Names what is painted: settings and versions. Raises WrongInput without LaMa's weights."""
    parts = [repr(params), version("opencv-python-headless")]
    if params.backend == "lama":
        weights = find_lama_weights()
        parts += [
            _compute_md5(weights),
            version("simple-lama-inpainting"),
            version("torch"),
            _get_device_name(),
        ]
    return sha256("\n".join(parts).encode()).hexdigest()


def _get_device_name() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def find_lama_weights() -> Path:
    """The file of LaMa's weights, its checksum checked. Raises WrongInput if there is none."""
    given = os.environ.get("LAMA_MODEL")
    path = Path(given) if given else work_dir() / "weights" / "big-lama.pt"
    if not path.is_file():
        if given:
            raise InputError(f"LAMA_MODEL: {path} is no file: give the path of big-lama.pt")
        _download_lama(path)
    if (found := _compute_md5(path)) != LAMA_MD5:
        raise InputError(
            f"{path} has the checksum {found}, not {LAMA_MD5}: it is code and is not run; give "
            "big-lama.pt of simple-lama-inpainting v0.1.0"
        )
    return path


def _download_lama(path: Path) -> None:
    if not allow_downloads():
        raise InputError(
            "params.yaml: inpaint.paint.backend is lama, whose weights are not here: set "
            "LAMA_MODEL to big-lama.pt, unset HF_HUB_OFFLINE to download it, or give telea"
        )
    from torch.hub import download_url_to_file

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(LAMA_URL, str(path), progress=False)
    except Exception as error:  # of the network
        raise model_load_error(
            "inpaint.paint.backend lama", "LAMA_MODEL=big-lama.pt", error
        ) from None


@cache
def _compute_md5(path: Path) -> str:
    digest = md5(usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def _set_environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@cache
def _load_lama(weights: Path):
    from simple_lama_inpainting import SimpleLama

    with _set_environment("LAMA_MODEL", str(weights)):
        return SimpleLama()


def _fill_with_lama(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import torch

    with _load_lock:
        model = _load_lama(find_lama_weights())
    with torch.jit.optimized_execution(False):  # profiling makes the second call slow
        found = model(Image.fromarray(picture, "RGB"), Image.fromarray(mask, "L"))
    height, width = mask.shape
    return np.asarray(found)[:height, :width]  # it pads to a multiple of 8
