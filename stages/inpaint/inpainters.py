"""Inpainting backends: Telea's fast marching method (OpenCV) and LaMa (arXiv:2109.07161).

LaMa is run by simple-lama-inpainting. Its weights are TorchScript, which can execute code, so only
a file with the known checksum is loaded: the file at the environment variable LAMA_MODEL, or a
download where downloads are allowed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from stages.shared.core.config import Field, config_class
from stages.shared.runtime.download import compute_checksum, download_file
from stages.shared.runtime.stage import InputError, allow_downloads, model_load_error, work_dir

LAMA_MD5 = "e3aa4aaa15225a33ec84f9f4bc47e500"
LAMA_URL = (
    "https://github.com/enesmsahin/simple-lama-inpainting/releases/download/v0.1.0/big-lama.pt"
)

_load_lock = Lock()  # without it, each thread would load the weights


@config_class
class InpainterConfig:
    """The section `inpaint.inpainting`."""

    backend: Literal["none", "telea", "lama"] = Field(description="inpainting method")
    context_pixels: int = Field(ge=1, description="pixels around a text that the method sees")
    max_crop_size: int = Field(
        ge=1, description="larger crops are scaled down to this side, pixels"
    )
    radius: float = Field(ge=1, description="telea: neighborhood of a pixel, pixels")


def fill_masked(image: np.ndarray, mask: np.ndarray, config: InpainterConfig) -> np.ndarray:
    """Inpaint an image (H, W, 3; RGB) where the mask (H, W) is 255.

    LaMa may change other pixels by rounding. Raises InputError if LaMa's weights are missing.
    """
    if config.backend == "lama":
        return _fill_with_lama(image, mask)
    return cv2.inpaint(np.ascontiguousarray(image), mask, config.radius, cv2.INPAINT_TELEA)


def fingerprint(config: InpainterConfig) -> str:
    """Hash of the settings and versions that determine the output of `fill_masked`.

    Raises InputError if LaMa's weights are missing.
    """
    parts = [repr(config), version("opencv-python-headless")]
    if config.backend == "lama":
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


def lama_weights_path() -> Path:
    """Where the weights of LaMa are, or will be downloaded to."""
    lama_model = os.environ.get("LAMA_MODEL")
    return Path(lama_model) if lama_model else work_dir() / "weights" / "big-lama.pt"


def find_lama_weights() -> Path:
    """The file of LaMa's weights, downloaded if necessary, with a verified checksum.

    Raises InputError if it is missing or has another checksum.
    """
    path = lama_weights_path()
    if not path.is_file():
        if os.environ.get("LAMA_MODEL"):
            raise InputError(f"LAMA_MODEL: {path} is not a file: give the path of big-lama.pt")
        _download_lama(path)
    if (checksum := _compute_md5(path)) != LAMA_MD5:
        raise InputError(
            f"{path} has the checksum {checksum}, not {LAMA_MD5}: it contains code and is not "
            "loaded; give big-lama.pt of simple-lama-inpainting v0.1.0"
        )
    return path


def _download_lama(path: Path) -> None:
    if not allow_downloads():
        raise InputError(
            "params.yaml: inpaint.inpainting.backend is lama, but its weights are missing: set "
            "LAMA_MODEL to big-lama.pt, unset HF_HUB_OFFLINE to download it, or choose telea"
        )
    try:
        download_file(LAMA_URL, path, "md5", LAMA_MD5)
    except Exception as error:  # network errors have no common type
        raise model_load_error(
            "inpaint.inpainting.backend lama", "LAMA_MODEL=big-lama.pt", error
        ) from None


@cache
def _compute_md5(path: Path) -> str:
    return compute_checksum(path, "md5")


@contextmanager
def _set_environment(name: str, value: str) -> Iterator[None]:
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if previous is not None:
            os.environ[name] = previous


@cache
def _load_lama(weights: Path):
    from simple_lama_inpainting import SimpleLama

    with _set_environment("LAMA_MODEL", str(weights)):
        return SimpleLama()


def _fill_with_lama(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import torch

    with _load_lock:
        model = _load_lama(find_lama_weights())
    # Profiling would slow down the second call.
    with torch.jit.optimized_execution(False):  # pyright: ignore[reportPrivateImportUsage] (public)
        result = model(Image.fromarray(image, "RGB"), Image.fromarray(mask, "L"))
    height, width = mask.shape
    return np.asarray(result)[:height, :width]  # the result is padded to a multiple of 8
