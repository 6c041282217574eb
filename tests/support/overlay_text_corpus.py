"""Scenes under capitals, as memes have them, and where every pixel of the letters is."""

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
    """The picture, (H, W) bool of its letters with their outline, and what it says."""
    random = Random(number)
    image, ink, said = draw_scene(random, size), Image.new("L", (size, size)), []
    font = ImageFont.load_default(random.randint(size // 16, size // 11))
    outlined = random.random() < 0.7
    for top in (size // 32, size - size // 32 - font.size * 1.3):
        line = " ".join(random.sample(WORDS, 3))
        said.append(line)
        look = {"font": font, "anchor": "ma", "stroke_width": 2 if outlined else 0}
        place = (size / 2, top)
        bright = np.asarray(image.convert("L"))[int(top) : int(top) + int(font.size)].mean() > 128
        colour = "black" if bright and not outlined else "white"
        ImageDraw.Draw(image).text(place, line, fill=colour, stroke_fill="black", **look)
        ImageDraw.Draw(ink).text(place, line, fill=255, stroke_fill=255, **look)
    return image, np.asarray(ink) > 0, "\n".join(said)


def make_image_row(image: Image.Image, kind: str = "PNG", **options: object) -> dict:
    """The IMAGES row of a picture saved as a file."""
    content = BytesIO()
    image.save(content, kind, **options)
    return image_store.validate_image(content.getvalue(), MAX_PIXELS)


def make_record(number: int, image: str | None, text: str) -> dict:
    key = {"id": f"m{number:03}", "split": "train", "language": "en", "source": f"m:{number}"}
    return {**key, "image": image, "text": text, "original": text, "labels": []}


def save_corpus(folder, rows: list[dict], records: list[dict]) -> list:
    """The folders of ingest and clean."""
    image_store.write_images(folder / "ingest" / "images", rows, shards=2)
    schemas.write_parquet(
        folder / "clean" / "records.parquet", records, schemas.CLEAN_RECORDS["memes"]
    )
    return [folder / "ingest", folder / "clean"]
