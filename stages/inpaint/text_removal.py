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
from stages.inpaint.inpainters import InpainterConfig
from stages.inpaint.masks import TextMaskConfig
from stages.inpaint.text_detection import Quads, TextDetectionConfig, TextRecognitionConfig
from stages.shared.data import image_store

MAX_WEBP_SIDE = 16383  # the format's limit
WEBP_OPTIONS = {"lossless": True, "method": 0, "quality": 0}  # WebP: below PNG in size and in time


class TextBoxes(NamedTuple):
    quads: Quads  # (N, 4, 2) corners in pixels of the upright picture
    scores: np.ndarray  # (N,) how sure each is, 0 to 1

    def pack(self) -> bytes:
        return save({"quads": np.ascontiguousarray(self.quads), "scores": self.scores})


class InpaintResult(NamedTuple):
    content: bytes  # a picture file
    mask: bytes  # PNG, mode L: 255 where it was painted anew
    masked_share: float  # share of the pixels

    def pack(self) -> bytes:
        parts = {"content": self.content, "mask": self.mask}
        arrays = {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}
        return save({**arrays, "masked": np.array([self.masked_share], np.float64)})


def unpack_boxes(row: bytes) -> TextBoxes:
    found = load(row)
    return TextBoxes(found["quads"], found["scores"])


def unpack_inpaint_result(row: bytes) -> InpaintResult:
    found = load(row)
    masked = float(found["masked"][0])
    return InpaintResult(found["content"].tobytes(), found["mask"].tobytes(), masked)


def _decode_pixels(content: bytes) -> np.ndarray:
    return np.asarray(image_store.decode_image(content))  # (H, W, 3)


def find(content: bytes, params: TextDetectionConfig) -> TextBoxes:
    return TextBoxes(*text_detection.detect_text(_decode_pixels(content), params))


def paint(
    content: bytes, quads: Quads, masking: TextMaskConfig, params: InpainterConfig
) -> InpaintResult:
    """The picture without what stands in the boxes, of which there is one at least."""
    picture = _decode_pixels(content)
    mask = masks.build_text_mask(picture, quads, masking)
    fill = partial(inpainters.fill_masked, params=params)
    result = masks.inpaint_image(picture, mask, fill, params.context_pixels, params.max_crop_size)
    return InpaintResult(encode_image(result), masks.to_png(mask), float((mask > 0).mean()))


def read(
    content: bytes, quads: Quads, finding: TextDetectionConfig, params: TextRecognitionConfig
) -> str:
    return text_detection.read_text(_decode_pixels(content), quads, finding, params)


def encode_image(picture: np.ndarray) -> bytes:
    file = BytesIO()
    if max(picture.shape) <= MAX_WEBP_SIDE:
        Image.fromarray(picture, "RGB").save(file, "WEBP", **WEBP_OPTIONS)
    else:
        Image.fromarray(picture, "RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()
