"""Renders meme text over an image, with a mask of the text pixels.

Styles:
outlined  white capitals with a black outline, at the top and bottom, or all at the top
plain     white or black capitals, whichever contrasts more, placed in the same way
bar       unchanged case, black in a white bar above the image

The fonts are those of matplotlib and Pillow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# By frequency: most real memes have outlined capitals.
TEXT_STYLES = ["outlined"] * 4 + ["plain"] * 2 + ["bar"] * 2
TEXT_PLACEMENTS = ("both", "both", "above")  # of capitals, all equally probable
MAX_FONT_SIZE, MIN_FONT_SIZE = 1 / 11, 1 / 18  # font size, in image widths
MARGIN = 1 / 40  # around a text block, in image widths
LINE_SPACING = 1.18  # distance of lines, in font sizes
OUTLINE_WIDTH = 1 / 9  # in font sizes
Font = ImageFont.FreeTypeFont
LineBounds = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class OverlaidImage:
    """An image with text over it; both images and the mask have the same size."""

    image: Image.Image  # RGB
    clean_image: Image.Image  # RGB, without the text
    text_mask: np.ndarray  # (H, W) bool: pixels of letters and outlines
    line_bounds: list[LineBounds]  # of each line of text

    def compute_relative_bounds(self) -> list[tuple[float, float, float, float]]:
        """The bounds of the lines as fractions of width and height."""
        width, height = self.image.size
        return [
            (left / width, top / height, right / width, bottom / height)
            for left, top, right, bottom in self.line_bounds
        ]


@dataclass(frozen=True)
class OverlayTextBlock:
    """Centered lines with the same font; the first line begins at `top`."""

    lines: list[str]
    font: Font
    top: float

    @property
    def height(self) -> float:
        return len(self.lines) * self.font.size * LINE_SPACING


def overlay_text(
    image: Image.Image, halves: tuple[str, str], style: str, random: Random
) -> OverlaidImage:
    """Render a text over an image.

    halves: the first and the second part of the text; they may be placed at the top and bottom
    style: one of TEXT_STYLES
    """
    font = random.choice(FONTS[style])
    all_above = style == "bar" or random.choice(TEXT_PLACEMENTS) == "above"
    texts = [", ".join(halves)] if all_above else list(halves)
    if style != "bar":
        texts = [text.upper() for text in texts]
    width, margin = image.width, image.width * MARGIN
    first, *rest = fit_text(texts, font, width, margin)
    if style == "bar":
        image = _add_white_bar(image, round(first.height + 2 * margin))
    lower_blocks = [
        OverlayTextBlock(block.lines, block.font, image.height - margin - block.height)
        for block in rest
    ]
    return _render_text(image, [first, *lower_blocks], style)


def fit_text(
    texts: list[str], font: Callable[[int], Font], width: int, margin: float
) -> list[OverlayTextBlock]:
    """Wrap the texts in the largest size with at most four lines in total, else in the smallest."""
    max_lines = 4 // len(texts)
    blocks: list[OverlayTextBlock] = []
    for size in range(round(width * MAX_FONT_SIZE), round(width * MIN_FONT_SIZE) - 1, -1):
        sized_font = font(size)
        blocks = [
            OverlayTextBlock(
                list(wrap_text(text, sized_font, width - 2 * margin)), sized_font, margin
            )
            for text in texts
        ]
        if all(len(block.lines) <= max_lines for block in blocks):
            break
    return blocks


def wrap_text(text: str, font: Font, width: float) -> Iterator[str]:
    """Yield lines of at most `width` pixels, except for single words that are wider."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _add_white_bar(image: Image.Image, height: int) -> Image.Image:
    canvas = Image.new("RGB", (image.width, image.height + height), "white")
    canvas.paste(image, (0, height))
    return canvas


def _render_text(clean: Image.Image, blocks: list[OverlayTextBlock], style: str) -> OverlaidImage:
    image, text_mask, line_bounds = clean.copy(), Image.new("L", clean.size), []
    for block in blocks:
        size = block.font.size
        stroke_width = max(1, round(size * OUTLINE_WIDTH)) if style == "outlined" else 0
        band = (0, int(block.top), clean.width, int(block.top + block.height))
        is_dark = style == "bar" or (style == "plain" and _is_bright(clean.crop(band)))
        fill = "black" if is_dark else "white"
        for number, line in enumerate(block.lines):
            position = clean.width / 2, block.top + number * size * LINE_SPACING
            draw = partial(_draw_line, position, line, block.font, stroke_width)
            draw(image, fill, "black")
            line_mask = Image.new("L", clean.size)
            draw(line_mask, 255, 255)
            line_bounds.append(line_mask.getbbox())
            text_mask.paste(255, mask=line_mask)
    return OverlaidImage(image, clean, np.asarray(text_mask) > 0, line_bounds)


def _draw_line(
    position: tuple[float, float],
    line: str,
    font: Font,
    stroke_width: int,
    image: Image.Image,
    fill: str | int,
    stroke_fill: str | int,
) -> None:
    ImageDraw.Draw(image).text(
        position,
        line,
        font=font,
        anchor="ma",
        stroke_width=stroke_width,
        fill=fill,
        stroke_fill=stroke_fill,
    )


def _is_bright(image: Image.Image) -> bool:
    return bool(np.asarray(image.convert("L")).mean() > 128)


def _load_matplotlib_font(name: str) -> Callable[[int], Font]:
    path = Path(matplotlib.get_data_path(), "fonts/ttf", name)
    return lambda size: ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _load_pillow_font(size: int) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, Font)  # Pillow's wheels have FreeType
    return font


FONTS: dict[str, list[Callable[[int], Font]]] = {
    "outlined": [_load_matplotlib_font("DejaVuSans-Bold.ttf")],
    "plain": [
        _load_matplotlib_font("DejaVuSans-Bold.ttf"),
        _load_matplotlib_font("DejaVuSerif-Bold.ttf"),
    ],
    "bar": [_load_matplotlib_font("DejaVuSans.ttf"), _load_pillow_font],
}
