import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from stages.datasets import markdown
from stages.ingest import __main__ as ingest
from stages.ingest.__main__ import IngestConfig, assign_splits_and_languages
from stages.ingest.image_files import read_image_file
from stages.ingest.record_collector import RecordCollector, assign_split
from stages.shared.core import schemas
from stages.shared.core.config import build_config, load_config
from stages.shared.data import image_store
from stages.shared.data.image_store import ImageError
from stages.shared.data.records import (
    ArticleRecord,
    CaptionRecord,
    Fact,
    ImageBytes,
    ImageFile,
    SlotBox,
)
from stages.shared.runtime.stage import InputError

MAX_PIXELS = 10**6  # pixels
CONFIG = IngestConfig(
    num_shards=2,
    max_pixels=MAX_PIXELS,
    max_rejected_fraction=0.5,
    validation_fraction=0.2,
    test_fraction=0.2,
)
MARKDOWN_CONFIG = markdown.MarkdownConfig(suffixes=[".md"], encodings=["utf-8"])
SPLITS = ["train", "validation", "test"]


def encode_image(color, kind="PNG", mode="RGB", size=(8, 6)):
    content = BytesIO()
    Image.new(mode, size, color).save(content, kind)
    return content.getvalue()


def write_lines(folder, *rows):
    """Write articles.jsonl next to one red image; a row is an object, or the bytes of its line."""
    folder.mkdir(exist_ok=True)
    (folder / "red.png").write_bytes(encode_image("red"))
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / "articles.jsonl").write_bytes(b"\n".join(lines))
    return folder


def article(text, image="red.png", **more):
    return {"title": f"About {text}", "chunks": [{"image": image, "text": text}], **more}


def with_valid_articles(*rows):
    """The rows after one valid article per split, so that the split check passes."""
    return [article(f"good text for {split}", split=split) for split in SPLITS] + list(rows)


def ingest_jsonl(source, target, kind="articles", config=CONFIG):
    ingest.main(config, "corpus", kind, "jsonl", source, target)
    records = schemas.read_parquet(target / "records.parquet", schemas.RECORDS[kind])
    rejected = schemas.read_parquet(target / "rejected.parquet", schemas.REJECTED_RECORDS)
    return records, rejected


def collect_reasons(tmp_path, *rows, **options):
    records, rejected = ingest_jsonl(
        write_lines(tmp_path / "in", *with_valid_articles(*rows)), tmp_path / "out", **options
    )
    assert len(records) == 3 + len(rows) - len({row["source"] for row in rejected})
    return [row["reason"] for row in rejected]


def test_an_article_becomes_a_record_and_its_image_a_row(tmp_path):
    records, rejected = ingest_jsonl(
        write_lines(tmp_path / "in", *with_valid_articles()), tmp_path / "out"
    )
    (image,) = image_store.read_images(tmp_path / "out" / "images")
    assert image["bytes"] == encode_image("red") and (image["width"], image["height"]) == (
        8,
        6,
    )
    record = records[0]
    assert record["title"] == "About good text for train" and record["language"] == "en"
    assert record["source"] == "articles.jsonl:1" and record["split"] == "train"
    assert record["blocks"] == [
        {"image": image["sha256"], "text": None},
        {"image": None, "text": "good text for train"},
    ]
    assert rejected == []
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["records"] == {"train": 1, "validation": 1, "test": 1}
    assert not list(
        (tmp_path / "out").glob("f*.parquet")
    )  # facts and foils are for synthetic corpora only


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("none.png", "missing image: none.png"),
        ("", None),
        ("a\0b.png", "missing image"),
        ("x" * 5000, "missing image"),
        (".", "missing image: ."),
        ("text.png", "unreadable image"),
        ("cut.jpg", "unreadable image"),
        ("large.png", "image larger than max_pixels: 2000 x 2000"),
        ("heavy.png", "image larger than max_pixels: 8000001 bytes"),
        ("../secret.png", "path leaves the folder: ../secret.png"),
        ("link.png", "path leaves the folder: link.png"),
        ("linked/secret.png", "path leaves the folder"),
        ("/etc/hostname", "path leaves the folder"),
        ("https://example.org/a.png", "remote image: addresses are not fetched"),
        ("//example.org/a.png", "remote image"),
        ("data:image/png;base64,AAAA", "remote image"),
        ("file:///etc/hostname", "remote image"),
    ],
)
def test_an_unusable_image_is_rejected_and_its_article_kept(tmp_path, image, reason):
    source = tmp_path / "in"
    source.mkdir()
    (tmp_path / "secret.png").write_bytes(encode_image("black"))
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    (source / "linked").symlink_to(tmp_path)
    (source / "text.png").write_text("not an image")
    noise = BytesIO()
    Image.effect_noise((64, 64), 50).save(noise, "JPEG")
    (source / "cut.jpg").write_bytes(noise.getvalue()[:-300])
    (source / "large.png").write_bytes(encode_image("red", size=(2000, 2000)))
    with (source / "heavy.png").open("wb") as heavy:
        heavy.truncate(8 * MAX_PIXELS + 1)
    row = {"title": "t", "chunks": [{"image": image, "text": "one"}, {"image": "red.png"}]}
    write_lines(source, *with_valid_articles(row))
    records, rejected = ingest_jsonl(source, tmp_path / "out")
    assert [block["text"] for block in records[3]["blocks"]] == ["one", None]
    if reason is None:
        assert rejected == []
    else:
        assert [row["source"] for row in rejected] == ["articles.jsonl:4"]
        assert rejected[0]["reason"].startswith(reason)
        assert len(rejected[0]["reason"]) < 300
    assert len(list(image_store.read_images(tmp_path / "out" / "images"))) == 1


def test_a_link_within_the_folder_is_followed(tmp_path):
    source = write_lines(
        tmp_path / "in", *with_valid_articles(article("linked", image="again.png"))
    )
    (source / "again.png").symlink_to(source / "red.png")
    _, rejected = ingest_jsonl(source, tmp_path / "out")
    assert rejected == []


def test_a_loop_of_links_is_a_missing_image(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"missing image|leaves the folder"):
        read_image_file(ImageFile("a.png", tmp_path), tmp_path, MAX_PIXELS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"title": "t", "chunks": [{"image": "red.png", "text": " \n"}]}, "empty text"),
        ({"title": "t", "chunks": []}, "empty text"),
        (article("good text for train"), "duplicate id: the same article as articles.jsonl:1"),
        (b'{"title": "\\ud800", "chunks": [{"text": "a"}]}', "not JSON"),
        (b"\xff\xfe\xff", "undecodable line"),
        (b"{", "not JSON"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_line(tmp_path, row, reason):
    (message,) = collect_reasons(tmp_path, row)
    assert message.startswith(reason)


def test_a_second_row_with_the_same_source_id_is_rejected(tmp_path):
    rows = [article("one", article_id="a1"), article("two", article_id="a1")]
    assert collect_reasons(tmp_path, *rows) == [
        "duplicate id: 'a1' is already used at articles.jsonl:4"
    ]


def test_the_id_depends_on_the_content_only(tmp_path):
    rows = with_valid_articles(article("moved", article_id=7))
    first, _ = ingest_jsonl(write_lines(tmp_path / "a", *rows), tmp_path / "out1")
    second, _ = ingest_jsonl(write_lines(tmp_path / "b", *reversed(rows)), tmp_path / "out2")
    by_id = [{r["id"]: (r["title"], r["split"]) for r in records} for records in (first, second)]
    assert by_id[0] == by_id[1]
    changed, _ = ingest_jsonl(
        write_lines(tmp_path / "c", *with_valid_articles(article("changed"))), tmp_path / "out3"
    )
    assert {r["id"] for r in changed} - set(by_id[0]) == {changed[3]["id"]}


def test_the_same_source_gives_the_same_bytes(tmp_path):
    rows = with_valid_articles(article("x", image="none.png"), article("y", image="text.png"))
    source = write_lines(tmp_path / "in", *rows)
    (source / "text.png").write_text("not an image")
    ingest_jsonl(source, tmp_path / "one")
    ingest_jsonl(source, tmp_path / "two")
    rejected = schemas.read_parquet(tmp_path / "one" / "rejected.parquet", schemas.REJECTED_RECORDS)
    assert rejected[1]["reason"] == "unreadable image: no picture of a known format (text.png)"
    for path in (p for p in (tmp_path / "one").rglob("*") if p.is_file()):
        other_path = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other_path.read_bytes()


def test_splits_by_hash_have_their_fractions_and_are_stable():
    names = [f"{i:016x}" for i in range(4000)]
    splits = [assign_split(name, CONFIG) for name in names]
    for split, share in [("train", 0.6), ("validation", 0.2), ("test", 0.2)]:
        assert abs(splits.count(split) / 4000 - share) < 0.03
    fewer = [{"id": name, "split": None, "language": "en"} for name in names[::2]]
    assign_splits_and_languages(fewer, CONFIG)
    assert [record["split"] for record in fewer] == splits[::2]


def test_a_larger_test_fraction_only_adds_test_records():
    more = replace(CONFIG, test_fraction=0.3)
    names = [f"{i:016x}" for i in range(500)]
    before = {name for name in names if assign_split(name, CONFIG) == "test"}
    assert before < {name for name in names if assign_split(name, more) == "test"}


def test_an_article_with_an_id_keeps_its_split_when_its_text_is_corrected(tmp_path):
    splits = []
    for number, text in enumerate(["a tpyo", "a typo"]):
        rows = [article(f"{text} in {i}", article_id=f"a{i}") for i in range(30)]
        records, _ = ingest_jsonl(
            write_lines(tmp_path / str(number), *rows), tmp_path / f"out{number}"
        )
        splits.append([record["split"] for record in records])
    assert splits[0] == splits[1] == [assign_split(f"a{i}", CONFIG) for i in range(30)]
    assert set(splits[0]) == set(SPLITS)


def test_a_markdown_file_keeps_its_split_when_its_text_is_corrected(tmp_path):
    names = [f"soups/{i}.md" for i in range(20)] + ["soups/\udcff.md"]  # one is not valid Unicode
    for text in ["a tpyo", "a typo"]:
        for name in names:
            (tmp_path / "soups").mkdir(exist_ok=True)
            (tmp_path / name).write_text(f"# Soup\n\n{text} in {name!r}")
        corpus = RecordCollector(tmp_path, CONFIG, add_image=lambda row: None)
        for row in markdown.read(tmp_path, "articles", MARKDOWN_CONFIG):
            corpus.add(row)
        splits = [record["split"] for record in corpus.records.values()]
        assert splits == [assign_split(name, CONFIG) for name in sorted(names)]


def test_an_article_without_an_id_is_split_by_its_content(tmp_path):
    rows = [article(f"text {i}") for i in range(30)]
    records, _ = ingest_jsonl(write_lines(tmp_path / "in", *rows), tmp_path / "out")
    assert [row["split"] for row in records] == [assign_split(row["id"], CONFIG) for row in records]


def test_an_undetected_language_becomes_the_most_frequent_one():
    records = [
        {"id": "a", "split": "train", "language": language} for language in ["zh", None, "en", "zh"]
    ]
    assign_splits_and_languages(records, CONFIG)
    assert [record["language"] for record in records] == ["zh", "zh", "en", "zh"]
    alone = [{"id": "a", "split": "train", "language": None}]
    assign_splits_and_languages(alone, CONFIG)
    assert alone[0]["language"] == "und"


def ingest_captions(tmp_path, *rows):
    for color in ["red", "green", "blue", "white"]:
        (tmp_path / f"{color}.png").write_bytes(encode_image(color))
    lines = [json.dumps({"image": f"{color}.png", **row}) for color, row in rows]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    return ingest_jsonl(tmp_path, tmp_path / "out", kind="captions")


def test_rows_with_the_same_image_become_one_record_with_all_captions(tmp_path):
    records, rejected = ingest_captions(
        tmp_path,
        ("red", {"id": 1, "caption": "A red image", "split": "train"}),
        ("green", {"captions": ["A green one", " ", "Green"], "split": "val"}),
        ("red", {"id": 1, "captions": ["Red", "A red image"]}),
        ("blue", {"caption": "Blue", "split": "test"}),
        ("red", {"caption": "Red"}),
        ("red", {"caption": "Very red", "split": "test"}),
        ("white", {"id": 1, "caption": "White"}),
        ("white", {"captions": []}),
    )
    assert [record["captions"] for record in records] == [
        ["A red image", "Red"],
        ["A green one", "Green"],
        ["Blue"],
    ]
    assert [row["reason"] for row in rejected] == [
        "duplicate id: the same image and captions as c.jsonl:1",
        "duplicate id: the same image as c.jsonl:1, split train",
        "duplicate id: '1' is already used at c.jsonl:1",
        "empty text: the image has no caption",
    ]


def test_a_split_in_a_later_row_applies_to_the_image(tmp_path):
    records, _ = ingest_captions(
        tmp_path,
        ("red", {"caption": "one"}),
        ("red", {"caption": "two", "split": "test"}),
        ("green", {"caption": "three", "split": "train"}),
        ("blue", {"caption": "four", "split": "dev"}),
    )
    assert [record["split"] for record in records] == ["test", "train", "validation"]


@pytest.mark.parametrize(("kind", "mode"), [("WEBP", "RGB"), ("PNG", "RGBA"), ("GIF", "P")])
def test_common_image_formats_are_ingested(tmp_path, kind, mode):
    source = write_lines(tmp_path / "in", *with_valid_articles())
    (source / "red.png").write_bytes(
        encode_image(1, kind, mode) if mode == "P" else encode_image("red", kind, mode)
    )
    _, rejected = ingest_jsonl(source, tmp_path / "out")
    assert rejected == []


def test_a_phone_photo_with_a_second_embedded_image_is_ingested(tmp_path):
    source = write_lines(tmp_path / "in", *with_valid_articles())
    content = BytesIO()
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    first.save(content, "MPO", save_all=True, append_images=[second])
    (source / "red.png").write_bytes(content.getvalue())
    _, rejected = ingest_jsonl(source, tmp_path / "out")
    (image,) = image_store.read_images(tmp_path / "out" / "images")
    assert rejected == [] and image_store.decode_image(image["bytes"]).getpixel((4, 4))[0] > 200


def test_too_many_rejected_rows_stop_the_stage_with_counts_examples_and_a_list(tmp_path):
    rows = with_valid_articles(*[article(f"bad {i}", image=f"none{i}.png") for i in range(9)])
    source = write_lines(tmp_path / "in", *rows)
    with pytest.raises(InputError) as error:
        ingest_jsonl(source, tmp_path / "out", config=replace(CONFIG, max_rejected_fraction=0.1))
    sentence = str(error.value)
    # 12 articles with one image each
    assert "corpora.corpus: 9 of 24 rows and images were rejected" in sentence
    assert "'missing image' (9; articles.jsonl:4: missing image: none0.png;" in sentence
    assert "ingest.max_rejected_fraction" in sentence and "none3.png" not in sentence
    listed = Path(os.environ["POLYMUSE_HOME"], "rejected", "corpus.jsonl")
    assert str(listed) in sentence and len(listed.read_text().splitlines()) == 9
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_a_rejected_fraction_at_the_limit_passes(tmp_path):
    rows = with_valid_articles(
        article("bad", image="none.png")
    )  # 4 articles with an image each: 1 of 8
    records, _ = ingest_jsonl(
        write_lines(tmp_path / "in", *rows),
        tmp_path / "o",
        config=replace(CONFIG, max_rejected_fraction=0.125),
    )
    assert len(records) == 4


def test_train_and_test_must_not_be_empty_but_validation_may(tmp_path):
    rows = [article("a", split="train"), article("b", split="val")]
    with pytest.raises(InputError, match=r"none of 2 records is in test: .*split fractions"):
        ingest_jsonl(write_lines(tmp_path / "in", *rows), tmp_path / "out")
    rows = [article("a", split="dev"), article("b", split="test")]
    with pytest.raises(InputError, match="none of 2 records is in train: "):
        ingest_jsonl(write_lines(tmp_path / "in", *rows), tmp_path / "out")
    rows = [article("a", split="train"), article("b", split="test")]
    assert len(ingest_jsonl(write_lines(tmp_path / "in", *rows), tmp_path / "out")[0]) == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": "nowhere"}, "corpora.corpus.path is nowhere, which does not exist"),
        ({"path": "empty"}, "empty holds no .jsonl file"),
        ({"path": "blank"}, "the source has no rows"),
        ({"format": "josnl"}, "corpora.corpus.format is 'josnl': choose one of"),
        (
            {"kind": "article"},
            "corpora.corpus.kind is 'article': choose one of articles | captions | tweets | posts",
        ),
        ({"format": "markdown", "kind": "captions"}, "but format markdown holds articles: change"),
    ],
)
def test_invalid_input_gives_one_sentence_without_traceback_or_output(tmp_path, change, sentence):
    for name in ["empty", "blank"]:
        (tmp_path / name).mkdir()
    (tmp_path / "blank" / "a.jsonl").write_text("\n\n")
    shutil.copy("params.yaml", tmp_path)
    shutil.copytree("config", tmp_path / "config")
    options = {"name": "corpus", "kind": "articles", "format": "jsonl", "path": "empty"}
    options |= {"output": "data/out", **change}
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = subprocess.run(
        [sys.executable, "-m", "stages.ingest", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and sentence in process.stderr.splitlines()[-1]
    assert "Traceback" not in process.stderr and not list((tmp_path / "data").glob("*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_shards": 0}, r"ingest\.num_shards is 0: give 1 or more"),
        ({"num_shards": 300}, r"ingest\.num_shards is 300: give 256 or less"),
        (
            {"validation_fraction": 0.5, "test_fraction": 0.5},
            r"ingest: validation_fraction 0\.5 and test_fraction 0\.5 leave no training data",
        ),
        ({"validation_fraction": -0.1}, r"ingest\.validation_fraction is -0\.1: give 0 or more"),
    ],
)
def test_invalid_params_are_rejected_by_name(changes, message):
    with pytest.raises(InputError, match=rf"params\.yaml: {message}"):
        build_config(IngestConfig, asdict(CONFIG) | changes, "ingest")


def test_a_real_folder_of_chinese_recipes_is_ingested_completely(tmp_path):
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / "howtocook"
    if not source.is_dir():
        pytest.skip("POLYMUSE_REAL_DATA names no folder with howtocook")
    config = load_config(IngestConfig, "ingest")
    ingest.main(config, "recipes", "articles", "markdown", source, tmp_path / "out")
    records = schemas.read_parquet(
        tmp_path / "out" / "records.parquet", schemas.RECORDS["articles"]
    )
    images = [block["image"] for record in records for block in record["blocks"] if block["image"]]
    assert len(records) == 29 and len(images) == 67
    assert {record["language"] for record in records} == {"zh"}
    assert all(record["title"].endswith("的做法") for record in records)
    assert (
        schemas.read_parquet(tmp_path / "out" / "rejected.parquet", schemas.REJECTED_RECORDS) == []
    )


def test_positions_of_facts_and_boxes_count_the_ingested_images(tmp_path):
    corpus = RecordCollector(tmp_path, CONFIG, add_image=lambda row: None)
    shares = (0.1, 0.2, 0.3, 0.4)
    red, blue = (ImageBytes(encode_image(colour)) for colour in ("red", "blue"))
    truth = {
        "facts": [Fact(position, "object", "ball") for position in range(3)],
        "boxes": [SlotBox(position, "object", *shares) for position in range(3)],
    }
    blocks = [red, "one", ImageBytes(b"not an image"), "two", blue, "three"]
    corpus.add(ArticleRecord(source="a", title="A", blocks=blocks, **truth))
    first = {name: truth[name][:1] for name in truth}
    corpus.add(CaptionRecord(source="b", image=red, captions=["red"], **first))
    assert len(corpus.rejected) == 1
    article, captioned = corpus.records
    assert [(fact["record"], fact["position"]) for fact in corpus.facts] == [
        (article, 0),
        (article, 1),
        (captioned, 0),
    ]
    key = {"slot": "object", "left": 0.1, "top": 0.2, "right": 0.3, "bottom": 0.4}
    assert corpus.boxes == [
        {"record": fact["record"], "position": fact["position"]} | key for fact in corpus.facts
    ]
    schemas.write_parquet(tmp_path / "boxes.parquet", corpus.boxes, schemas.BOXES)
    assert len(schemas.read_parquet(tmp_path / "boxes.parquet", schemas.BOXES)) == 3
