"""Writes words over a picture as memes have them, and keeps where every pixel of text is.

outlined  white capitals with a black outline, above and below, or all above
plain     white or black capitals, whichever stands out, placed the same way
bar       words as they are, black in a white bar above the picture
The fonts are those that come with matplotlib and Pillow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Frequent as in the wild: most memes have outlined capitals.
TEXT_STYLES = ["outlined"] * 4 + ["plain"] * 2 + ["bar"] * 2
TEXT_PLACEMENTS = ("both", "both", "above")  # of capitals, each as probable
MAX_FONT_SIZE, MIN_FONT_SIZE = 1 / 11, 1 / 18  # size of a font, in widths of the picture
MARGIN = 1 / 40  # around a block of text, in widths of the picture
LINE_SPACING = 1.18  # of lines, in sizes of the font
OUTLINE_WIDTH = 1 / 9  # in sizes of the font
Font = ImageFont.FreeTypeFont
LineBounds = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class OverlaidImage:
    """A picture with text; pictures and mask have the same size."""

    image: Image.Image  # RGB
    clean_image: Image.Image  # RGB, the same without the text
    text_mask: np.ndarray  # (H, W) bool: pixels of letters and of their outlines
    line_bounds: list[LineBounds]  # bounds of every line of text

    def compute_relative_bounds(self) -> list[tuple[float, float, float, float]]:
        """The bounds of the lines as shares of width and height."""
        width, height = self.image.size
        return [(x / width, y / height, u / width, v / height) for x, y, u, v in self.line_bounds]


@dataclass(frozen=True)
class OverlayTextBlock:
    """Lines of one size, centred, whose first one begins at `top`."""

    lines: list[str]
    font: Font
    top: float

    @property
    def height(self) -> float:
        return len(self.lines) * self.font.size * LINE_SPACING


def overlay_text(
    picture: Image.Image, words: tuple[str, str], style: str, random: Random
) -> OverlaidImage:
    """`words`: what comes first, and what comes then; together they are the text."""
    font = random.choice(FONTS[style])
    above = style == "bar" or random.choice(TEXT_PLACEMENTS) == "above"
    texts = [", ".join(words)] if above else list(words)
    if style != "bar":
        texts = [text.upper() for text in texts]
    width, margin = picture.width, picture.width * MARGIN
    first, *rest = fit_text(texts, font, width, margin)
    if style == "bar":
        picture = _add_white_bar(picture, round(first.height + 2 * margin))
    blocks = [
        first,
        *(OverlayTextBlock(b.lines, b.font, picture.height - margin - b.height) for b in rest),
    ]
    return _render_text(picture, blocks, style)


def fit_text(
    texts: list[str], font: Callable[[int], Font], width: int, margin: float
) -> list[OverlayTextBlock]:
    """All texts in the largest size at which they take four lines together, or in the smallest."""
    allowed = 4 // len(texts)
    for size in range(round(width * MAX_FONT_SIZE), round(width * MIN_FONT_SIZE) - 1, -1):
        drawn = font(size)
        blocks = [
            OverlayTextBlock(list(wrap_text(text, drawn, width - 2 * margin)), drawn, margin)
            for text in texts
        ]
        if all(len(block.lines) <= allowed for block in blocks):
            break
    return blocks


def wrap_text(text: str, font: Font, width: float) -> Iterator[str]:
    """Lines that are no wider than `width`, except for words that are."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _add_white_bar(picture: Image.Image, height: int) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + height), "white")
    canvas.paste(picture, (0, height))
    return canvas


def _render_text(clean: Image.Image, blocks: list[OverlayTextBlock], style: str) -> OverlaidImage:
    image, ink, bounds = clean.copy(), Image.new("L", clean.size), []
    for block in blocks:
        size = block.font.size
        stroke = max(1, round(size * OUTLINE_WIDTH)) if style == "outlined" else 0
        band = (0, int(block.top), clean.width, int(block.top + block.height))
        dark = style == "bar" or (style == "plain" and _is_bright(clean.crop(band)))
        look = {"fill": "black" if dark else "white", "stroke_width": stroke}
        for number, line in enumerate(block.lines):
            where = clean.width / 2, block.top + number * size * LINE_SPACING
            drawn = {"xy": where, "text": line, "font": block.font, "anchor": "ma"}
            ImageDraw.Draw(image).text(**drawn, **look, stroke_fill="black")
            alone = Image.new("L", clean.size)
            ImageDraw.Draw(alone).text(**drawn, fill=255, stroke_width=stroke, stroke_fill=255)
            bounds.append(alone.getbbox())
            ink.paste(255, mask=alone)
    return OverlaidImage(image, clean, np.asarray(ink) > 0, bounds)


def _is_bright(picture: Image.Image) -> bool:
    return bool(np.asarray(picture.convert("L")).mean() > 128)


def _load_matplotlib_font(name: str) -> Callable[[int], Font]:
    path = Path(matplotlib.get_data_path(), "fonts/ttf", name)
    return lambda size: ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


FONTS: dict[str, list[Callable[[int], Font]]] = {
    "outlined": [_load_matplotlib_font("DejaVuSans-Bold.ttf")],
    "plain": [
        _load_matplotlib_font("DejaVuSans-Bold.ttf"),
        _load_matplotlib_font("DejaVuSerif-Bold.ttf"),
    ],
    "bar": [_load_matplotlib_font("DejaVuSans.ttf"), ImageFont.load_default],
}
