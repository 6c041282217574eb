"""A few memes as written by the stages `ingest`, `clean` and `inpaint`."""

import json
from io import BytesIO
from pathlib import Path

from PIL import Image

from stages.shared.core import schemas
from stages.shared.data import image_store

TASKS = {"humour": ["not_funny", "funny"], "sentiment": ["negative", "neutral", "positive"]}
TEXTS = [  # train split
    "When you finally sit down, everyone needs something",
    "I do not want to get up today",
    "My kids are louder than a big truck, and it is fine",
    "People say maybe, I am sure that they mean no",
]


def make_image(number: int, side: int = 12) -> dict:
    """The IMAGES row of a colorful image; each number gives another image."""
    image = Image.new("RGB", (side, side))
    for x in range(side):
        for y in range(side):
            image.putpixel((x, y), ((20 * x + number) % 256, (17 * y) % 256, (9 * x * y) % 256))
    content = BytesIO()
    image.save(content, "PNG")
    return image_store.build_image_row(content.getvalue())


def make_meme(name: str, split: str, text: str, image: str | None, language: str = "en") -> dict:
    labels = [{"task": "humour", "label": "funny"}]
    key = {"id": name, "split": split, "language": language, "source": f"table:{name}"}
    return key | {"image": image, "text": text, "original": text, "labels": labels}


def write_meme_corpus(
    folder: Path, rows: list[dict], recognized: dict[str, str] | None = None
) -> None:
    """Write ingest/, clean/ and inpaint/ in `folder`. In a row, `image` is the image number.

    recognized: text read in the image of a record. Image n + 100 is the inpainted image n.
    """
    inpainted_rows, originals, results = [], [], []
    for row in rows:
        if (number := row["image"]) is not None:
            original, result = make_image(number), make_image(number + 100)
            originals.append(original)
            results.append(result)
            row["image"] = original["sha256"]
            pair = {"image": original["sha256"], "inpainted": result["sha256"], "mask": None}
            text = (recognized or {}).get(row["id"])
            inpainted_rows.append(pair | {"boxes": [], "quads": [], "masked": 0.0, "text": text})
    (folder / "ingest").mkdir(parents=True, exist_ok=True)
    (folder / "ingest/tasks.json").write_text(json.dumps(TASKS))
    image_store.write_images(folder / "ingest/images", originals, shards=2)
    schemas.write_parquet(folder / "clean/records.parquet", rows, schemas.CLEAN_RECORDS["memes"])
    unique = list({row["image"]: row for row in inpainted_rows}.values())
    schemas.write_parquet(folder / "inpaint/pictures.parquet", unique, schemas.INPAINTED_IMAGES)
    image_store.write_images(folder / "inpaint/images", results, shards=2)


def make_meme_rows() -> list[dict]:
    """Four train memes, one of each other split, one without text and one without image."""
    return [
        *(make_meme(f"t{i}", "train", text, i) for i, text in enumerate(TEXTS)),
        make_meme("v", "validation", "Do not wake me, I am asleep", 10),
        make_meme("e", "test", "You are late again, as ever", 11),
        make_meme("silent", "train", "", 12),
        make_meme("bare", "train", "Nobody told me that it is Monday", None),
    ]
