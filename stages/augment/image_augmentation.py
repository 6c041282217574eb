"""Image augmentation: horizontal flip, brightness, contrast, hue and saturation.

MM-ORIENT (arXiv:2508.16300): in this order, each sampled independently, as tf.image's random_*
functions do; values are clipped to [0, 1] after each step. All samples are a function of a name
alone, so that an augmented image does not depend on the order in which images are processed.

Where the paper differs: its code passes BGR images to functions that expect RGB, so that its hues
are different. Here everything is RGB.
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
    """The ranges of one augmentation policy; text and arrows in a flipped image are mirrored."""

    flip_prob: float = Field(ge=0, le=1, description="images flipped left to right")
    brightness: float = Field(ge=0, le=1, description="maximum change, of 0 (black) to 1")
    contrast_low: float = Field(ge=0, description="factor of the distance from the channel mean")
    contrast_high: float = Field(ge=0, description="upper end of that factor")
    hue: float = Field(ge=0, le=1, description="maximum rotation, fraction of the color circle")
    saturation_low: float = Field(ge=0, description="factor")
    saturation_high: float = Field(ge=0, description="upper end of that factor")

    def __post_init__(self) -> None:
        for name in ("contrast", "saturation"):
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if low > high:
                raise ValueError(f"{name}_low is {low}: give {name}_high ({high}) or less")


@dataclass(frozen=True)
class ImageTransform:
    """The sampled changes of one image; see AugmentationRangesConfig."""

    flip: bool
    brightness: float
    contrast: float
    hue: float
    saturation: float


def sample_transform(ranges: AugmentationRangesConfig, name: str) -> ImageTransform:
    """The transform that `name` seeds.

    All values are always sampled, so that a change of one range does not affect the others.
    """
    random = Random(name)
    return ImageTransform(
        random.random() < ranges.flip_prob,
        random.uniform(-ranges.brightness, ranges.brightness),
        random.uniform(ranges.contrast_low, ranges.contrast_high),
        random.uniform(-ranges.hue, ranges.hue),
        random.uniform(ranges.saturation_low, ranges.saturation_high),
    )


def augment_image(
    content: bytes, ranges: AugmentationRangesConfig, name: str, jpeg_quality: int | None
) -> bytes:
    """The image file with the transform that `name` seeds. jpeg_quality: 1 to 100; None: PNG."""
    pixels = np.asarray(image_store.decode_image(content))
    image = Image.fromarray(apply_transform(pixels, sample_transform(ranges, name)))
    file = BytesIO()
    if jpeg_quality is None:
        image.save(file, "PNG", compress_level=6)
    else:
        image.save(file, "JPEG", quality=jpeg_quality, subsampling=0)
    return file.getvalue()


def apply_transform(pixels: np.ndarray, transform: ImageTransform) -> np.ndarray:
    """Transform RGB pixels from 0 to 255.  (H, W, 3) -> (H, W, 3)"""
    values = pixels.astype(np.float32) / 255
    if transform.flip:
        values = values[:, ::-1]
    values = np.clip(values + np.float32(transform.brightness), 0, 1)
    mean = values.mean((0, 1), keepdims=True)
    values = np.clip((values - mean) * np.float32(transform.contrast) + mean, 0, 1)
    values = adjust_hue_saturation(values, transform.hue, transform.saturation)
    return np.round(values * 255).astype(np.uint8)


def adjust_hue_saturation(values: np.ndarray, rotation: float, factor: float) -> np.ndarray:
    """Rotate the hue and scale the saturation of RGB values from 0 to 1.  (..., 3) -> (..., 3)

    rotation: fraction of the color circle. Computed in HSV: V = max, S = (max - min) / max; the
    channel with n = 5, 3, 1 is V - V S max(0, min(k, 4 - k, 1)) with k = (n + 6 hue) mod 6.
    """
    high, low = values.max(-1), values.min(-1)
    spread = high - low
    divisor = np.where(spread > 0, spread, 1)
    red, green, blue = np.moveaxis(values, -1, 0)
    sixths = np.where(
        high == red,
        (green - blue) / divisor,
        np.where(high == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = np.where(spread > 0, sixths, 0) + np.float32(6 * rotation)
    saturation = np.clip(spread / np.where(high > 0, high, 1) * np.float32(factor), 0, 1)
    channels = []
    for n in (5, 3, 1):
        k = (n + sixths) % 6
        channels.append(high - high * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.stack(channels, -1)
