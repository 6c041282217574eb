"""Masks of text, and the crops around them that inpainting works on.

A mask is (H, W) uint8: 255 where the picture is to be painted anew, 0 elsewhere.
"""

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from stages.inpaint.text_detection import Quads, compute_text_height
from stages.shared.core.config import Field, config_class

FillFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (H, W, 3) RGB and mask -> (H, W, 3)


@config_class
class TextMaskConfig:
    """The section `inpaint.mask`."""

    margin: float = Field(ge=0)
    border_width: float = Field(ge=0)
    min_uniform_fraction: float = Field(ge=0)
    color_tolerance: int = Field(ge=0)
    dilation: float = Field(ge=0)
    line_extension: float = Field(ge=0)


class Crop(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int


def build_text_mask(picture: np.ndarray, quads: Quads, params: TextMaskConfig) -> np.ndarray:
    """The mask of the lines of a picture (H, W, 3): of one on plain ground, as in a bar, what
    differs from the ground; of one over something else its whole box, grown by the margin."""
    mask, boxes = (np.zeros(picture.shape[:2], np.uint8) for _ in range(2))
    every = [quad.round().astype(np.int32) for quad in quads]
    for corners in every:
        cv2.fillPoly(boxes, [corners], 255)
    for corners, quad in zip(every, quads, strict=True):
        height = compute_text_height(quad)
        widest = max(params.margin, params.dilation, params.line_extension)
        reach = round((widest + params.border_width) * height) + 2
        left, top, across, down = cv2.boundingRect(corners)
        place = (
            slice(max(0, top - reach), top + down + reach),
            slice(max(0, left - reach), left + across + reach),
        )
        here = quad - (place[1].start, place[0].start)
        found = build_line_mask(picture[place], boxes[place], here, height, params)
        np.maximum(mask[place], found, out=mask[place])
    return mask


def build_line_mask(
    part: np.ndarray, boxes: np.ndarray, quad: np.ndarray, height: float, params: TextMaskConfig
) -> np.ndarray:
    """The mask of one line within the part of the picture (H, W, 3) around it.

    boxes: (H, W) the boxes of all lines; what lies in another one is no ground.
    """
    box = fill_quad(boxes.shape, quad)
    grown = dilate_mask(box, params.margin * height)
    rim = np.zeros_like(box)
    corners = [quad.round().astype(np.int32)]
    cv2.polylines(rim, corners, True, 255, 2 * round(params.border_width * height) + 1)
    rim[(boxes > 0) & (box == 0)] = 0
    ground = np.median(part[rim > 0], axis=0)
    differs = np.abs(part - ground.astype(np.float32)).max(2) > params.color_tolerance
    if differs[rim > 0].mean() > 1 - params.min_uniform_fraction:
        return grown
    letters = np.where(differs, grown, 0).astype(np.uint8)
    longer = fill_quad(boxes.shape, extend_quad(quad, params.line_extension * height))
    letters |= keep_enclosed_shapes(np.where(differs, longer, 0).astype(np.uint8), longer)
    return dilate_mask(letters, params.dilation * height) & (grown | longer)


def keep_enclosed_shapes(shapes: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Of the shapes those that lie wholly within: dots and quotes that the box of a line misses,
    and not the edge of a photo beside it."""
    edge = within & ~cv2.erode(within, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(shapes)
    crossing = np.unique(labels[edge > 0])
    return np.where((labels > 0) & ~np.isin(labels, crossing), shapes, 0).astype(np.uint8)


def fill_quad(shape: tuple[int, int], quad: np.ndarray) -> np.ndarray:
    box = np.zeros(shape, np.uint8)
    cv2.fillPoly(box, [quad.round().astype(np.int32)], 255)
    return box


def extend_quad(quad: np.ndarray, pixels: float) -> np.ndarray:
    """The box (4, 2) longer by so many pixels at both ends of its text."""
    across, down = quad[1] - quad[0], quad[3] - quad[0]
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if lengths[0] >= lengths[1]:
        step = across / max(lengths[0], 1) * pixels
        return quad + np.array([-step, step, step, -step])
    step = down / max(lengths[1], 1) * pixels
    return quad + np.array([-step, -step, step, step])


def dilate_mask(mask: np.ndarray, pixels: float) -> np.ndarray:
    size = 2 * round(pixels) + 1
    return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)))


def find_crops(mask: np.ndarray, context: int) -> list[Crop]:
    """Rectangles that hold the mask with `context` pixels around it; no two of them overlap."""
    height, width = mask.shape
    count, _, found, _ = cv2.connectedComponentsWithStats(mask)
    waiting = [
        Crop(
            max(0, int(left) - context),
            max(0, int(top) - context),
            min(width, int(left + across) + context),
            min(height, int(top + down) + context),
        )
        for left, top, across, down, _ in found[1:count]
    ]
    apart: list[Crop] = []
    while waiting:
        crop = waiting.pop()
        if touching := [other for other in apart if _crops_overlap(crop, other)]:
            apart = [other for other in apart if other not in touching]
            waiting.append(_merge_crops([crop, *touching]))
        else:
            apart.append(crop)
    return sorted(apart)


def _crops_overlap(one: Crop, other: Crop) -> bool:
    across = max(one.left, other.left) < min(one.right, other.right)
    return across and max(one.top, other.top) < min(one.bottom, other.bottom)


def _merge_crops(some: list[Crop]) -> Crop:
    lefts, tops, rights, bottoms = zip(*some, strict=True)
    return Crop(min(lefts), min(tops), max(rights), max(bottoms))


def inpaint_image(
    picture: np.ndarray, mask: np.ndarray, fill: FillFunction, context: int, side: int
) -> np.ndarray:
    """The picture (H, W, 3) painted anew where the mask is set; every other pixel is as it was.

    A crop with more than side x side pixels is filled at that size, and what is new scaled back.
    """
    result = picture.copy()
    for left, top, right, bottom in find_crops(mask, context):
        place = slice(top, bottom), slice(left, right)
        filled = _fill_at_max_size(picture[place], mask[place], fill, side)
        inside = mask[place] > 0
        result[place][inside] = filled[inside]
    return result


def _fill_at_max_size(
    picture: np.ndarray, mask: np.ndarray, fill: FillFunction, side: int
) -> np.ndarray:
    height, width = mask.shape
    scale = side / (height * width) ** 0.5
    if scale >= 1:
        return fill(picture, mask)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Of a pixel that the mask touches no colour may get out.
    part = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    touched = (part > 0).astype(np.uint8) * np.uint8(255)
    small = fill(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), touched)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def to_png(mask: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(mask, "L").save(file, "PNG")
    return file.getvalue()


def from_png(content: bytes) -> np.ndarray:
    """The mask that `to_png` wrote, as tables.INPAINTED keeps it."""
    return np.asarray(Image.open(BytesIO(content), formats=["PNG"]))
