"""Small corpora as ingest, clean and chunk leave them: coloured pictures, named by captions."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from stages.shared.core import schemas
from stages.shared.data import image_store

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240,) * 3}
MAX_PIXELS = 10_000


def make_image(colour: str, seed: int, size: int = 40) -> dict:
    noise = np.random.default_rng(seed).integers(-20, 20, (size, size, 3))
    values = np.clip(np.array(COLORS[colour]) + noise, 0, 255).astype(np.uint8)
    content = BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return image_store.validate_image(content.getvalue(), MAX_PIXELS)


def make_chunk(number: int, image: str | None, **changes: object) -> dict:
    return {
        "record": f"r{number}",
        "position": 0,
        "split": "train",
        "language": "en",
        "title": "",
        "image": image,
        "text": "",
        "references": [],
    } | changes


def write_caption_corpus(
    folder: Path, train: int = 12, validation: int = 4, language: str = "en"
) -> Path:
    """ingest/, clean/ and chunks/ of a corpus whose captions name the colour of the picture."""
    rows, chunks = [], []
    for number in range(train + validation):
        colour = list(COLORS)[number % len(COLORS)]
        rows.append(make_image(colour, number))
        texts = [f"a {colour} picture", f"this one is {colour}"]
        split = "train" if number < train else "validation"
        key = rows[-1]["sha256"]
        facts = {"text": texts[0], "references": texts, "split": split, "language": language}
        chunks.append(make_chunk(number, key, **facts))
    return save_corpus(folder, rows, chunks)


def save_corpus(folder: Path, rows: list[dict], chunks: list[dict]) -> Path:
    image_store.write_images(folder / "ingest" / "images", rows, shards=2)
    schemas.write_parquet(folder / "chunks" / "chunks.parquet", chunks, schemas.CHUNKS)
    kind = "articles" if any(one["title"] for one in chunks) else "captions"
    records = [make_record(one, kind) for one in chunks]
    schemas.write_parquet(
        folder / "clean" / "records.parquet", records, schemas.CLEAN_RECORDS[kind]
    )
    return folder


def make_record(of: dict, kind: str) -> dict:
    """The CLEAN row that a chunk is cut from."""
    found = {"id": of["record"], "source": of["record"]}
    found |= {name: of[name] for name in ("split", "language")}
    if kind == "captions":
        texts = {"captions": of["references"], "originals": of["references"]}
        return found | {"image": of["image"]} | texts
    blocks = [{"image": of["image"], "text": None, "original": None}] if of["image"] else []
    blocks += [{"image": None, "text": text, "original": text} for text in of["references"]]
    return found | {"title": of["title"], "title_original": of["title"], "blocks": blocks}
