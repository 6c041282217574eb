"""Overlay text out of memes of the sample corpus: what is masked, what can still be read, and the
time beside the plain wrapper: rapidocr as it comes, boxes grown by as much, OpenCV or LaMa over the
whole picture, one picture after the other.

The wrapper is timed twice: with the settings that rapidocr comes with, and with pictures scaled for
it as ours are. LaMa is timed where LAMA_MODEL names its weights.
"""

import os
import re
from dataclasses import replace
from functools import cache
from io import BytesIO
from itertools import islice

import cv2
import numpy as np
from PIL import Image

from benchmarks.timing import interleaved
from stages import inpaint
from stages.datasets import sample_memes, sampling
from stages.shared import engine, images, inpainters, masks, text_removal
from stages.shared.params import load
from stages.shared.store import batched

PICTURES = 60
TIMED, ROUNDS = 12, 3
INSIDE, BEYOND, READABLE, FASTER = 0.95, 0.15, 0.1, 2.0  # what has to be reached
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


def accuracy(memes: list[sample_memes.Drawn], contents: list[bytes]) -> list[str]:
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
        before += recalled(meme.text, np.asarray(images.decode(content)))
        after += recalled(meme.text, np.asarray(images.decode(painted.content)))
    inside, left = covered / letters, after / before
    if inside < INSIDE or max(beyond) > BEYOND or left > READABLE:
        raise AssertionError(f"inside {inside:.3f}, beyond {max(beyond):.3f}, readable {left:.3f}")
    return [
        f"{len(memes)} memes of the sample corpus",
        f"  text pixels in the mask        {inside:6.1%}",
        f"  of the picture beyond the text {np.mean(beyond):6.1%}, at most {max(beyond):.1%}",
        f"  words that OCR still reads     {left:6.1%} of {before}",
    ]


# ------------------------------------------------------------------------------- time
@cache
def detector(side: int | None):
    """RapidOCR as it comes, or with pictures scaled to `side` pixels on the longer one at most."""
    from rapidocr import RapidOCR

    quiet = {"Global.log_level": "critical", "Global.use_cls": False, "Global.use_rec": False}
    scaled = {"Det.limit_type": "max", "Det.limit_side_len": side} if side else {}
    return RapidOCR(params=quiet | scaled)


def plain(contents: list[bytes], params: inpaint.Params, side: int | None) -> list[bytes]:
    """The wrapper: everything over the whole picture, one after the other, saved as ours."""
    results = []
    for content in contents:
        picture = np.asarray(images.decode(content))
        mask = np.zeros(picture.shape[:2], np.uint8)
        found = detector(side)(np.ascontiguousarray(picture[:, :, ::-1])).boxes
        for quad in [] if found is None else found:
            cv2.fillPoly(mask, [quad.astype(np.int32)], 255)
        mask = masks.grow(mask, params.mask.margin * picture.shape[0] / 10)
        results.append(text_removal.to_file(inpainters.fill(picture, mask, params.paint)))
    return results


def ours(contents: list[bytes], params: inpaint.Params) -> list[bytes]:
    """As the stage works, without its store."""

    def both(batch: list[bytes]) -> list[bytes]:
        results = []
        for content in batch:
            quads = text_removal.find(content, params.find).quads
            if len(quads):
                content = text_removal.paint(content, quads, params.mask, params.paint).content
            results.append(content)
        return results

    batches = batched(contents, params.batch)
    found = engine.run(both, batches, load(engine.Params, "engine"))
    return [content for batch in found for content in batch]


def enlarged(content: bytes, side: int) -> bytes:
    """As large as memes are that people post."""
    picture = images.decode(content)
    scale = side / max(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    return text_removal.to_file(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)))


def speed(contents: list[bytes], backend: str) -> list[str]:
    params = load(inpaint.Params, "inpaint")
    params = replace(params, paint=replace(params.paint, backend=backend))
    ways = {
        "ours": lambda: ours(contents, params),
        "as it comes": lambda: plain(contents, params, None),
        "scaled as ours": lambda: plain(contents, params, params.find.side),
    }
    seconds = interleaved(ways, ROUNDS)
    ratio = seconds["as it comes"] / seconds["ours"]
    if ratio < FASTER:
        raise AssertionError(f"{backend}: the plain wrapper takes only {ratio:.1f} x as long")
    return [
        f"  {backend:5} {name:15} {seconds[name] / seconds['ours']:5.1f} x as long"
        for name in ("as it comes", "scaled as ours")
    ]


def to_jpeg(picture: Image.Image, quality: int) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def main() -> list[str]:
    numbers = load(sampling.Params, "formats", "sample")
    memes = list(islice(sample_memes.memes("validation", numbers), PICTURES))
    contents = [to_jpeg(meme.overlaid.image, numbers.meme_quality) for meme in memes]
    lines = accuracy(memes, contents)
    backends = ["telea"] + (["lama"] if os.environ.get("LAMA_MODEL") else [])
    for side in (256, 720):
        large = [enlarged(content, side) for content in contents[:TIMED]]
        lines.append(f"the plain wrapper, {TIMED} memes with {side} pixels on the longer side")
        lines += [line for backend in backends for line in speed(large, backend)]
    return lines
