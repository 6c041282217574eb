"""Scenes with overlay text in capitals, as in memes, and the mask of the letters."""

from io import BytesIO
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stages.datasets.synthetic import article_lexicon, scene_renderer
from stages.shared.core import schemas
from stages.shared.data import image_store

WORDS = ["WHEN", "CAT", "FINDS", "LANTERN", "MONDAY", "MORNING", "NOBODY", "READY", "AND", "FOR"]
MAX_PIXELS = 40_000_000


def draw_scene(random: Random, size: int = 256) -> Image.Image:
    slots = ("place", "weather", "actor", "activity", "object")
    values = {slot: random.choice(sorted(article_lexicon.IMAGE_SLOTS[slot])) for slot in slots}
    return scene_renderer.render_scene(values, random, size).image


def draw_meme(number: int, size: int = 256) -> tuple[Image.Image, np.ndarray, str]:
    """The image, a mask (H, W) of its letters with their outline, and the text."""
    random = Random(number)
    image, ink, lines = draw_scene(random, size), Image.new("L", (size, size)), []
    font = ImageFont.load_default(random.randint(size // 16, size // 11))
    outlined = random.random() < 0.7
    for top in (size // 32, size - size // 32 - font.size * 1.3):
        line = " ".join(random.sample(WORDS, 3))
        lines.append(line)
        style = {"font": font, "anchor": "ma", "stroke_width": 2 if outlined else 0}
        position = (size / 2, top)
        bright = np.asarray(image.convert("L"))[int(top) : int(top) + int(font.size)].mean() > 128
        color = "black" if bright and not outlined else "white"
        ImageDraw.Draw(image).text(position, line, fill=color, stroke_fill="black", **style)
        ImageDraw.Draw(ink).text(position, line, fill=255, stroke_fill=255, **style)
    return image, np.asarray(ink) > 0, "\n".join(lines)


def make_image_row(image: Image.Image, kind: str = "PNG", **options: object) -> dict:
    """The IMAGES row of an image, encoded as a file."""
    content = BytesIO()
    image.save(content, kind, **options)
    return image_store.validate_image(content.getvalue(), MAX_PIXELS)


def make_record(number: int, image: str | None, text: str) -> dict:
    key = {"id": f"m{number:03}", "split": "train", "language": "en", "source": f"m:{number}"}
    return {**key, "image": image, "text": text, "original": text, "labels": []}


def save_corpus(folder, rows: list[dict], records: list[dict]) -> list:
    """Write the folders of `ingest` and `clean` and return them."""
    image_store.write_images(folder / "ingest" / "images", rows, shards=2)
    schemas.write_parquet(
        folder / "clean" / "records.parquet", records, schemas.CLEAN_RECORDS["memes"]
    )
    return [folder / "ingest", folder / "clean"]
