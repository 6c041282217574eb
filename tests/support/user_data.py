"""Small folders of data as users have them, one per format, for the tests of `polymuse init`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NUM_ROWS = 24
SENTENCES = [
    "The dog runs across the green field and looks for the ball",
    "A woman with a red umbrella waits for the bus in the rain",
    "Two children build a castle of sand at the beach this morning",
    "My brother cooks noodles while the cat sleeps under the table",
]
SENTIMENTS = ["negative", "neutral", "positive"]


def write_photograph(path: Path, seed: int) -> None:
    """Smooth random colors, as in a photograph: no color is frequent."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    _save(Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC), path)


def write_drawing(path: Path, seed: int) -> None:
    """A few areas of one color each, as a JPEG."""
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 50 + seed, 60), fill="red")
    draw.rectangle((40, 50, 90, 90), fill=(0, 0, 10 * seed % 256))
    _save(image, path)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def sentence(number: int) -> str:
    return f"{SENTENCES[number % len(SENTENCES)]}, number {number}"


def write_lines(path: Path, rows: list) -> None:
    """Rows as lines of text, or of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))


def write_table(path: Path, columns: dict[str, list], delimiter: str = ",") -> None:
    """A table from its columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = [columns, *zip(*columns.values(), strict=True)]
        csv.writer(file, delimiter=delimiter).writerows(rows)


def write_images(folder: Path, suffix: str = ".jpg", write: Callable = write_photograph) -> None:
    for number in range(NUM_ROWS):
        write(folder / f"m{number}{suffix}", number)


def memes_table(folder: Path, **changed: list) -> Path:
    """A table of memes with photographs; `changed` columns are replaced or added."""
    write_images(folder / "images")
    columns = {
        "Name": [f"m{number}.jpg" for number in range(NUM_ROWS)],
        "Text": [sentence(number) for number in range(NUM_ROWS)],
        "Valence": [SENTIMENTS[number % 3] for number in range(NUM_ROWS)],
        "Joy": [number % 2 for number in range(NUM_ROWS)],
    }
    write_table(folder / "labels.csv", columns | changed)
    return folder


def jsonl_memes(folder: Path) -> Path:
    """Memes as JSON lines, with lists of labels, an image folder of another name, and splits."""
    write_images(folder / "pictures" / "all", ".png")
    labels = [["Smears", "Doubt"], ["Doubt"], []]
    splits = ["train", "train", "val"]
    rows = [
        {
            "img": f"m{n}",
            "text": sentence(n),
            "labels": labels[n % 3],
            "split": splits[n % 3],
            "id": n,
        }
        for n in range(NUM_ROWS)
    ]
    write_lines(folder / "memes.jsonl", rows)
    return folder


def markdown_articles(folder: Path) -> Path:
    for number in range(4):
        write_photograph(folder / f"{number}.jpg", number)
        text = f"# Title {number}\n\n{sentence(number)}.\n\n![]({number}.jpg)\n\n{sentence(0)}.\n"
        (folder / f"{number}.md").write_text(text)
    return folder


def jsonl_articles(folder: Path) -> Path:
    chunks = [{"image": "a.jpg", "text": sentence(0)}, {"text": sentence(1)}]
    write_photograph(folder / "a.jpg", 0)
    write_lines(folder / "a.jsonl", [{"title": sentence(n), "chunks": chunks} for n in range(4)])
    return folder


def jsonl_one_text_articles(folder: Path) -> Path:
    images = [f"{number}.jpg" for number in range(3)]
    for number, image in enumerate(images):
        write_photograph(folder / image, number)
    rows = [{"title": sentence(n), "images": images, "reference": sentence(n)} for n in range(4)]
    write_lines(folder / "a.jsonl", rows)
    return folder


def jsonl_captions(folder: Path, write: Callable = write_photograph) -> Path:
    write_images(folder / "images", write=write)
    rows = [{"image": f"images/m{n}.jpg", "captions": [sentence(n)]} for n in range(NUM_ROWS)]
    write_lines(folder / "captions.jsonl", rows)
    return folder


def jsonl_posts(folder: Path, sentences: list[str] | None = None) -> Path:
    texts = sentences or [sentence(number) for number in range(NUM_ROWS)]
    rows = [{"text": text, "label": SENTIMENTS[n % 3]} for n, text in enumerate(texts)]
    write_lines(folder / "posts.jsonl", rows)
    return folder


def flickr8k_cn_captions(folder: Path) -> Path:
    write_images(folder / "images")
    rows = [
        {
            "image": f"m{n}.jpg",
            "split": "train",
            "en": [sentence(n)],
            "zhc": [f"一只小狗在绿色的草地上跑，这是第{n}个。"],
        }
        for n in range(NUM_ROWS)
    ]
    write_lines(folder / "pairs.jsonl", rows)
    return folder


def coco_cn_captions(folder: Path) -> Path:
    write_images(folder / "images")
    lines = [f"m{n}#0\t一只小狗在绿色的草地上跑，这是第{n}个。" for n in range(NUM_ROWS)]
    write_lines(folder / "imageid.human-written-caption.txt", lines)
    splits = {"train": range(16), "val": range(16, 20), "test": range(20, NUM_ROWS)}
    for name, numbers in splits.items():
        write_lines(folder / f"coco-cn_{name}.txt", [f"m{n}" for n in numbers])
    return folder


def vist_captions(folder: Path) -> Path:
    write_images(folder / "images")
    rows = [[{"photo_flickr_id": f"m{n}", "original_text": sentence(n)}] for n in range(NUM_ROWS)]
    name = "train.description-in-isolation.json"
    write_lines(folder / "dii" / name, [{"albums": [], "annotations": rows}])
    return folder


def vist_articles(folder: Path) -> Path:
    write_images(folder / "images")
    rows = [
        [
            {
                "photo_flickr_id": f"m{n}",
                "original_text": sentence(n),
                "album_id": "1",
                "story_id": str(n // 4),
                "worker_arranged_photo_order": n % 4,
            }
        ]
        for n in range(NUM_ROWS)
    ]
    content = {"albums": [{"id": "1", "title": "A day outside"}], "annotations": rows}
    write_lines(folder / "sis" / "train.story-in-sequence.json", [content])
    return folder


def twitter_tweets(folder: Path, entity_type: str = "PER") -> Path:
    for name in ("train", "valid"):
        tweets = [
            [f"IMGID:{name}{n}", f"Mia\tB-{entity_type}", *(f"{w}\tO" for w in sentence(n).split())]
            for n in range(NUM_ROWS)
        ]
        write_lines(folder / f"{name}.txt", [line for tweet in tweets for line in [*tweet, ""]])
    return folder


def mvsa_posts(folder: Path) -> Path:
    for number in range(NUM_ROWS):
        write_photograph(folder / "data" / f"{number}.jpg", number)
        (folder / "data" / f"{number}.txt").write_text(sentence(number))
    rows = [f"{number},{SENTIMENTS[number % 3]}" for number in range(NUM_ROWS)]
    write_lines(folder / "labels.csv", ["guid,tag", *rows])
    return folder


def memotion_memes(folder: Path, name: str = "labels.csv") -> Path:
    write_images(folder / "images")
    columns = {
        "image_name": [f"m{n}.jpg" for n in range(NUM_ROWS)],
        "text_ocr": [sentence(n) for n in range(NUM_ROWS)],
        "text_corrected": [sentence(n) for n in range(NUM_ROWS)],
    } | {
        column: [value] * NUM_ROWS
        for column, value in [
            ("humour", "funny"),
            ("sarcasm", "general"),
            ("offensive", "slight"),
            ("motivational", "motivational"),
            ("overall_sentiment", "positive"),
        ]
    }
    write_table(folder / name, columns)
    return folder


def hateful_memes(folder: Path) -> Path:
    write_images(folder / "img", ".png")
    rows = [
        {"id": f"{n:05}", "img": f"img/m{n}.png", "label": n % 2, "text": sentence(n)}
        for n in range(NUM_ROWS)
    ]
    write_lines(folder / "train.jsonl", rows[:16])
    write_lines(folder / "dev_unseen.jsonl", rows[16:])
    return folder
