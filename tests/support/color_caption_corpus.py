"""Small corpora as ingest, clean and chunk leave them: coloured pictures, named by captions."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from stages.shared.core import schemas
from stages.shared.data import image_store

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240,) * 3}
MAX_PIXELS = 10_000


def picture(colour: str, seed: int, size: int = 40) -> dict:
    noise = np.random.default_rng(seed).integers(-20, 20, (size, size, 3))
    values = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    content = BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return image_store.inspect(content.getvalue(), MAX_PIXELS)


def chunk(number: int, image: str | None, **changes: object) -> dict:
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


def captions(folder: Path, train: int = 12, validation: int = 4, language: str = "en") -> Path:
    """ingest/, clean/ and chunks/ of a corpus whose captions name the colour of the picture."""
    rows, chunks = [], []
    for number in range(train + validation):
        colour = list(COLOURS)[number % len(COLOURS)]
        rows.append(picture(colour, number))
        texts = [f"a {colour} picture", f"this one is {colour}"]
        split = "train" if number < train else "validation"
        key = rows[-1]["sha256"]
        facts = {"text": texts[0], "references": texts, "split": split, "language": language}
        chunks.append(chunk(number, key, **facts))
    return save(folder, rows, chunks)


def save(folder: Path, rows: list[dict], chunks: list[dict]) -> Path:
    image_store.write(folder / "ingest" / "images", rows, shards=2)
    schemas.write(folder / "chunks" / "chunks.parquet", chunks, schemas.CHUNKS)
    kind = "articles" if any(one["title"] for one in chunks) else "captions"
    records = [record(one, kind) for one in chunks]
    schemas.write(folder / "clean" / "records.parquet", records, schemas.CLEAN[kind])
    return folder


def record(of: dict, kind: str) -> dict:
    """The CLEAN row that a chunk is cut from."""
    found = {"id": of["record"], "source": of["record"]}
    found |= {name: of[name] for name in ("split", "language")}
    if kind == "captions":
        texts = {"captions": of["references"], "originals": of["references"]}
        return found | {"image": of["image"]} | texts
    blocks = [{"image": of["image"], "text": None, "original": None}] if of["image"] else []
    blocks += [{"image": None, "text": text, "original": text} for text in of["references"]]
    return found | {"title": of["title"], "title_original": of["title"], "blocks": blocks}
