"""What holds for every published format: each row is read by itself, however the file was saved."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from unicodedata import category, normalize

from hypothesis import assume, given
from hypothesis import strategies as st

import tests.support.property_profiles  # noqa: F401  (how many examples)
from stages.ingest.record_collector import RecordCollector
from stages.shared.core.config import load_config
from stages.shared.data.records import DatasetItem, Rejection
from stages.shared.data.text_cleaning import CleanConfig, clean_overlay_text, clean_text
from stages.shared.runtime.stage import InputError
from tests.fuzz.targets import COCO_IDS, PARSERS, create_folder, load_format
from tests.support.published_corpus import INGEST_CONFIG

CLEAN_CONFIG = load_config(CleanConfig, "clean")
# Letters of several scripts, what parsers take for syntax, and what str.splitlines() breaks at.
characters = st.one_of(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]),
    st.sampled_from("ab汤é\u0301\u2028\x85\"'<>&[]{}()!#\\/;|,: "),
)
texts = st.text(characters, min_size=1, max_size=20).map(lambda text: f"x{text}y")
MEMOTION_LABELS = ["funny", "general", "slight", "motivational", "positive"]
VIST_FIELDS = {"album_id": "a", "worker_arranged_photo_order": 0}


def write_csv(rows: Iterable[Iterable[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def write_memotion(rows: dict[int, str]) -> str:
    header = PARSERS["memotion"].files["labels.csv"].splitlines()[0].split(",")
    quoted = ["0", "a.png", "two\nlines", "", *MEMOTION_LABELS]  # shows that cells are quoted
    full = [[str(n), f"{n}.png", text, text, *MEMOTION_LABELS] for n, text in rows.items()]
    return write_csv([header, *full, quoted])


def write_lines(build: Callable[[int, str], dict]) -> Callable[[dict[int, str]], str]:
    def write(rows: dict[int, str]) -> str:
        lines = (json.dumps(build(n, text), ensure_ascii=False) for n, text in rows.items())
        return "".join(line + "\n" for line in lines)

    return write


def write_stories(rows: dict[int, str]) -> str:
    annotations = [
        [{"original_text": text, "photo_flickr_id": str(n), "story_id": f"s{n}", **VIST_FIELDS}]
        for n, text in rows.items()
    ]
    return json.dumps({"images": [], "albums": [], "annotations": annotations})


class RowFormat(NamedTuple):
    """write: texts by number -> the file. read: a record -> its text."""

    write: Callable[[dict[int, str]], str]
    read: Callable[[DatasetItem], str]
    trailing: int = 0  # rows that `write` adds


FORMATS = {
    "twitter": RowFormat(
        lambda rows: "".join(f"IMGID:{n}\n{text}\tO\n\n" for n, text in rows.items()),
        lambda item: " ".join(item.words),
    ),
    "jsonl_posts": RowFormat(
        write_lines(lambda n, text: {"id": n, "text": text, "label": "neutral"}),
        lambda item: item.text,
    ),
    "jsonl_tweets": RowFormat(
        write_lines(lambda n, text: {"id": n, "words": [text], "tags": ["O"]}),
        lambda item: item.words[0],
    ),
    "jsonl_articles": RowFormat(
        write_lines(lambda n, text: {"article_id": n, "chunks": [{"text": text}]}),
        lambda item: item.blocks[0],
    ),
    "jsonl_captions": RowFormat(
        write_lines(lambda n, text: {"id": n, "image": f"{n}.png", "caption": text}),
        lambda item: item.captions[0],
    ),
    "hateful_memes": RowFormat(
        write_lines(lambda n, text: {"id": n, "img": f"img/{n}.png", "label": 0, "text": text}),
        lambda item: item.text,
    ),
    "memotion": RowFormat(write_memotion, lambda item: item.text, trailing=1),
    "coco_cn": RowFormat(
        lambda rows: "".join(f"{COCO_IDS[n]}#0\t{text}\n" for n, text in rows.items()),
        lambda item: item.captions[0],
    ),
    "flickr8k_cn": RowFormat(
        write_lines(lambda n, text: {"image": f"{n}.jpg", "split": "train", "zhc": [text]}),
        lambda item: item.captions[0],
    ),
    "vist": RowFormat(write_stories, lambda item: item.blocks[-1]),
}


def read(name: str, content: bytes) -> list[DatasetItem]:
    """The items of the first file of a parser; without tasks.json and the items of other files."""
    folder = Path(create_folder(name).name)
    file = folder / next(iter(PARSERS[name].files))
    file.write_bytes(content)
    module, config = load_format(name)
    items = module.read(folder, PARSERS[name].kind, config)
    return [item for item in items if getattr(item, "source", "").startswith(file.name)]


def encode_variants(content: str) -> list[bytes]:
    """The same file with other line ends, with a byte order mark, and in UTF-16."""
    windows = content.replace("\n", "\r\n")
    return [windows.encode(), content.encode("utf-8-sig"), windows.encode("utf-16")]


@given(
    name=st.sampled_from(sorted(FORMATS)),
    rows=st.lists(texts, min_size=1, max_size=5, unique=True),
)
def test_every_row_is_read_by_itself_however_the_file_was_saved(name, rows):
    form = FORMATS[name]
    content = form.write(dict(enumerate(rows)))
    items = read(name, content.encode())
    assert not any(isinstance(item, Rejection) for item in items)
    read_texts = [form.read(item) for item in items[: len(items) - form.trailing]]
    assert [text.strip() for text in read_texts] == [text.strip() for text in rows]
    if name == "vist":  # one JSON document
        return
    for variant in encode_variants(content):
        other = read(name, variant)
        assert [(item.source, form.read(item)) for item in other[: len(rows)]] == [
            (item.source, form.read(item)) for item in items[: len(rows)]
        ]


@given(
    name=st.sampled_from(["twitter", "jsonl_posts", "jsonl_tweets", "jsonl_articles"]),
    rows=st.lists(texts, min_size=1, max_size=5, unique=True),
    order=st.randoms(),
)
def test_ids_do_not_depend_on_the_order_of_the_rows_or_on_normalization(name, rows, order):
    assume(len({normalize("NFC", text) for text in rows}) == len(rows))

    def collect(rows: list[tuple[int, str]]) -> set[str]:
        corpus = RecordCollector(Path("nowhere"), INGEST_CONFIG, add_image=lambda row: None)
        for item in read(name, FORMATS[name].write(dict(rows)).encode()):
            corpus.add(item)
        assert len(corpus.records) + len(corpus.rejected) == corpus.num_rows
        return set(corpus.records)

    numbered = list(enumerate(rows))
    shuffled = [(number, normalize("NFD", text)) for number, text in numbered]
    order.shuffle(shuffled)
    assert collect(numbered) == collect(shuffled)


@given(
    content=st.text(st.sampled_from("IMGID:123\t\nOB-PERab \r\"{},[]'é"), max_size=200),
    name=st.sampled_from(["twitter", "jsonl_posts", "coco_cn", "hateful_memes", "flickr8k_cn"]),
)
def test_every_row_of_damaged_files_is_a_record_or_rejected_by_name_and_line(name, content):
    corpus = RecordCollector(Path("nowhere"), INGEST_CONFIG, add_image=lambda row: None)
    try:
        items = read(name, content.encode())
    except InputError:  # of a file without any usable line
        return
    for item in items:
        corpus.add(item)
    file = next(iter(PARSERS[name].files))
    assert len(corpus.records) + len(corpus.rejected) >= len(items)
    for row in corpus.rejected:
        source, _, number = row["source"].rpartition(":")
        assert source == file and 1 <= int(number) <= content.count("\n") + 1 and row["reason"]


@given(
    text=st.text(st.one_of(characters, st.characters(codec="utf-8")), max_size=60),
    language=st.sampled_from(["en", "zh", "tr", "hi"]),
)
def test_cleaning_adds_no_markup_replacement_or_control_characters(text, language):
    allowed = set(normalize("NFKC", text)) | set(text)
    for clean in (clean_text, clean_overlay_text):
        cleaned = clean(text, language, CLEAN_CONFIG)
        assert not {c for c in cleaned if category(c) == "Cc"} - {"\n"}
        assert {c for c in cleaned if c in "<>[](){}&#\\\ufffd"} <= allowed
        assert clean(normalize("NFD", text), language, CLEAN_CONFIG) == clean(
            normalize("NFC", text), language, CLEAN_CONFIG
        )
