"""Attention as pictures: a matrix of cells, and weights laid over the picture they look at.

Without any text in them, so that they need no font; the page says what they show. The same weights
give the same bytes: PNG files of a fixed palette and without metadata.
"""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from stages.shared.data import image_store
from stages.shared.metrics import attention
from stages.shared.metrics.attention import NormalizedBox

ROW_HEIGHT = 20  # pixels of a row of the matrix; the page's labels are as high
MATRIX_WIDTH = 320  # of the whole matrix, about
PALETTE_SIZE = 128  # of a file
_COLORMAP = colormaps["viridis"]  # readable on light and dark, and by the colour-blind
_HEAT_COLOR = np.array([255.0, 170.0, 0.0])  # over the picture where a weight is largest
_BRIGHTNESS = 0.75  # brightness of the picture beneath
_SATURATION = 0.75  # of its colours, which tell objects that are equally bright apart
_MAX_OPACITY = 0.65  # of the heat at its largest: the picture shows through
_BOX_COLOR = (0, 255, 255)
_TINT_OPACITY = 0.3  # of that colour over an exchanged cell


def to_grid(weights: np.ndarray) -> np.ndarray | None:
    """(P,) weights of patches -> (n, n) by row; a token before the grid is left out.

    None if they are no grid.
    """
    side = attention.grid_size(len(weights))
    return None if side is None else weights[len(weights) - side * side :].reshape(side, side)


def draw_matrix(weights: np.ndarray) -> Image.Image:
    """(rows, columns) of weights as cells, the largest brightest."""
    pixels = (_COLORMAP(_divide_by_max(weights))[..., :3] * 255).round().astype(np.uint8)
    wide = max(2, MATRIX_WIDTH // weights.shape[1])
    return Image.fromarray(pixels.repeat(ROW_HEIGHT, axis=0).repeat(wide, axis=1))


def draw_overlay(
    picture: Image.Image, weights: np.ndarray, middle: bool, box: NormalizedBox | None
) -> Image.Image:
    """The picture, duller, the warmer a place the more weight (n, n) it has; with a box if given.

    middle: the grid lies over the picture's middle square, else over all of it. `box` is of the
    whole picture.
    """
    width, height = picture.size
    left, top, right, bottom = (
        compute_center_square(width, height) if middle else (0, 0, width, height)
    )
    heat = np.zeros((height, width))
    rows = (np.arange(bottom - top) * len(weights)) // (bottom - top)
    columns = (np.arange(right - left) * len(weights)) // (right - left)
    heat[top:bottom, left:right] = _divide_by_max(weights)[rows][:, columns]
    mixed = _blend_heat(picture, heat)
    if box is not None:
        sizes = (width, height, width, height)
        edges = [round(edge * (size - 1)) for edge, size in zip(box, sizes, strict=True)]
        ImageDraw.Draw(mixed).rectangle(edges, outline=_BOX_COLOR, width=_line_width(picture))
    return mixed


def _blend_heat(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """The picture, duller, the warmer a pixel the more heat (height, width) it has, 0 to 1."""
    grey = np.asarray(picture.convert("L"), dtype=float)[..., None]
    dull = _BRIGHTNESS * ((1 - _SATURATION) * grey + _SATURATION * np.asarray(picture, dtype=float))
    share = _MAX_OPACITY * heat[..., None]
    return Image.fromarray(((1 - share) * dull + share * _HEAT_COLOR).round().astype(np.uint8))


def _line_width(picture: Image.Image) -> int:
    """Of a frame's line, pixels."""
    return max(1, round(max(picture.size) / 120))


def draw_mask(
    picture: Image.Image, mask: Image.Image, quads: list[list[float]], side: int
) -> Image.Image:
    """The picture, at most `side` pixels long and duller, warm where the mask is, quads framed.

    mask: of the picture's size, 255 inside; quads: 8 numbers of 4 corners each, in its pixels.
    """
    small = image_store.resize_and_strip_metadata(picture.copy(), side)
    across, down = (new / old for new, old in zip(small.size, picture.size, strict=True))
    inside = np.asarray(mask.convert("L").resize(small.size, Image.Resampling.NEAREST))
    mixed = _blend_heat(small, (inside > 0).astype(float))
    for quad in quads:
        corners = [(x * across, y * down) for x, y in zip(quad[::2], quad[1::2], strict=True)]
        ring = [*corners, corners[0]]
        ImageDraw.Draw(mixed).line(ring, fill=_BOX_COLOR, width=_line_width(small), joint="curve")
    return mixed


def draw_exchanges(
    picture: Image.Image, weights: np.ndarray, places: list[int], middle: bool
) -> Image.Image:
    """`overlay` of weights (P,) that are a grid, and a frame in a tinted cell at each of `places`.

    places: of the P weights, from 0.
    """
    cells = to_grid(weights)
    mixed, side = draw_overlay(picture, cells, middle, None), len(cells)
    width, height = picture.size
    left, top, right, bottom = (
        compute_center_square(width, height) if middle else (0, 0, width, height)
    )
    tint = Image.new("RGB", mixed.size, _BOX_COLOR)
    before = len(weights) - side * side  # a token before the grid has no place in it
    for place in [place - before for place in places if place >= before]:
        row, column = divmod(place, side)
        # The pixels that `overlay` gives a cell.
        edges = [
            left - (-column * (right - left) // side),
            top - (-row * (bottom - top) // side),
            left - (-(column + 1) * (right - left) // side),
            top - (-(row + 1) * (bottom - top) // side),
        ]
        part = Image.blend(mixed.crop(edges), tint.crop(edges), _TINT_OPACITY)
        mixed.paste(part, edges[:2])
        frame = [edges[0], edges[1], edges[2] - 1, edges[3] - 1]
        ImageDraw.Draw(mixed).rectangle(frame, outline=_BOX_COLOR, width=_line_width(picture))
    return mixed


def compute_center_square(width: int, height: int) -> tuple[int, int, int, int]:
    """The middle square of a picture: left, top, right, bottom."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def save_png(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    few = image.quantize(PALETTE_SIZE, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, "PNG", optimize=True)


def _divide_by_max(weights: np.ndarray) -> np.ndarray:
    """0 to 1, the largest 1; all 0 where nothing has weight."""
    largest = weights.max()
    return weights / largest if largest > 0 else np.zeros_like(weights)
