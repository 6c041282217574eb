"""Inputs of the test split, as the page sends them to a model.

reads   05_chunk/<corpus>/chunks.parquet of articles and captions, 02_clean/<corpus>/records.parquet
        of the others; the images of 01_ingest/<corpus>

The first items of the split that fit are taken; none is chosen by its score.
"""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipelines.demo.sources import TEXT_KINDS
from stages.report import command_examples
from stages.shared.core import schemas
from stages.shared.data import image_store

MAX_BYTES = 2**21  # of the images of an example, so that the page loads quickly
NUM_IMAGES = range(2, 5)  # of an article, as in the report


@dataclass(frozen=True)
class Example:
    """text: the topic, text, or "". images: SHA-256."""

    text: str
    images: list[str]


def load_examples(data: Path, corpus: str, kind: str, count: int) -> list[dict]:
    """At most `count` examples as JSON; none if the outputs of the stages are missing.

    data: the folder of the stages. kind: of the corpus
    """
    table = "05_chunk" if kind in ("articles", "captions") else "02_clean"
    file = data / table / corpus / ("chunks.parquet" if table == "05_chunk" else "records.parquet")
    folder = data / "01_ingest" / corpus / "images"
    if not file.is_file() or not folder.is_dir():
        return []
    schema = schemas.CHUNKS if table == "05_chunk" else schemas.CLEAN_RECORDS[kind]
    rows = [row for row in schemas.read_parquet(file, schema) if row["split"] == "test"]
    examples = list(islice(_select_examples(rows, kind), count))
    names = {image for example in examples for image in example.images}
    files = image_store.load_image_bytes(folder, names)
    return [
        _to_json(example, files)
        for example in examples
        if sum(len(files[image]) for image in example.images) <= MAX_BYTES
    ]


def _select_examples(rows: list[dict], kind: str) -> Iterator[Example]:
    if kind == "articles":
        yield from _select_articles(rows)
        return
    for row in rows:
        if row["image"] and command_examples.has_plain_words(row):
            has_text = kind in TEXT_KINDS.values()  # that of a meme is recognized
            yield Example(command_examples.join_words(row) if has_text else "", [row["image"]])


def _select_articles(rows: list[dict]) -> Iterator[Example]:
    """Articles with a topic and NUM_IMAGES images."""
    articles: dict[str, list[dict]] = {}
    for row in rows:
        articles.setdefault(row["record"], []).append(row)
    for chunks in articles.values():
        chunks.sort(key=lambda row: row["position"])
        images = [row["image"] for row in chunks if row["image"]]
        if chunks[0]["title"] and len(images) in NUM_IMAGES:
            yield Example(chunks[0]["title"], images)


def _to_json(example: Example, files: dict[str, bytes]) -> dict:
    """The example with its images in base64, whose format the browser detects."""
    images = [
        {"name": f"example {number}", "content": b64encode(files[image]).decode()}
        for number, image in enumerate(example.images, start=1)
    ]
    return {"text": example.text, "images": images}
