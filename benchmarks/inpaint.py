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

from benchmarks.timing import time_by_clock
from stages.datasets.synthetic import config
from stages.datasets.synthetic import memes as synthetic_memes
from stages.inpaint import __main__ as inpaint
from stages.inpaint import inpainters, masks, text_detection, text_removal
from stages.inpaint.masks import FillFunction
from stages.shared.core.config import load_config
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import batched

NUM_IMAGES = 60
TIMED_CASES = (  # backend, the longer side (small, and those of posts), pictures, rounds
    ("telea", 256, 32, 3),
    ("telea", 720, 16, 2),
    ("telea", 1200, 6, 1),
    ("lama", 720, 4, 1),
)
MIN_MASK_RECALL, MAX_MASK_OUTSIDE, MAX_READABLE, MIN_SPEEDUP = (
    0.95,
    0.15,
    0.1,
    2.0,
)  # what was to be reached
MIN_WORD_LENGTH = 3  # letters of a word that is looked for


# ------------------------------------------------------------------------------- masks and reading
@cache
def load_ocr():
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})


def split_words(text: str) -> list[str]:
    found = re.findall(r"[a-z]+", text.lower().replace("'", ""))
    return [word for word in found if len(word) >= MIN_WORD_LENGTH]


def count_readable_words(text: str, picture: np.ndarray) -> int:
    """How many words of the text rapidocr, as it comes, reads in the picture."""
    found = load_ocr()(np.ascontiguousarray(picture[:, :, ::-1])).txts or ()
    read = "".join(re.findall("[a-z]+", " ".join(found).lower()))
    return sum(word in read for word in split_words(text))


def report_accuracy(memes: list[synthetic_memes.SyntheticMeme], contents: list[bytes]) -> list[str]:
    params = load_config(inpaint.InpaintConfig, "inpaint")
    covered, letters, beyond, before, after = 0, 0, [], 0, 0
    for meme, content in zip(memes, contents, strict=True):
        boxes = text_removal.find(content, params.detection)
        painted = text_removal.paint(content, boxes.quads, params.mask, params.inpainting)
        mask, ink = masks.from_png(painted.mask) > 0, meme.overlaid.text_mask
        lines = np.zeros_like(ink)
        for left, top, right, bottom in meme.overlaid.line_bounds:
            lines[top:bottom, left:right] = True
        covered, letters = covered + (mask & ink).sum(), letters + ink.sum()
        beyond.append((mask & ~lines).mean())
        before += count_readable_words(meme.text, np.asarray(image_store.decode_image(content)))
        after += count_readable_words(
            meme.text, np.asarray(image_store.decode_image(painted.content))
        )
    inside, left = covered / letters, after / before
    return [
        f"{len(memes)} memes of the sample corpus",
        f"  text pixels in the mask        {inside:6.1%} (wanted: {MIN_MASK_RECALL:.0%} or more)",
        f"  of the picture beyond the text {np.mean(beyond):6.1%}, at most {max(beyond):.1%} "
        f"(wanted: {MAX_MASK_OUTSIDE:.0%} at most)",
        f"  words that OCR still reads     {left:6.1%} of {before} (wanted: below {MAX_READABLE:.0%})",
    ]


# ------------------------------------------------------------------------------- what paints
class UntrainedLama(nn.Module):
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
def load_untrained_lama() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    return torch.jit.script(UntrainedLama().eval())


@torch.inference_mode()
def fill_with_untrained_lama(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    padding = (0, -width % 8, 0, -height % 8)
    image = torch.from_numpy(picture.astype(np.float32) / 255).movedim(2, 0)[None]
    hidden = torch.from_numpy((mask > 0).astype(np.float32))[None, None]
    image, hidden = (nn.functional.pad(x, padding, "replicate") for x in (image, hidden))
    with torch.jit.optimized_execution(False):
        found = load_untrained_lama()(image, hidden)[0].movedim(0, 2)[:height, :width]
    return (found * 255).round().byte().numpy()


def select_fill(backend: str, params: inpaint.InpaintConfig) -> tuple[str, FillFunction]:
    """What paints, and its name."""
    if backend == "lama" and not os.environ.get("LAMA_MODEL"):
        return "untrained lama", fill_with_untrained_lama
    return backend, partial(
        inpainters.fill_masked, params=replace(params.inpainting, backend=backend)
    )


# ------------------------------------------------------------------------------- time
@cache
def load_detector():
    """RapidOCR as it comes."""
    from rapidocr import RapidOCR

    quiet = {"Global.log_level": "critical", "Global.use_cls": False, "Global.use_rec": False}
    return RapidOCR(params=quiet)


def draw_text_mask(picture: np.ndarray, params: inpaint.InpaintConfig) -> np.ndarray:
    return masks.build_text_mask(
        picture, text_detection.detect_text(picture, params.detection)[0], params.mask
    )


def draw_rapidocr_mask(picture: np.ndarray, params: inpaint.InpaintConfig) -> np.ndarray:
    mask = np.zeros(picture.shape[:2], np.uint8)
    found = load_detector()(np.ascontiguousarray(picture[:, :, ::-1])).boxes
    for quad in [] if found is None else found:
        cv2.fillPoly(mask, [quad.astype(np.int32)], 255)
    return masks.dilate_mask(mask, params.mask.margin * picture.shape[0] / 10)


def inpaint_whole_images(
    contents: list[bytes], params: inpaint.InpaintConfig, fill: FillFunction, mask_of: Callable
) -> list[bytes]:
    """The wrapper: everything over the whole picture, one after the other, saved as ours."""
    pictures = map(image_store.decode_image, contents)
    return [
        text_removal.encode_image(fill(picture, mask_of(picture, params)))
        for picture in map(np.asarray, pictures)
    ]


def inpaint_like_stage(
    contents: list[bytes], params: inpaint.InpaintConfig, fill: FillFunction
) -> list[bytes]:
    """As the stage works, without its store."""

    def both(batch: list[bytes]) -> list[bytes]:
        pictures = [np.asarray(image_store.decode_image(content)) for content in batch]
        return [
            text_removal.encode_image(
                inpaint_by_crops(picture, draw_text_mask(picture, params), params, fill)
            )
            for picture in pictures
        ]

    batches = batched(contents, params.batch_size)
    found = parallel.map_batches(both, batches, load_config(parallel.EngineConfig, "parallel"))
    return [content for batch in found for content in batch]


def inpaint_by_crops(
    picture: np.ndarray, mask: np.ndarray, params: inpaint.InpaintConfig, fill: FillFunction
) -> np.ndarray:
    return masks.inpaint_image(
        picture, mask, fill, params.inpainting.context_pixels, params.inpainting.max_crop_size
    )


def compute_painted_share(mask: np.ndarray, params: inpaint.InpaintConfig) -> float:
    """Pixels that are painted by crops, of those of the picture: what no busy machine changes."""
    sizes = [
        (crop.right - crop.left) * (crop.bottom - crop.top)
        for crop in masks.find_crops(mask, params.inpainting.context_pixels)
    ]
    return sum(min(size, params.inpainting.max_crop_size**2) for size in sizes) / mask.size


def check_crops_match_whole(
    pairs: list[tuple[np.ndarray, np.ndarray]], params: inpaint.InpaintConfig, fill: FillFunction
) -> None:
    """Raises AssertionError unless crops at full size give what Telea makes of the whole picture,
    and leave every pixel outside the mask."""
    for picture, mask in pairs:
        crops = masks.inpaint_image(picture, mask, fill, params.inpainting.context_pixels, inf)
        if not np.array_equal(crops, fill(picture, mask)):
            raise AssertionError("crops give another picture than the whole")
        if not np.array_equal(crops[mask == 0], picture[mask == 0]):
            raise AssertionError("a pixel outside the mask is another one")


def report_speed(contents: list[bytes], rounds: int, backend: str) -> list[str]:
    params = load_config(inpaint.InpaintConfig, "inpaint")
    name, fill = select_fill(backend, params)
    pictures = [np.asarray(image_store.decode_image(content)) for content in contents]
    pairs = [(picture, draw_text_mask(picture, params)) for picture in pictures]
    if backend == "telea":
        check_crops_match_whole(pairs, params, fill)
    whole = {
        "ours": partial(inpaint_like_stage, contents, params, fill),
        "same detector": partial(inpaint_whole_images, contents, params, fill, draw_text_mask),
        "as it comes": partial(inpaint_whole_images, contents, params, fill, draw_rapidocr_mask),
    }
    painting = {
        "ours": lambda: [inpaint_by_crops(picture, mask, params, fill) for picture, mask in pairs],
        "painting alone": lambda: [fill(picture, mask) for picture, mask in pairs],
    }
    shares = [compute_painted_share(mask, params) for _, mask in pairs]
    lines = [f"  {name:14} crops, of the picture's pixels {np.mean(shares):.0%}"]
    for ways in (whole, painting):
        seconds = time_by_clock(ways, rounds)
        for way in list(ways)[1:]:
            ratios = {clock: of[way] / of["ours"] for clock, of in seconds.items()}
            said = ", ".join(f"{ratio:5.2f} x {clock}" for clock, ratio in ratios.items())
            lines.append(f"  {name:14} {way:15} {said}")
    return lines


def enlarge(content: bytes, side: int) -> bytes:
    """As large as memes are that people post."""
    picture = image_store.decode_image(content)
    scale = side / max(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    return text_removal.encode_image(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)))


def encode_jpeg(picture: Image.Image, quality: int) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def main() -> Iterator[str]:
    numbers = load_config(config.SyntheticConfig, "formats", "synthetic")
    memes = list(islice(synthetic_memes.iter_memes("validation", numbers), NUM_IMAGES))
    contents = [encode_jpeg(meme.overlaid.image, numbers.meme_jpeg_quality) for meme in memes]
    yield from report_accuracy(memes, contents)
    yield f"time of the plain wrapper beside ours (wanted: {MIN_SPEEDUP:g} x or more)"
    for backend, side, count, rounds in TIMED_CASES:
        yield f" {side} pixels on the longer side, {count} memes"
        yield from report_speed(
            [enlarge(content, side) for content in contents[:count]], rounds, backend
        )
