"""Text masks, and inpainting by crops around them.

A mask is (H, W) uint8: 255 where the image is to be inpainted, 0 elsewhere.
"""

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from stages.inpaint.text_detection import Quads, compute_text_height
from stages.shared.core.config import Field, config_class

FillFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]  # image (H, W, 3), mask


@config_class
class TextMaskConfig:
    """The section `inpaint.mask`. Lengths are fractions of the text height of a line."""

    margin: float = Field(ge=0, description="growth of a line's box on each side, in text heights")
    border_width: float = Field(
        ge=0, description="border that shows the background, each side, in text heights"
    )
    min_uniform_fraction: float = Field(
        ge=0, description="border share in one color from which only letters are masked"
    )
    color_tolerance: int = Field(ge=0, description="maximum difference within one color, 0 to 255")
    dilation: float = Field(
        ge=0, description="growth of letters on a uniform background, in text heights"
    )
    line_extension: float = Field(
        ge=0, description="reach beyond a line's ends for dots and quotes, in text heights"
    )


class Crop(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int


def build_text_mask(image: np.ndarray, quads: Quads, config: TextMaskConfig) -> np.ndarray:
    """The mask of the text lines of an image (H, W, 3).

    On a uniform background (such as a bar), the pixels that differ from it are masked; on any other
    background, the whole box of the line grown by the margin.
    """
    mask, boxes = (np.zeros(image.shape[:2], np.uint8) for _ in range(2))
    all_corners = [quad.round().astype(np.int32) for quad in quads]
    for corners in all_corners:
        cv2.fillPoly(boxes, [corners], 255)
    for corners, quad in zip(all_corners, quads, strict=True):
        text_height = compute_text_height(quad)
        growth = max(config.margin, config.dilation, config.line_extension)
        reach = round((growth + config.border_width) * text_height) + 2
        left, top, width, height = cv2.boundingRect(corners)
        window = (
            slice(max(0, top - reach), top + height + reach),
            slice(max(0, left - reach), left + width + reach),
        )
        local_quad = quad - (window[1].start, window[0].start)
        line = build_line_mask(image[window], boxes[window], local_quad, text_height, config)
        np.maximum(mask[window], line, out=mask[window])
    return mask


def build_line_mask(
    image: np.ndarray,
    boxes: np.ndarray,
    quad: np.ndarray,
    text_height: float,
    config: TextMaskConfig,
) -> np.ndarray:
    """The mask of one line within the part of the image (H, W, 3) around it.

    boxes: (H, W) boxes of all lines. Pixels in other boxes do not count as background.
    """
    box = fill_quad(boxes.shape, quad)
    grown = dilate_mask(box, config.margin * text_height)
    border = np.zeros_like(box)
    corners = [quad.round().astype(np.int32)]
    cv2.polylines(border, corners, True, 255, 2 * round(config.border_width * text_height) + 1)
    border[(boxes > 0) & (box == 0)] = 0
    if not border.any():  # a box at the edge of the image
        return grown
    background = np.median(image[border > 0], axis=0)
    differs = np.abs(image - background.astype(np.float32)).max(2) > config.color_tolerance
    if differs[border > 0].mean() > 1 - config.min_uniform_fraction:
        return grown
    letters = np.where(differs, grown, 0).astype(np.uint8)
    extended = fill_quad(boxes.shape, extend_quad(quad, config.line_extension * text_height))
    letters |= keep_enclosed_shapes(np.where(differs, extended, 0).astype(np.uint8), extended)
    return dilate_mask(letters, config.dilation * text_height) & (grown | extended)


def keep_enclosed_shapes(shapes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The connected shapes that do not touch the edge of the region.

    This keeps dots and quotes that a line's box misses, and drops the edge of an adjacent photo.
    """
    edge = region & cv2.bitwise_not(cv2.erode(region, np.ones((3, 3), np.uint8)))
    _, labels = cv2.connectedComponents(shapes)
    crossing = np.unique(labels[edge > 0])
    return np.where((labels > 0) & ~np.isin(labels, crossing), shapes, 0).astype(np.uint8)


def fill_quad(shape: tuple[int, int], quad: np.ndarray) -> np.ndarray:
    """A mask of this shape that is set inside the quadrilateral (4, 2)."""
    box = np.zeros(shape, np.uint8)
    cv2.fillPoly(box, [quad.round().astype(np.int32)], 255)
    return box


def extend_quad(quad: np.ndarray, pixels: float) -> np.ndarray:
    """The box (4, 2) extended at both ends along its longer side."""
    right, down = quad[1] - quad[0], quad[3] - quad[0]
    width, height = np.linalg.norm(right), np.linalg.norm(down)
    if width >= height:
        step = right / max(width, 1) * pixels
        return quad + np.array([-step, step, step, -step])
    step = down / max(height, 1) * pixels
    return quad + np.array([-step, -step, step, step])


def dilate_mask(mask: np.ndarray, pixels: float) -> np.ndarray:
    """The mask grown by a radius, rounded to whole pixels."""
    size = 2 * round(pixels) + 1
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))


def find_crops(mask: np.ndarray, context: int) -> list[Crop]:
    """Disjoint rectangles that cover the mask with `context` pixels around it."""
    image_height, image_width = mask.shape
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    pending = [
        Crop(
            max(0, int(left) - context),
            max(0, int(top) - context),
            min(image_width, int(left + width) + context),
            min(image_height, int(top + height) + context),
        )
        for left, top, width, height, _ in stats[1:count]  # 0 is the background
    ]
    disjoint: list[Crop] = []
    while pending:
        crop = pending.pop()
        if overlapping := [other for other in disjoint if _crops_overlap(crop, other)]:
            disjoint = [other for other in disjoint if other not in overlapping]
            pending.append(_merge_crops([crop, *overlapping]))
        else:
            disjoint.append(crop)
    return sorted(disjoint)


def _crops_overlap(a: Crop, b: Crop) -> bool:
    horizontally = max(a.left, b.left) < min(a.right, b.right)
    return horizontally and max(a.top, b.top) < min(a.bottom, b.bottom)


def _merge_crops(crops: list[Crop]) -> Crop:
    lefts, tops, rights, bottoms = zip(*crops, strict=True)
    return Crop(min(lefts), min(tops), max(rights), max(bottoms))


def inpaint_image(
    image: np.ndarray, mask: np.ndarray, fill: FillFunction, context: int, max_crop_size: int
) -> np.ndarray:
    """The image (H, W, 3) inpainted where the mask is set; all other pixels are unchanged.

    A crop with more than max_crop_size ** 2 pixels is scaled down to that area for inpainting.
    """
    result = image.copy()
    for left, top, right, bottom in find_crops(mask, context):
        window = slice(top, bottom), slice(left, right)
        filled = _fill_at_max_size(image[window], mask[window], fill, max_crop_size)
        inside = mask[window] > 0
        result[window][inside] = filled[inside]
    return result


def _fill_at_max_size(
    image: np.ndarray, mask: np.ndarray, fill: FillFunction, max_size: int
) -> np.ndarray:
    height, width = mask.shape
    scale = max_size / (height * width) ** 0.5
    if scale >= 1:
        return fill(image, mask)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Mask every pixel that mixes in a masked one, or text color would leak into the result.
    coverage = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    small_mask = (coverage > 0).astype(np.uint8) * np.uint8(255)
    small = fill(cv2.resize(image, size, interpolation=cv2.INTER_AREA), small_mask)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def to_png(mask: np.ndarray) -> bytes:
    """The mask as a PNG file of mode L."""
    file = BytesIO()
    Image.fromarray(mask, "L").save(file, "PNG")
    return file.getvalue()


def from_png(content: bytes) -> np.ndarray:
    """The mask in a PNG file from `to_png`, such as column `mask` of INPAINTED_IMAGES."""
    return np.asarray(Image.open(BytesIO(content), formats=["PNG"]))
