"""Masks of text, and the crops around them that inpainting works on.

A mask is (H, W) uint8: 255 where the picture is to be painted anew, 0 elsewhere.
"""

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from stages.shared.text_boxes import Quads

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (H, W, 3) RGB and mask -> (H, W, 3)


class Crop(NamedTuple):
    left: int
    top: int
    right: int
    bottom: int


def draw(height: int, width: int, quads: Quads, dilation: float) -> np.ndarray:
    """The mask of boxes, each grown on every side by `dilation` of its text's height."""
    mask = np.zeros((height, width), np.uint8)
    for quad in quads:
        corners = np.round(quad).astype(np.int32)
        cv2.fillPoly(mask, [corners], 255)
        sides = np.linalg.norm(quad - np.roll(quad, 1, axis=0), axis=1)
        grown = round(dilation * float(min(sides[0] + sides[2], sides[1] + sides[3])) / 2)
        if grown > 0:
            cv2.polylines(mask, [corners], True, 255, 2 * grown + 1)
    return mask


def crops(mask: np.ndarray, context: int) -> list[Crop]:
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
        if touching := [other for other in apart if _overlap(crop, other)]:
            apart = [other for other in apart if other not in touching]
            waiting.append(_around([crop, *touching]))
        else:
            apart.append(crop)
    return sorted(apart)


def _overlap(one: Crop, other: Crop) -> bool:
    across = max(one.left, other.left) < min(one.right, other.right)
    return across and max(one.top, other.top) < min(one.bottom, other.bottom)


def _around(some: list[Crop]) -> Crop:
    lefts, tops, rights, bottoms = zip(*some, strict=True)
    return Crop(min(lefts), min(tops), max(rights), max(bottoms))


def inpaint(
    picture: np.ndarray, mask: np.ndarray, fill: Fill, context: int, side: int
) -> np.ndarray:
    """The picture (H, W, 3) painted anew where the mask is set; every other pixel is as it was.

    A crop with more than side x side pixels is filled at that size, and what is new scaled back.
    """
    result = picture.copy()
    for left, top, right, bottom in crops(mask, context):
        place = slice(top, bottom), slice(left, right)
        filled = _fill_at_most(picture[place], mask[place], fill, side)
        inside = mask[place] > 0
        result[place][inside] = filled[inside]
    return result


def _fill_at_most(picture: np.ndarray, mask: np.ndarray, fill: Fill, side: int) -> np.ndarray:
    height, width = mask.shape
    scale = side / (height * width) ** 0.5
    if scale >= 1:
        return fill(picture, mask)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Of a pixel that the mask touches no colour may get out.
    touched = (cv2.resize(mask, size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8) * 255
    small = fill(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), touched)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def to_png(mask: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(mask, "L").save(file, "PNG")
    return file.getvalue()


def from_png(content: bytes) -> np.ndarray:
    """The mask that `to_png` wrote, as tables.INPAINTED keeps it."""
    return np.asarray(Image.open(BytesIO(content), formats=["PNG"]))
