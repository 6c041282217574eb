"""What holds for any input: no row is lost, and a record does not depend on how it was saved."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from unicodedata import normalize

from hypothesis import assume, example, given
from hypothesis import strategies as st

import tests.support.property_profiles  # noqa: F401  (how many examples)
from stages.datasets import jsonl, markdown, table
from stages.datasets.common.csv_reader import read_csv
from stages.ingest.record_collector import RecordCollector
from stages.shared.core.config import load_config
from stages.shared.data.records import ArticleRecord, MemeRecord, PostRecord, Rejection
from stages.shared.data.text_cleaning import CleanConfig, clean_overlay_text, clean_text
from tests.support.published_corpus import INGEST_CONFIG, PROJECT_PARAMS

JSONL_CONFIG = jsonl.JsonlConfig(encodings=["utf-8"])
MARKDOWN_CONFIG = markdown.MarkdownConfig(suffixes=[".md"], encodings=["utf-8"])
CLEAN_CONFIG = load_config(CleanConfig, "clean")
LABELS = ["negative", "neutral", "positive"]
TABLE_TASK = table.TableTaskConfig(
    column="label", labels={label: label for label in LABELS}, default_label=None
)
TABLE_CONFIG = table.TableConfig(
    **PROJECT_PARAMS["formats"]["table"]
    | {
        "columns": table.TableColumnsConfig(
            **PROJECT_PARAMS["formats"]["table"]["columns"] | {"id": "id"}
        ),
        "tasks": {"mood": TABLE_TASK},
    }
)

characters = st.characters(codec="utf-8", exclude_characters="\0")
texts = st.text(characters, max_size=40)
# Texts full of what readers take for syntax.
marked_texts = st.text(st.one_of(characters, st.sampled_from("\"',;|\t\n\\{}[]()!#@.&é\u0301 ")))
cells = st.text(st.one_of(st.sampled_from("\"',;|ab é\u0301"), characters), max_size=12).filter(
    lambda cell: not set(cell) & set("\r\n\t")
)


def save(content: str, line_end: str, encoding: str) -> bytes:
    return content.replace("\n", line_end).encode(encoding)


def read_bytes(module, name: str, content: bytes, kind: str, config) -> list:
    """The items that a format reads from a folder with one file."""
    with TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(content)
        items = module.read(Path(folder), kind, config)
        return [item for item in items if not hasattr(item, "content")]  # without tasks.json


def collect(items) -> RecordCollector:
    corpus = RecordCollector(Path("nowhere"), INGEST_CONFIG, add_image=lambda row: None)
    for item in items:
        corpus.add(item)
    return corpus


# Drawn, not parametrized: a property has as many examples as the profile says, not each variant.
saved = st.sampled_from(
    [("\n", "utf-8"), ("\r\n", "utf-8"), ("\n", "utf-8-sig"), ("\r\n", "utf-16")]
)


@given(
    saved_as=saved,
    rows=st.lists(st.tuples(marked_texts, st.sampled_from([*LABELS, "sad"])), max_size=6),
)
def test_every_line_of_jsonl_is_a_record_or_a_rejection(saved_as, rows):
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    lines[1:1] = ["{", "", "5"]
    content = save("\n".join(lines), *saved_as)
    items = read_bytes(jsonl, "a.jsonl", content, "posts", JSONL_CONFIG)
    numbers = [number for number, line in enumerate(lines, start=1) if line]
    assert [item.source for item in items] == [f"a.jsonl:{number}" for number in numbers]
    read = [(item.text, item.label) for item in items if isinstance(item, PostRecord)]
    assert read == [row for row in rows if row[1] in LABELS]
    corpus = collect(items)
    assert len(corpus.records) + len(corpus.rejected) == corpus.num_rows == len(items)
    assert all(row["reason"] and row["source"] for row in corpus.rejected)


@given(lines=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), min_size=1))
@example(lines=[b"\xff\xfe{", b"}"])
@example(lines=[b"\xfe\xff"])  # the byte order mark of UTF-16, but not at the start of the file
def test_every_line_of_any_bytes_is_rejected_by_its_number(lines):
    content = b"\n".join([b"x", *lines])
    items = read_bytes(jsonl, "a.jsonl", content, "posts", JSONL_CONFIG)
    assert all(isinstance(item, Rejection) for item in items)
    numbers = [int(item.source.split(":")[1]) for item in items]
    blank = {
        number
        for number, line in enumerate([b"x", *lines], start=1)
        if not line.decode("utf-8", "replace").strip() or not line.rstrip(b"\r")
    }
    assert numbers == sorted(set(range(1, len(lines) + 2)) - blank)


@given(
    saved_as=saved,
    delimiter=st.sampled_from(",;\t|"),
    rows=st.lists(st.tuples(texts, st.sampled_from([*LABELS, "sad", ""])), max_size=5),
)
def test_a_table_of_a_csv_writer_is_read_back(saved_as, delimiter, rows):
    # With doubled quotes and line ends, a TSV is known to be quoted.
    ids = [f"i{number}" for number in range(len(rows))]
    full = [(key, "", text.replace("\r", ""), label) for key, (text, label) in zip(ids, rows)]  # noqa: B905
    full.append(("last", "", 'a "b"\nc', "neutral"))
    file = io.StringIO()
    header = ("id", "image", "text", "label")
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *full])
    content = save(file.getvalue(), *saved_as)
    items = read_bytes(table, "a.csv", content, "memes", TABLE_CONFIG)
    records = [item for item in items if isinstance(item, MemeRecord)]
    assert len(items) == len(full)
    read = [
        (item.key, item.text.replace("\r\n", "\n"), item.labels.get("mood", "")) for item in records
    ]
    assert read == [(key, text, label) for key, _, text, label in full if label != "sad"]
    assert all("unknown label: 'sad'" in item.reason for item in items if type(item) is Rejection)


@given(rows=st.lists(st.tuples(cells, cells), max_size=6), line_end=st.sampled_from(["\n", "\r\n"]))
def test_cells_between_tabs_are_read_as_they_are(rows, line_end):
    """Or, if they happen to look as a CSV writer quotes them, as it would have written them."""
    lines = ["id\ttext\tlabel", *("\t".join(["x", *row]) for row in rows)]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.tsv")
        path.write_bytes((line_end.join(lines) + line_end).encode())
        items = list(read_csv(path, ["utf-8"], "key")[1])
    assert list(map(get_source, items)) == [
        f"a.tsv:{number}" for number in range(2, len(lines) + 1)
    ]
    assume('""' not in "".join(lines))
    assert [tuple(item[1].values())[1:] for item in items] == rows


def get_source(item) -> str:
    return item.source if isinstance(item, Rejection) else item[0]


@given(rows=st.lists(st.lists(cells, min_size=3, max_size=3), max_size=6))
def test_no_row_of_a_table_vanishes_behind_a_quote(rows):
    """Each line is in a record or rejected by its number."""
    lines = ["id,text,label", *(",".join(row) for row in rows)]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        path.write_text("\n".join(lines), encoding="utf-8")
        items = list(read_csv(path, ["utf-8"], "key")[1])
    read = "".join(
        "".join(item[1].values()) if isinstance(item, tuple) else lines[line_number(item) - 1]
        for item in items
    )
    letters = Counter(c for line in lines[1:] for c in line if c.isalpha())
    assert letters - Counter(read) == Counter()


def line_number(item: Rejection) -> int:
    return int(item.source.split(":")[1])


@given(values=st.lists(texts, min_size=1, max_size=6, unique=True), order=st.randoms())
def test_ids_do_not_depend_on_the_order_or_the_normalization_form(values, order):
    def build(form, values):
        posts = (
            PostRecord(source="a:1", text=normalize(form, text), label="neutral") for text in values
        )
        return set(collect(posts).records)

    shuffled = list(values)
    order.shuffle(shuffled)
    assert build("NFC", values) == build("NFD", shuffled)


@given(text=marked_texts, language=st.sampled_from(["en", "zh", "tr", "hi"]))
def test_cleaning_is_idempotent(text, language):
    for clean in (clean_text, clean_overlay_text):
        cleaned = clean(text, language, CLEAN_CONFIG)
        assert clean(cleaned, language, CLEAN_CONFIG) == cleaned


@given(text=marked_texts)
def test_markdown_does_not_depend_on_line_ends_or_byte_order_mark(text):
    text = text.replace("\r", "\n")
    variants = [("\n", "utf-8"), ("\r\n", "utf-8"), ("\r", "utf-8-sig"), ("\n", "utf-16")]
    articles = [
        read_bytes(markdown, "a.md", save(text, *variant), "articles", MARKDOWN_CONFIG)
        for variant in variants
    ]
    for (article,) in articles:
        assert isinstance(article, ArticleRecord)
        blocks = [block if isinstance(block, str) else block.path for block in article.blocks]
        assert (article.title, blocks) == (
            articles[0][0].title,
            [block if isinstance(block, str) else block.path for block in articles[0][0].blocks],
        )
