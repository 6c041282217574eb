"""Overlay text out of memes of the sample corpus: what is masked, what can still be read, and the
time beside the plain wrapper, which paints the whole picture, one picture after the other.

The wrapper has our detector, masks and network, so that what differs is painting by crops and
pictures beside each other; or rapidocr as it comes, with grown boxes as masks. LaMa is that of
LAMA_MODEL, or without it a network of as many multiplications that has learned nothing.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from itertools import islice, pairwise
from math import inf

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.timing import by_clock
from stages.datasets.synthetic import config
from stages.datasets.synthetic import memes as synthetic_memes
from stages.inpaint import __main__ as inpaint
from stages.inpaint import inpainters, masks, text_detection, text_removal
from stages.inpaint.masks import Fill
from stages.shared.core.config import load
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import batched

PICTURES = 60
TIMED = (  # backend, the longer side (small, and those of posts), pictures, rounds
    ("telea", 256, 32, 3),
    ("telea", 720, 16, 2),
    ("telea", 1200, 6, 1),
    ("lama", 720, 4, 1),
)
INSIDE, BEYOND, READABLE, FASTER = 0.95, 0.15, 0.1, 2.0  # what was to be reached
SHORTEST = 3  # letters of a word that is looked for


# ------------------------------------------------------------------------------- masks and reading
@cache
def reader():
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})


def words(text: str) -> list[str]:
    found = re.findall(r"[a-z]+", text.lower().replace("'", ""))
    return [word for word in found if len(word) >= SHORTEST]


def recalled(text: str, picture: np.ndarray) -> int:
    """How many words of the text rapidocr, as it comes, reads in the picture."""
    found = reader()(np.ascontiguousarray(picture[:, :, ::-1])).txts or ()
    read = "".join(re.findall("[a-z]+", " ".join(found).lower()))
    return sum(word in read for word in words(text))


def accuracy(memes: list[synthetic_memes.Drawn], contents: list[bytes]) -> list[str]:
    params = load(inpaint.Params, "inpaint")
    covered, letters, beyond, before, after = 0, 0, [], 0, 0
    for meme, content in zip(memes, contents, strict=True):
        boxes = text_removal.find(content, params.find)
        painted = text_removal.paint(content, boxes.quads, params.mask, params.paint)
        mask, ink = masks.from_png(painted.mask) > 0, meme.overlaid.text
        lines = np.zeros_like(ink)
        for left, top, right, bottom in meme.overlaid.lines:
            lines[top:bottom, left:right] = True
        covered, letters = covered + (mask & ink).sum(), letters + ink.sum()
        beyond.append((mask & ~lines).mean())
        before += recalled(meme.text, np.asarray(image_store.decode(content)))
        after += recalled(meme.text, np.asarray(image_store.decode(painted.content)))
    inside, left = covered / letters, after / before
    return [
        f"{len(memes)} memes of the sample corpus",
        f"  text pixels in the mask        {inside:6.1%} (wanted: {INSIDE:.0%} or more)",
        f"  of the picture beyond the text {np.mean(beyond):6.1%}, at most {max(beyond):.1%} "
        f"(wanted: {BEYOND:.0%} at most)",
        f"  words that OCR still reads     {left:6.1%} of {before} (wanted: below {READABLE:.0%})",
    ]


# ------------------------------------------------------------------------------- what paints
class Untrained(nn.Module):
    """As many multiplications a pixel as big-lama (arXiv:2109.07161): its ends, and 36 layers at an
    eighth of the side, of 384 channels by 3 x 3, about what one of its Fourier layers takes."""

    def __init__(self):
        super().__init__()
        widths = [64, 128, 256, 384]
        ends = list(pairwise(widths))
        layers = [nn.Conv2d(4, 64, 7, padding=3)]
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ends]
        layers += [nn.Conv2d(384, 384, 3, padding=1) for _ in range(36)]
        layers += [nn.ConvTranspose2d(b, a, 3, 2, 1, 1) for a, b in reversed(ends)]
        layers += [nn.Conv2d(64, 3, 7, padding=3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = self.layers(torch.cat([image * (1 - mask), mask], 1)).sigmoid()
        return image * (1 - mask) + found * mask


@cache
def untrained() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    return torch.jit.script(Untrained().eval())


@torch.inference_mode()
def fill_untrained(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    padding = (0, -width % 8, 0, -height % 8)
    image = torch.from_numpy(picture.astype(np.float32) / 255).movedim(2, 0)[None]
    hidden = torch.from_numpy((mask > 0).astype(np.float32))[None, None]
    image, hidden = (nn.functional.pad(x, padding, "replicate") for x in (image, hidden))
    with torch.jit.optimized_execution(False):
        found = untrained()(image, hidden)[0].movedim(0, 2)[:height, :width]
    return (found * 255).round().byte().numpy()


def filler(backend: str, params: inpaint.Params) -> tuple[str, Fill]:
    """What paints, and its name."""
    if backend == "lama" and not os.environ.get("LAMA_MODEL"):
        return "untrained lama", fill_untrained
    return backend, partial(inpainters.fill, params=replace(params.paint, backend=backend))


# ------------------------------------------------------------------------------- time
@cache
def detector():
    """RapidOCR as it comes."""
    from rapidocr import RapidOCR

    quiet = {"Global.log_level": "critical", "Global.use_cls": False, "Global.use_rec": False}
    return RapidOCR(params=quiet)


def mask_of(picture: np.ndarray, params: inpaint.Params) -> np.ndarray:
    return masks.draw(picture, text_detection.find(picture, params.find)[0], params.mask)


def mask_as_it_comes(picture: np.ndarray, params: inpaint.Params) -> np.ndarray:
    mask = np.zeros(picture.shape[:2], np.uint8)
    found = detector()(np.ascontiguousarray(picture[:, :, ::-1])).boxes
    for quad in [] if found is None else found:
        cv2.fillPoly(mask, [quad.astype(np.int32)], 255)
    return masks.grow(mask, params.mask.margin * picture.shape[0] / 10)


def plain(
    contents: list[bytes], params: inpaint.Params, fill: Fill, mask_of: Callable
) -> list[bytes]:
    """The wrapper: everything over the whole picture, one after the other, saved as ours."""
    pictures = map(image_store.decode, contents)
    return [
        text_removal.to_file(fill(picture, mask_of(picture, params)))
        for picture in map(np.asarray, pictures)
    ]


def ours(contents: list[bytes], params: inpaint.Params, fill: Fill) -> list[bytes]:
    """As the stage works, without its store."""

    def both(batch: list[bytes]) -> list[bytes]:
        pictures = [np.asarray(image_store.decode(content)) for content in batch]
        return [
            text_removal.to_file(by_crops(picture, mask_of(picture, params), params, fill))
            for picture in pictures
        ]

    batches = batched(contents, params.batch)
    found = parallel.run(both, batches, load(parallel.Params, "engine"))
    return [content for batch in found for content in batch]


def by_crops(
    picture: np.ndarray, mask: np.ndarray, params: inpaint.Params, fill: Fill
) -> np.ndarray:
    return masks.inpaint(picture, mask, fill, params.paint.context, params.paint.side)


def share_painted(mask: np.ndarray, params: inpaint.Params) -> float:
    """Pixels that are painted by crops, of those of the picture: what no busy machine changes."""
    sizes = [
        (crop.right - crop.left) * (crop.bottom - crop.top)
        for crop in masks.crops(mask, params.paint.context)
    ]
    return sum(min(size, params.paint.side**2) for size in sizes) / mask.size


def check(pairs: list[tuple[np.ndarray, np.ndarray]], params: inpaint.Params, fill: Fill) -> None:
    """Raises AssertionError unless crops at full size give what Telea makes of the whole picture,
    and leave every pixel outside the mask."""
    for picture, mask in pairs:
        crops = masks.inpaint(picture, mask, fill, params.paint.context, inf)
        if not np.array_equal(crops, fill(picture, mask)):
            raise AssertionError("crops give another picture than the whole")
        if not np.array_equal(crops[mask == 0], picture[mask == 0]):
            raise AssertionError("a pixel outside the mask is another one")


def speed(contents: list[bytes], rounds: int, backend: str) -> list[str]:
    params = load(inpaint.Params, "inpaint")
    name, fill = filler(backend, params)
    pictures = [np.asarray(image_store.decode(content)) for content in contents]
    pairs = [(picture, mask_of(picture, params)) for picture in pictures]
    if backend == "telea":
        check(pairs, params, fill)
    whole = {
        "ours": partial(ours, contents, params, fill),
        "same detector": partial(plain, contents, params, fill, mask_of),
        "as it comes": partial(plain, contents, params, fill, mask_as_it_comes),
    }
    painting = {
        "ours": lambda: [by_crops(picture, mask, params, fill) for picture, mask in pairs],
        "painting alone": lambda: [fill(picture, mask) for picture, mask in pairs],
    }
    shares = [share_painted(mask, params) for _, mask in pairs]
    lines = [f"  {name:14} crops, of the picture's pixels {np.mean(shares):.0%}"]
    for ways in (whole, painting):
        seconds = by_clock(ways, rounds)
        for way in list(ways)[1:]:
            ratios = {clock: of[way] / of["ours"] for clock, of in seconds.items()}
            said = ", ".join(f"{ratio:5.2f} x {clock}" for clock, ratio in ratios.items())
            lines.append(f"  {name:14} {way:15} {said}")
    return lines


def enlarged(content: bytes, side: int) -> bytes:
    """As large as memes are that people post."""
    picture = image_store.decode(content)
    scale = side / max(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    return text_removal.to_file(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)))


def to_jpeg(picture: Image.Image, quality: int) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def main() -> Iterator[str]:
    numbers = load(config.Params, "formats", "synthetic")
    memes = list(islice(synthetic_memes.memes("validation", numbers), PICTURES))
    contents = [to_jpeg(meme.overlaid.image, numbers.meme_quality) for meme in memes]
    yield from accuracy(memes, contents)
    yield f"time of the plain wrapper beside ours (wanted: {FASTER:g} x or more)"
    for backend, side, count, rounds in TIMED:
        yield f" {side} pixels on the longer side, {count} memes"
        yield from speed([enlarged(content, side) for content in contents[:count]], rounds, backend)
