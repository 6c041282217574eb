"""Overlay text of one picture: where it is, the picture without it, what it says.

A picture comes in as the bytes of its file and is worked on as stages/shared/data/image_store.py decodes it:
RGB, upright, transparency on white, the first frame of an animation. What is painted anew is saved
without loss, so that every pixel outside the mask is the one that was decoded.
"""

from functools import partial
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from stages.inpaint import inpainters, masks, text_detection
from stages.inpaint.inpainters import Painting
from stages.inpaint.masks import Masking
from stages.inpaint.text_detection import Finding, Quads, Reading
from stages.shared.data import image_store

WEBP_SIDE = 16383  # the format's limit
FAST = {"lossless": True, "method": 0, "quality": 0}  # WebP: below PNG in size and in time


class Boxes(NamedTuple):
    quads: Quads  # (N, 4, 2) corners in pixels of the upright picture
    scores: np.ndarray  # (N,) how sure each is, 0 to 1

    def pack(self) -> bytes:
        return save({"quads": np.ascontiguousarray(self.quads), "scores": self.scores})


class Painted(NamedTuple):
    content: bytes  # a picture file
    mask: bytes  # PNG, mode L: 255 where it was painted anew
    masked: float  # share of the pixels

    def pack(self) -> bytes:
        parts = {"content": self.content, "mask": self.mask}
        arrays = {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}
        return save({**arrays, "masked": np.array([self.masked], np.float64)})


def unpack_boxes(row: bytes) -> Boxes:
    found = load(row)
    return Boxes(found["quads"], found["scores"])


def unpack_painted(row: bytes) -> Painted:
    found = load(row)
    masked = float(found["masked"][0])
    return Painted(found["content"].tobytes(), found["mask"].tobytes(), masked)


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(image_store.decode(content))  # (H, W, 3)


def find(content: bytes, params: Finding) -> Boxes:
    return Boxes(*text_detection.find(_pixels(content), params))


def paint(content: bytes, quads: Quads, masking: Masking, params: Painting) -> Painted:
    """The picture without what stands in the boxes, of which there is one at least."""
    picture = _pixels(content)
    mask = masks.draw(picture, quads, masking)
    fill = partial(inpainters.fill, params=params)
    result = masks.inpaint(picture, mask, fill, params.context, params.side)
    return Painted(to_file(result), masks.to_png(mask), float((mask > 0).mean()))


def read(content: bytes, quads: Quads, finding: Finding, params: Reading) -> str:
    return text_detection.read(_pixels(content), quads, finding, params)


def to_file(picture: np.ndarray) -> bytes:
    file = BytesIO()
    if max(picture.shape) <= WEBP_SIDE:
        Image.fromarray(picture, "RGB").save(file, "WEBP", **FAST)
    else:
        Image.fromarray(picture, "RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()
