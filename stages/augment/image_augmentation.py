"""Another look of a picture: flipped, brighter or darker, with more or less contrast and colour.

MM-ORIENT (arXiv:2508.16300): flip left to right, brightness, contrast, hue, saturation, in this
order, each drawn anew, as tf.image's random_* functions do them; a value that leaves 0 to 1 is cut
off after each. What is drawn follows from a name alone, so that it is the same wherever and
in whatever order pictures are made.

Where the paper differs: its code hands pictures with blue first to functions that want red first,
so that its hues are others. Here everything is RGB.
"""

from dataclasses import dataclass
from io import BytesIO
from random import Random

import numpy as np
from PIL import Image

from stages.shared.core.config import Field, config_class
from stages.shared.data import image_store


@config_class
class AugmentationRangesConfig:
    """flip: share of pictures that are flipped; text or arrows in one then read the wrong way."""

    flip_prob: float = Field(ge=0, le=1)
    brightness: float = Field(ge=0, le=1)  # added or taken away at most, of 0 (black) to 1
    contrast_low: float = Field(ge=0)  # factor of the distance from the mean of each colour
    contrast_high: float = Field(ge=0)
    hue: float = Field(ge=0, le=1)  # turned by so much of the colour circle at most
    saturation_low: float = Field(ge=0)  # factor
    saturation_high: float = Field(ge=0)

    def __post_init__(self) -> None:
        for name in ("contrast", "saturation"):
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if low > high:
                raise ValueError(f"{name}_low is {low}: give {name}_high ({high}) or less")


@dataclass(frozen=True)
class ImageTransform:
    """What is done to one picture."""

    flip: bool
    brightness: float
    contrast: float
    hue: float
    saturation: float


def sample_transform(ranges: AugmentationRangesConfig, name: str) -> ImageTransform:
    """The look that `name` draws; every value is drawn, whatever the ranges are."""
    random = Random(name)
    return ImageTransform(
        random.random() < ranges.flip_prob,
        random.uniform(-ranges.brightness, ranges.brightness),
        random.uniform(ranges.contrast_low, ranges.contrast_high),
        random.uniform(-ranges.hue, ranges.hue),
        random.uniform(ranges.saturation_low, ranges.saturation_high),
    )


def augment_image(
    content: bytes, ranges: AugmentationRangesConfig, name: str, quality: int | None
) -> bytes:
    """The file of a picture as `name` makes it look: a PNG, or with `quality` (1 to 100) a JPEG."""
    image = Image.fromarray(
        apply_transform(
            np.asarray(image_store.decode_image(content)), sample_transform(ranges, name)
        )
    )
    file = BytesIO()
    if quality is None:
        image.save(file, "PNG", compress_level=6)
    else:
        image.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def apply_transform(pixels: np.ndarray, look: ImageTransform) -> np.ndarray:
    """(H, W, 3) of RGB, 0 to 255 -> the same in another look."""
    values = pixels.astype(np.float32) / 255
    if look.flip:
        values = values[:, ::-1]
    values = np.clip(values + np.float32(look.brightness), 0, 1)
    mean = values.mean((0, 1), keepdims=True)
    values = np.clip((values - mean) * np.float32(look.contrast) + mean, 0, 1)
    values = adjust_hue_saturation(values, look.hue, look.saturation)
    return np.round(values * 255).astype(np.uint8)


def adjust_hue_saturation(values: np.ndarray, turn: float, factor: float) -> np.ndarray:
    """(..., 3) of RGB, 0 to 1: hue turned by a share of the circle, saturation times a factor.

    By way of hue, saturation and value: V = max, S = (max - min) / max; a channel at n = 5, 3, 1 is
    V - V S max(0, min(k, 4 - k, 1)) with k = (n + 6 hue) mod 6.
    """
    high, low = values.max(-1), values.min(-1)
    spread = high - low
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = np.moveaxis(values, -1, 0)
    sixths = np.where(
        high == red,
        (green - blue) / safe,
        np.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = np.where(spread > 0, sixths, 0) + np.float32(6 * turn)
    saturation = np.clip(spread / np.where(high > 0, high, 1) * np.float32(factor), 0, 1)
    channels = []
    for n in (5, 3, 1):
        k = (n + sixths) % 6
        channels.append(high - high * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.stack(channels, -1)
