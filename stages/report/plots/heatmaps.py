"""Attention as images: a matrix of cells, or weights laid over the image that they refer to.

The images contain no text, so they need no font; the page labels them. Equal weights give equal
bytes: PNG files with a palette and without metadata.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from stages.shared.data import image_store
from stages.shared.metrics import attention
from stages.shared.metrics.attention import NormalizedBox

ROW_HEIGHT = 20  # of a matrix, pixels; page.css gives the labels the same height
MATRIX_WIDTH = 320  # about the width of a matrix, pixels
PALETTE_SIZE = 128  # colors of a PNG file
_COLORMAP = colormaps["viridis"]  # readable on light and dark, and by color-blind readers
_HEAT_COLOR = np.array([255.0, 170.0, 0.0])  # over the image at the largest weight
_BRIGHTNESS = 0.75  # of the image beneath
_SATURATION = 0.75  # of the image beneath; colors distinguish objects of equal brightness
_MAX_OPACITY = 0.65  # of the heat at the largest weight: the image stays visible
_BOX_COLOR = (0, 255, 255)
_TINT_OPACITY = 0.3  # of _BOX_COLOR over an exchanged cell


def to_grid(weights: np.ndarray) -> np.ndarray | None:
    """Weights of patches (P,) as a grid (n, n), row by row. A class token before it is dropped.

    Returns None if P is neither n * n nor n * n + 1.
    """
    side = attention.grid_size(len(weights))
    return None if side is None else weights[len(weights) - side * side :].reshape(side, side)


def draw_matrix(weights: np.ndarray) -> Image.Image:
    """Draw weights (rows, columns) as cells. The largest weight is the brightest."""
    pixels = (_COLORMAP(_divide_by_max(weights))[..., :3] * 255).round().astype(np.uint8)
    cell_width = max(2, MATRIX_WIDTH // weights.shape[1])
    return Image.fromarray(pixels.repeat(ROW_HEIGHT, axis=0).repeat(cell_width, axis=1))


def draw_overlay(
    image: Image.Image, weights: np.ndarray, crop_fraction: float | None, box: NormalizedBox | None
) -> Image.Image:
    """Dim the image and color it by weights (n, n): the larger the weight, the more orange.

    crop_fraction: side of the center square that the grid covers, as a fraction of the image's
    shorter side; None: the grid covers the whole image. box: is framed; in coordinates of the whole
    image.
    """
    width, height = image.size
    left, top, right, bottom = _covered_area(image, crop_fraction)
    heat = np.zeros((height, width))
    rows = (np.arange(bottom - top) * len(weights)) // (bottom - top)
    columns = (np.arange(right - left) * len(weights)) // (right - left)
    heat[top:bottom, left:right] = _divide_by_max(weights)[rows][:, columns]
    overlay = _blend_heat(image, heat)
    if box is not None:
        sizes = (width, height, width, height)
        edges = [round(edge * (size - 1)) for edge, size in zip(box, sizes, strict=True)]
        ImageDraw.Draw(overlay).rectangle(edges, outline=_BOX_COLOR, width=_line_width(image))
    return overlay


def _covered_area(image: Image.Image, crop_fraction: float | None) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the area that the encoder read."""
    if crop_fraction is None:
        return 0, 0, *image.size
    return compute_center_square(*image.size, crop_fraction)


def _blend_heat(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Dim the image and color it by heat (height, width), 0 to 1."""
    gray = np.asarray(image.convert("L"), dtype=float)[..., None]
    dimmed = _BRIGHTNESS * ((1 - _SATURATION) * gray + _SATURATION * np.asarray(image, dtype=float))
    opacity = _MAX_OPACITY * heat[..., None]
    blended = (1 - opacity) * dimmed + opacity * _HEAT_COLOR
    return Image.fromarray(blended.round().astype(np.uint8))


def _line_width(image: Image.Image) -> int:
    """Of a frame, pixels."""
    return max(1, round(max(image.size) / 120))


def draw_mask(
    image: Image.Image, mask: Image.Image, quads: list[list[float]], side: int
) -> Image.Image:
    """Dim the image, color the masked area and frame the quads. At most `side` pixels long.

    mask: of the image's size, 255 inside. quads: x and y of 4 corners each, in pixels of the image.
    """
    resized = image_store.resize_and_strip_metadata(image.copy(), side)
    x_scale, y_scale = (new / old for new, old in zip(resized.size, image.size, strict=True))
    inside = np.asarray(mask.convert("L").resize(resized.size, Image.Resampling.NEAREST))
    overlay = _blend_heat(resized, (inside > 0).astype(float))
    for quad in quads:
        corners = [(x * x_scale, y * y_scale) for x, y in zip(quad[::2], quad[1::2], strict=True)]
        ring, width = [*corners, corners[0]], _line_width(resized)
        ImageDraw.Draw(overlay).line(ring, fill=_BOX_COLOR, width=width, joint="curve")
    return overlay


def draw_exchanges(
    image: Image.Image, weights: np.ndarray, indices: list[int], crop_fraction: float | None
) -> Image.Image:
    """`draw_overlay` of weights (P,) that form a grid, with exchanged cells framed and tinted.

    indices: of the exchanged weights, from 0.
    """
    grid = to_grid(weights)
    if grid is None:
        raise ValueError(f"{len(weights)} weights form no grid")
    overlay, side = draw_overlay(image, grid, crop_fraction, None), len(grid)
    left, top, right, bottom = _covered_area(image, crop_fraction)
    tint = Image.new("RGB", overlay.size, _BOX_COLOR)
    num_before = len(weights) - side * side  # a class token has no cell
    for cell in [index - num_before for index in indices if index >= num_before]:
        row, column = divmod(cell, side)
        # The pixels that `draw_overlay` assigns to this cell.
        edges = (
            left - (-column * (right - left) // side),
            top - (-row * (bottom - top) // side),
            left - (-(column + 1) * (right - left) // side),
            top - (-(row + 1) * (bottom - top) // side),
        )
        tinted = Image.blend(overlay.crop(edges), tint.crop(edges), _TINT_OPACITY)
        overlay.paste(tinted, edges[:2])
        frame = [edges[0], edges[1], edges[2] - 1, edges[3] - 1]
        ImageDraw.Draw(overlay).rectangle(frame, outline=_BOX_COLOR, width=_line_width(image))
    return overlay


def compute_center_square(
    width: int, height: int, fraction: float = 1.0
) -> tuple[int, int, int, int]:
    """The center square of an image: left, top, right, bottom, pixels.

    fraction: its side relative to the shorter side of the image.
    """
    side = max(1, round(min(width, height) * fraction))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def encode_png(image: Image.Image) -> bytes:
    """The content of a PNG file with a palette."""
    quantized = image.quantize(
        PALETTE_SIZE, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    content = BytesIO()
    quantized.save(content, "PNG", optimize=True)
    return content.getvalue()


def save_png(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))


def _divide_by_max(weights: np.ndarray) -> np.ndarray:
    """Scale weights to a maximum of 1; all 0 stay 0."""
    largest = weights.max()
    return weights / largest if largest > 0 else np.zeros_like(weights)
