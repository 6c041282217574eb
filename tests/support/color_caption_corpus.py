"""Small outputs of ingest, clean and chunk: coloured images with captions that name the colour."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from stages.shared.core import schemas
from stages.shared.data import image_store

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240,) * 3}
MAX_PIXELS = 10_000


def make_image(colour: str, seed: int, size: int = 40) -> dict:
    """The row of a noisy PNG image of one colour, `size` pixels wide and high."""
    noise = np.random.default_rng(seed).integers(-20, 20, (size, size, 3))
    values = np.clip(np.array(COLORS[colour]) + noise, 0, 255).astype(np.uint8)
    content = BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return image_store.validate_image(content.getvalue(), MAX_PIXELS)


def make_chunk(number: int, image: str | None, **changes: object) -> dict:
    """A CHUNKS row of record r<number>."""
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
    """Write ingest/, clean/ and chunks/ of a corpus whose captions name the colour of the image."""
    rows, chunks = [], []
    for number in range(train + validation):
        colour = list(COLORS)[number % len(COLORS)]
        rows.append(make_image(colour, number))
        texts = [f"a {colour} picture", f"this one is {colour}"]
        split = "train" if number < train else "validation"
        key = rows[-1]["sha256"]
        fields = {"text": texts[0], "references": texts, "split": split, "language": language}
        chunks.append(make_chunk(number, key, **fields))
    return save_corpus(folder, rows, chunks)


def save_corpus(folder: Path, rows: list[dict], chunks: list[dict]) -> Path:
    """Write ingest/, clean/ and chunks/ of these image rows and chunks."""
    image_store.write_images(folder / "ingest" / "images", rows, shards=2)
    schemas.write_parquet(folder / "chunks" / "chunks.parquet", chunks, schemas.CHUNKS)
    kind = "articles" if any(chunk["title"] for chunk in chunks) else "captions"
    records = [make_record(chunk, kind) for chunk in chunks]
    schemas.write_parquet(
        folder / "clean" / "records.parquet", records, schemas.CLEAN_RECORDS[kind]
    )
    return folder


def make_record(chunk: dict, kind: str) -> dict:
    """The CLEAN_RECORDS row that a chunk is cut from."""
    record = {"id": chunk["record"], "source": chunk["record"]}
    record |= {name: chunk[name] for name in ("split", "language")}
    if kind == "captions":
        texts = {"captions": chunk["references"], "originals": chunk["references"]}
        return record | {"image": chunk["image"]} | texts
    blocks = [{"image": chunk["image"], "text": None, "original": None}] if chunk["image"] else []
    blocks += [{"image": None, "text": text, "original": text} for text in chunk["references"]]
    return record | {"title": chunk["title"], "title_original": chunk["title"], "blocks": blocks}
