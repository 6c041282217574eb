"""What is fuzzed: every parser with any bytes in one file, and the image decoder with any bytes.

A target raises nothing but the errors that name the fault.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

from stages.ingest.record_collector import RecordCollector
from stages.shared.core.config import build_config
from stages.shared.data.image_store import ImageError, decode_image, validate_image
from stages.shared.runtime.stage import InputError
from tests.stages.ingest.bad_inputs import BAD_INPUTS
from tests.support.published_corpus import INGEST_CONFIG, PROJECT_PARAMS

MAX_PIXELS = 10**6
POST = '{"id": 1, "text": "a", "label": "neutral", "image": "a.png", "language": "en"}\n'
TWEET = '{"words": ["New", "York"], "tags": ["B-LOC", "I-LOC"], "split": "val"}\n'
ARTICLE = '{"title": "t", "chunks": [{"image": "a.png", "text": "b"}], "reference": "c"}\n'
CAPTION = '{"image": "a.png", "captions": ["b", "c"], "caption": null}\n'
MEMOTION = (
    ",image_name,text_ocr,text_corrected,humour,sarcasm,offensive,motivational,overall_sentiment\n"
    '0,1.jpg,a,"b, c",funny,general,slight,motivational,very_positive\n'
)
MEMOTION_TEST = "Image_name,Image_URL,OCR_extracted_text,corrected_text\nt.png,,a,b\n"
STORY = (
    '{"images": [{"id": "2", "title": ""}], "albums": [], "annotations": [[{"original_text": "A."'
    ', "text": "a .", "photo_flickr_id": "2", "story_id": "1", "worker_arranged_photo_order": 0}]]}'
)
COCO_IDS = [f"COCO_train2014_{number:012d}" for number in range(12)]
COCO_LISTS = {
    "coco-cn_train.txt": "\n".join(COCO_IDS[:10]),
    "coco-cn_val.txt": COCO_IDS[10],
    "coco-cn_test.txt": COCO_IDS[11],
}


class Parser(NamedTuple):
    """files: by name; the bytes of the first are replaced. group: of the bad inputs, as seeds."""

    format: str
    kind: str
    files: dict[str, str]
    group: str | None = None


PARSERS = {
    "jsonl_posts": Parser("jsonl", "posts", {"a.jsonl": POST}, "jsonl"),
    "jsonl_tweets": Parser("jsonl", "tweets", {"a.jsonl": TWEET}),
    "jsonl_articles": Parser("jsonl", "articles", {"a.jsonl": ARTICLE}),
    "jsonl_captions": Parser("jsonl", "captions", {"a.jsonl": CAPTION}),
    "markdown": Parser("markdown", "articles", {"a.md": "# T\n\n![](a.png)\n\nb"}, "markdown"),
    "twitter": Parser(
        "twitter",
        "tweets",
        {"train.txt": "IMGID:1\nNew\tB-LOC\n", "test.txt": "IMGID:2\na\tO\n"},
        "twitter",
    ),
    "table_csv": Parser("table", "memes", {"a.csv": "image,text,sentiment\n,a,neutral\n"}, "table"),
    "table_tsv": Parser("table", "memes", {"a.tsv": 'image\ttext\tsentiment\n\t"a\tneutral\n'}),
    "table_jsonl": Parser(
        "table", "memes", {"a.jsonl": '{"image": "", "text": "a", "sentiment": ["neutral"]}\n'}
    ),
    "mvsa_labels": Parser(
        "mvsa",
        "posts",
        {"labelResultAll.txt": "ID\ttext,image\n1\tpositive,neutral\n", "data/1.txt": "a"},
    ),
    "mvsa_text": Parser(
        "mvsa",
        "posts",
        {"data/1.txt": "RT @a: b", "labelResultAll.txt": "ID\ttext,image\n1\tpositive,neutral\n"},
    ),
    "memotion": Parser("memotion", "memes", {"labels.csv": MEMOTION}),
    "memotion_truth": Parser(
        "memotion",
        "memes",
        {
            "Meme_groundTruth.csv": "name,Labels\nt.png,0_1110_1310\n",
            "labels.csv": MEMOTION,
            "2000_testdata.csv": MEMOTION_TEST,
        },
    ),
    "hateful_memes": Parser(
        "hateful_memes",
        "memes",
        {"train.jsonl": '{"id": 1, "img": "img/1.png", "label": 0, "text": "a"}\n'},
    ),
    "coco_cn": Parser(
        "coco_cn",
        "captions",
        {"imageid.human-written-caption.txt": f"{COCO_IDS[0]}#0\t一只狗。\n", **COCO_LISTS},
    ),
    "flickr8k_cn": Parser(
        "flickr8k_cn",
        "captions",
        {"pairs.jsonl": '{"image": "a.jpg", "split": "train", "zhc": ["狗"]}\n'},
    ),
    "vist": Parser(
        "vist",
        "articles",
        {f"{split}.story-in-sequence.json": STORY for split in ("train", "val", "test")},
    ),
}


@cache
def create_folder(name: str) -> TemporaryDirectory:
    """The files of a parser, for as long as the process runs."""
    folder = TemporaryDirectory(prefix="polymuse-fuzz-")
    for file, content in PARSERS[name].files.items():
        path = Path(folder.name, file)
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return folder


@cache
def load_format(name: str) -> tuple[ModuleType, Any]:
    """The module and the config of a parser."""
    format = PARSERS[name].format
    module = import_module(f"stages.datasets.{format}")
    params = PROJECT_PARAMS["formats"][format]
    return module, build_config(module.CONFIG, params, f"formats.{format}")


def parse(name: str, content: bytes) -> None:
    """Read a corpus whose first file has these bytes; each row is a record or a rejection."""
    folder = Path(create_folder(name).name)
    module, config = load_format(name)
    parser = PARSERS[name]
    (folder / next(iter(parser.files))).write_bytes(content)
    corpus = RecordCollector(folder, INGEST_CONFIG, add_image=lambda row: None)
    try:
        for item in module.read(folder, parser.kind, config):
            corpus.add(item)
    except InputError as error:
        assert "\n" not in str(error)
    assert all(row["source"] and row["reason"] for row in corpus.rejected)


def decode(content: bytes) -> None:
    """Validate an image; a valid one can be decoded at any size."""
    try:
        row = validate_image(content, MAX_PIXELS)
    except ImageError as error:
        assert "\n" not in str(error)
        return
    assert row["width"] * row["height"] <= MAX_PIXELS
    small = decode_image(content, min_side=8, max_pixels=4096)
    assert small.mode == "RGB" and small.width * small.height <= 4096


TARGETS: dict[str, Callable[[bytes], None]] = {
    "image": decode,
    **{name: partial(parse, name) for name in PARSERS},
}


def list_seeds(name: str) -> list[bytes]:
    """What a target is fuzzed from."""
    if name == "image":
        contents = [row.content for row in BAD_INPUTS if row.group == "images"]
        return [each for each in contents if isinstance(each, bytes) and len(each) < 20_000]
    parser = PARSERS[name]
    contents = [next(iter(parser.files.values()))]
    contents += [row.content for row in BAD_INPUTS if row.group == parser.group]
    encoded = [each.encode() if isinstance(each, str) else each for each in contents]
    return [encoded[0], *(encoded[0] + each for each in encoded[1:] if len(each) < 2000)]
