"""Find, remove and read the overlay text of one image.

Images are passed as file content and decoded by stages/shared/data/image_store.py: RGB, upright,
transparency on white, the first frame of an animation. An image with more than `working_pixels`
is scaled down to this number first; boxes, mask and inpainted image are those of the scaled image.
Inpainted images are saved losslessly, so that every pixel outside the mask keeps its value.
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
WEBP_OPTIONS = {"lossless": True, "method": 0, "quality": 0}  # smaller and faster than PNG


class TextBoxes(NamedTuple):
    quads: Quads  # (N, 4, 2) corners in pixels of the decoded image
    scores: np.ndarray  # (N,) confidence, 0 to 1

    def pack(self) -> bytes:
        """Serialize; `unpack_boxes` reverses it."""
        return save({"quads": np.ascontiguousarray(self.quads), "scores": self.scores})


NO_BOXES = TextBoxes(np.zeros((0, 4, 2), np.float32), np.zeros(0, np.float32))


class InpaintResult(NamedTuple):
    content: bytes  # an image file
    mask: bytes  # PNG, mode L: 255 where the image was inpainted
    masked_share: float  # fraction of the pixels

    def pack(self) -> bytes:
        """Serialize; `unpack_inpaint_result` reverses it."""
        parts = {"content": self.content, "mask": self.mask}
        arrays = {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}
        return save({**arrays, "masked": np.array([self.masked_share], np.float64)})


def unpack_boxes(row: bytes) -> TextBoxes:
    arrays = load(row)
    return TextBoxes(arrays["quads"], arrays["scores"])


def unpack_inpaint_result(row: bytes) -> InpaintResult:
    arrays = load(row)
    masked_share = float(arrays["masked"][0])
    return InpaintResult(arrays["content"].tobytes(), arrays["mask"].tobytes(), masked_share)


def _decode_pixels(content: bytes, working_pixels: int) -> np.ndarray:
    return np.asarray(image_store.decode_image(content, max_pixels=working_pixels))  # (H, W, 3)


def find(content: bytes, working_pixels: int, config: TextDetectionConfig) -> TextBoxes:
    """The text boxes of an image."""
    return TextBoxes(*text_detection.detect_text(_decode_pixels(content, working_pixels), config))


def paint(
    content: bytes,
    quads: Quads,
    working_pixels: int,
    mask_config: TextMaskConfig,
    config: InpainterConfig,
) -> InpaintResult:
    """The image without the text in the boxes. There must be at least one box."""
    image = _decode_pixels(content, working_pixels)
    mask = masks.build_text_mask(image, quads, mask_config)
    fill = partial(inpainters.fill_masked, config=config)
    result = masks.inpaint_image(image, mask, fill, config.context_pixels, config.max_crop_size)
    return InpaintResult(encode_image(result), masks.to_png(mask), float((mask > 0).mean()))


def read(
    content: bytes,
    quads: Quads,
    working_pixels: int,
    detection: TextDetectionConfig,
    config: TextRecognitionConfig,
) -> str:
    """The text in the boxes, one line of text per line."""
    image = _decode_pixels(content, working_pixels)
    return text_detection.read_text(image, quads, detection, config)


def encode_image(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) RGB pixels losslessly, as WebP where its size limit allows it."""
    file = BytesIO()
    if max(image.shape) <= MAX_WEBP_SIDE:
        Image.fromarray(image, "RGB").save(file, "WEBP", **WEBP_OPTIONS)
    else:
        Image.fromarray(image, "RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()
