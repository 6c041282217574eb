"""The stage `inpaint` on synthetic memes: accuracy of the masks, readable text left, and speed.

The baseline inpaints whole images, one after another. It uses either our detector and masks, so
that only crops and parallelism differ, or rapidocr with its defaults and dilated boxes as masks.
LaMa is the model at LAMA_MODEL, or else an untrained network of about the same cost.
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
from stages.datasets.synthetic import memes as synthetic_memes
from stages.datasets.synthetic.config import SyntheticConfig
from stages.inpaint import __main__ as inpaint
from stages.inpaint import inpainters, masks, text_detection, text_removal
from stages.inpaint.masks import FillFunction
from stages.shared.core.config import load_config
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import batched

NUM_IMAGES = 60
TIMED_CASES = (  # backend, longer side in pixels, number of images, rounds
    ("telea", 256, 32, 3),
    ("telea", 720, 16, 2),
    ("telea", 1200, 6, 1),
    ("lama", 720, 4, 1),
)
# Targets.
MIN_MASK_RECALL, MAX_MASK_OUTSIDE, MAX_READABLE, MIN_SPEEDUP = 0.95, 0.15, 0.1, 2.0
MIN_WORD_LENGTH = 3  # shorter words are not searched for


# ------------------------------------------------------------------------------- accuracy
@cache
def load_ocr():
    """RapidOCR with its default settings."""
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "critical", "Global.use_cls": False})


def split_words(text: str) -> list[str]:
    words = re.findall(r"[a-z]+", text.lower().replace("'", ""))
    return [word for word in words if len(word) >= MIN_WORD_LENGTH]


def count_readable_words(text: str, content: bytes) -> int:
    """How many words of the text rapidocr reads in the image."""
    image = decode(content)
    lines = load_ocr()(np.ascontiguousarray(image[:, :, ::-1])).txts or ()
    letters = "".join(re.findall("[a-z]+", " ".join(lines).lower()))
    return sum(word in letters for word in split_words(text))


def decode(content: bytes) -> np.ndarray:
    return np.asarray(image_store.decode_image(content))


def report_accuracy(memes: list[synthetic_memes.SyntheticMeme], contents: list[bytes]) -> list[str]:
    config = load_config(inpaint.InpaintConfig, "inpaint")
    num_covered, num_text, outside, num_before, num_after = 0, 0, [], 0, 0
    for meme, content in zip(memes, contents, strict=True):
        boxes = text_removal.find(content, config.working_pixels, config.detection)
        result = text_removal.paint(
            content, boxes.quads, config.working_pixels, config.mask, config.inpainting
        )
        mask, text_mask = masks.from_png(result.mask) > 0, meme.overlaid.text_mask
        lines = np.zeros_like(text_mask)
        for left, top, right, bottom in meme.overlaid.line_bounds:
            lines[top:bottom, left:right] = True
        num_covered += (mask & text_mask).sum()
        num_text += text_mask.sum()
        outside.append((mask & ~lines).mean())
        num_before += count_readable_words(meme.text, content)
        num_after += count_readable_words(meme.text, result.content)
    recall, readable = num_covered / num_text, num_after / num_before
    return [
        f"{len(memes)} memes of the synthetic corpus",
        f"  text pixels in the mask      {recall:6.1%} (target: {MIN_MASK_RECALL:.0%} or more)",
        f"  image masked outside of text {np.mean(outside):6.1%}, at most {max(outside):.1%} "
        f"(target: at most {MAX_MASK_OUTSIDE:.0%})",
        f"  words that OCR still reads   {readable:6.1%} of {num_before} "
        f"(target: below {MAX_READABLE:.0%})",
    ]


# ------------------------------------------------------------------------------- backends
class UntrainedLama(nn.Module):
    """About as many multiplications per pixel as big-lama (arXiv:2109.07161).

    It has big-lama's first and last layers, and in between, at an eighth of the resolution, 36
    convolutions of 384 channels by 3 x 3, each about as expensive as one Fourier convolution.
    """

    def __init__(self):
        super().__init__()
        widths = [64, 128, 256, 384]
        width_pairs = list(pairwise(widths))
        layers = [nn.Conv2d(4, 64, 7, padding=3)]
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in width_pairs]
        layers += [nn.Conv2d(384, 384, 3, padding=1) for _ in range(36)]
        layers += [nn.ConvTranspose2d(b, a, 3, 2, 1, 1) for a, b in reversed(width_pairs)]
        layers += [nn.Conv2d(64, 3, 7, padding=3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        fill = self.layers(torch.cat([image * (1 - mask), mask], 1)).sigmoid()
        return image * (1 - mask) + fill * mask


@cache
def load_untrained_lama() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    return torch.jit.script(UntrainedLama().eval())


@torch.inference_mode()
def fill_with_untrained_lama(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    padding = (0, -width % 8, 0, -height % 8)
    x = torch.from_numpy(image.astype(np.float32) / 255).movedim(2, 0)[None]
    hidden = torch.from_numpy((mask > 0).astype(np.float32))[None, None]
    x, hidden = (nn.functional.pad(tensor, padding, "replicate") for tensor in (x, hidden))
    with torch.jit.optimized_execution(False):
        result = load_untrained_lama()(x, hidden)[0].movedim(0, 2)[:height, :width]
    return (result * 255).round().byte().numpy()


def select_fill(backend: str, config: inpaint.InpaintConfig) -> tuple[str, FillFunction]:
    """The name to report and the fill function of a backend."""
    if backend == "lama" and not os.environ.get("LAMA_MODEL"):
        return "untrained lama", fill_with_untrained_lama
    return backend, partial(
        inpainters.fill_masked, config=replace(config.inpainting, backend=backend)
    )


# ------------------------------------------------------------------------------- speed
@cache
def load_detector():
    """RapidOCR with its default settings, without recognition."""
    from rapidocr import RapidOCR

    params = {"Global.log_level": "critical", "Global.use_cls": False, "Global.use_rec": False}
    return RapidOCR(params=params)


def draw_text_mask(image: np.ndarray, config: inpaint.InpaintConfig) -> np.ndarray:
    quads, _ = text_detection.detect_text(image, config.detection)
    return masks.build_text_mask(image, quads, config.mask)


def draw_rapidocr_mask(image: np.ndarray, config: inpaint.InpaintConfig) -> np.ndarray:
    mask = np.zeros(image.shape[:2], np.uint8)
    boxes = load_detector()(np.ascontiguousarray(image[:, :, ::-1])).boxes
    for quad in [] if boxes is None else boxes:
        cv2.fillPoly(mask, [quad.astype(np.int32)], 255)
    return masks.dilate_mask(mask, config.mask.margin * image.shape[0] / 10)


def inpaint_whole_images(
    contents: list[bytes], config: inpaint.InpaintConfig, fill: FillFunction, draw_mask: Callable
) -> list[bytes]:
    """The baseline: each step on the whole image, one image after another."""
    return [
        text_removal.encode_image(fill(image, draw_mask(image, config)))
        for image in map(decode, contents)
    ]


def inpaint_like_stage(
    contents: list[bytes], config: inpaint.InpaintConfig, fill: FillFunction
) -> list[bytes]:
    """As in the stage, without its cache."""

    def inpaint_batch(batch: list[bytes]) -> list[bytes]:
        return [
            text_removal.encode_image(
                inpaint_by_crops(image, draw_text_mask(image, config), config, fill)
            )
            for image in map(decode, batch)
        ]

    engine = load_config(parallel.EngineConfig, "parallel")
    results = parallel.map_batches(inpaint_batch, batched(contents, config.batch_size), engine)
    return [content for batch in results for content in batch]


def inpaint_by_crops(
    image: np.ndarray, mask: np.ndarray, config: inpaint.InpaintConfig, fill: FillFunction
) -> np.ndarray:
    context, max_crop_size = config.inpainting.context_pixels, config.inpainting.max_crop_size
    return masks.inpaint_image(image, mask, fill, context, max_crop_size)


def compute_inpainted_share(mask: np.ndarray, config: inpaint.InpaintConfig) -> float:
    """Pixels that the backend processes in crops, as a fraction of the image.

    Unlike times, this does not depend on the load of the machine.
    """
    sizes = [
        (crop.right - crop.left) * (crop.bottom - crop.top)
        for crop in masks.find_crops(mask, config.inpainting.context_pixels)
    ]
    return sum(min(size, config.inpainting.max_crop_size**2) for size in sizes) / mask.size


def check_crops_match_whole(
    pairs: list[tuple[np.ndarray, np.ndarray]], config: inpaint.InpaintConfig, fill: FillFunction
) -> None:
    """Check Telea on (image, mask) pairs.

    Raises AssertionError if unscaled crops differ from the whole image, or if a pixel outside the
    mask is changed.
    """
    for image, mask in pairs:
        result = masks.inpaint_image(image, mask, fill, config.inpainting.context_pixels, inf)
        if not np.array_equal(result, fill(image, mask)):
            raise AssertionError("crops and the whole image give different results")
        if not np.array_equal(result[mask == 0], image[mask == 0]):
            raise AssertionError("a pixel outside the mask has changed")


def report_speed(contents: list[bytes], rounds: int, backend: str) -> list[str]:
    config = load_config(inpaint.InpaintConfig, "inpaint")
    name, fill = select_fill(backend, config)
    images = list(map(decode, contents))
    pairs = [(image, draw_text_mask(image, config)) for image in images]
    if backend == "telea":
        check_crops_match_whole(pairs, config, fill)
    all_steps = {
        "ours": partial(inpaint_like_stage, contents, config, fill),
        "our detector": partial(inpaint_whole_images, contents, config, fill, draw_text_mask),
        "rapidocr": partial(inpaint_whole_images, contents, config, fill, draw_rapidocr_mask),
    }
    inpainting_only = {
        "ours": lambda: [inpaint_by_crops(image, mask, config, fill) for image, mask in pairs],
        "inpainting only": lambda: [fill(image, mask) for image, mask in pairs],
    }
    shares = [compute_inpainted_share(mask, config) for _, mask in pairs]
    lines = [f"  {name:14} pixels in crops, of the image {np.mean(shares):.0%}"]
    for functions in (all_steps, inpainting_only):
        seconds = time_by_clock(functions, rounds)
        for baseline in list(functions)[1:]:
            ratios = ", ".join(
                f"{by_name[baseline] / by_name['ours']:5.2f} x {clock}"
                for clock, by_name in seconds.items()
            )
            lines.append(f"  {name:14} {baseline:15} {ratios}")
    return lines


def enlarge(content: bytes, longer_side: int) -> bytes:
    """Scale an image to the size of posted memes."""
    image = image_store.decode_image(content)
    scale = longer_side / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    return text_removal.encode_image(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def main() -> Iterator[str]:
    synthetic = load_config(SyntheticConfig, "formats", "synthetic")
    memes = list(islice(synthetic_memes.iter_memes("validation", synthetic), NUM_IMAGES))
    contents = [encode_jpeg(meme.overlaid.image, synthetic.meme_jpeg_quality) for meme in memes]
    yield from report_accuracy(memes, contents)
    yield f"time of the baseline divided by ours (target: {MIN_SPEEDUP:g} x or more)"
    for backend, side, count, rounds in TIMED_CASES:
        yield f" {side} pixels on the longer side, {count} memes"
        enlarged = [enlarge(content, side) for content in contents[:count]]
        yield from report_speed(enlarged, rounds, backend)
