"""Flickr8k-CN: Chinese or English captions, one image per line."""

import json
import os
from pathlib import Path

import pytest

from stages.ingest import __main__ as ingest
from stages.shared.core import schemas
from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import (
    PROJECT_PARAMS,
    assert_handles_any_bytes,
    run_ingest,
    write_image,
)


def build_row(number, split, **more):
    """A line of pairs.jsonl; zhm is on test lines only, as published."""
    return {
        "image": f"{number}.jpg",
        "split": split,
        "en": [f"dog {number}", f"a dog {number}"],
        "zhc": [f"第{number}只狗", f"狗{number}"],
        "zhb": [f"狗{number}号"],
        "zhm": [f"人译{number}"] if split == "test" else [],
        **more,
    }


ROWS = [build_row(n, split) for n, split in enumerate(["train"] * 4 + ["val"] + ["test"] * 3)]


@pytest.fixture
def ingest_corpus(tmp_path, monkeypatch):
    """ingest_corpus(*rows): records and rejections of a corpus with these lines."""

    def run(*rows, kind="captions", **changes):
        source = write_corpus(tmp_path / "flickr", *rows)
        return run_ingest(tmp_path, monkeypatch, "flickr8k_cn", kind, source, **changes)

    return run


def write_corpus(source, *rows):
    for number in range(10):
        write_image(source / "images" / f"{number}.jpg", number * 20)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (source / "pairs.jsonl").write_bytes(b"\n".join(lines))
    return source


@pytest.mark.parametrize(
    ("lists", "captions", "language"),
    [
        (["zhc"], ["第0只狗", "狗0"], "zh"),
        (["en"], ["dog 0", "a dog 0"], "en"),
        (["zhb", "zhc", "zhm"], ["狗0号", "第0只狗", "狗0"], "zh"),
    ],
)
def test_caption_sets_determine_the_captions_and_the_language(
    ingest_corpus, lists, captions, language
):
    records, rejected = ingest_corpus(*ROWS, caption_sets=lists)
    assert rejected == []
    assert records[0]["captions"] == captions and records[0]["source"] == "pairs.jsonl:1"
    assert {record["language"] for record in records} == {language}
    splits = ["train"] * 4 + ["validation"] + ["test"] * 3
    assert [record["split"] for record in records] == splits


@pytest.mark.parametrize("lists", [["en", "zhc"], []])
def test_a_corpus_has_one_language(ingest_corpus, lists):
    with pytest.raises(InputError, match=r"formats\.flickr8k_cn: caption_sets is .*: give \[en\]"):
        ingest_corpus(*ROWS, caption_sets=lists)


def test_a_corpus_of_train_images_only_is_split_by_hash(ingest_corpus):
    rows = [build_row(number, "train") for number in range(10)]
    records, _ = ingest_corpus(*rows)
    assert {record["split"] for record in records} == {"train", "validation", "test"}
    again, _ = ingest_corpus(*ROWS, build_row(8, "train"), build_row(9, "train"), splits="hash")
    assert [record["split"] for record in again] == [record["split"] for record in records]
    with pytest.raises(InputError, match="none of 10 records is in test"):
        ingest_corpus(*rows, splits="published")


def test_human_translations_exist_for_test_only_and_other_images_are_counted(ingest_corpus):
    rows = [build_row(n, split) for n, split in enumerate(["train"] * 2 + ["test"] * 8)]
    records, rejected = ingest_corpus(*rows, caption_sets=["zhm"])
    assert len(records) == 8 and rejected == []
    assert {"train", "test"} <= {record["split"] for record in records}
    omitted = json.loads(Path("output/omitted.json").read_text())
    assert omitted == {"pictures outside test, without zhm": 2}
    with pytest.raises(InputError, match="all 2 images are outside test and have no zhm: name "):
        ingest_corpus(*rows[:2], caption_sets=["zhm"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: "),
        (b"\xff{}", "undecodable line: not utf-8"),
        (b"[]", "wrong field: the line: "),
        (build_row(8, "train", zhc="狗"), "wrong field: zhc: "),
        (build_row(8, "train", zhc=["狗", 5]), "wrong field: zhc.1: "),
        (build_row(8, "training"), "wrong field: split: "),
        ({"zhc": ["狗"]}, "wrong field: image: Field required"),
        (build_row(8, "train", zhc=[]), "empty text: no caption in zhc"),
        (build_row(77, "train"), "missing image: 77.jpg"),
        (build_row(8, "train", image="../../secret.jpg"), "path leaves the folder: "),
        (build_row(8, "train", image="https://example.org/a.jpg"), "remote image: "),
        (
            build_row(0, "test", zhc=["另外"]),
            "duplicate id: the same image as pairs.jsonl:1, split ",
        ),
    ],
)
def test_an_unusable_line_is_rejected_and_the_next_one_is_read(
    tmp_path, ingest_corpus, line, reason
):
    write_image(tmp_path / "secret.jpg")
    records, rejected = ingest_corpus(*ROWS, line, build_row(9, "train"))
    [(place, message)] = rejected
    assert place == "pairs.jsonl:9" and message.startswith(reason)
    assert len(records) == 9 and records[-1]["source"] == "pairs.jsonl:10"


def test_a_blank_caption_is_rejected_by_itself(ingest_corpus):
    records, rejected = ingest_corpus(*ROWS[1:], build_row(0, "train", zhc=["狗", " \u3000", ""]))
    assert records[-1]["captions"] == ["狗"]
    assert rejected == [
        ("pairs.jsonl:8", "empty text: zhc.1"),
        ("pairs.jsonl:8", "empty text: zhc.2"),
    ]


def test_the_path_may_be_the_file_and_a_folder_without_it_is_rejected(
    tmp_path, monkeypatch, ingest_corpus
):
    source = write_corpus(tmp_path / "flickr", *ROWS)
    for number in range(10):
        (source / "images" / f"{number}.jpg").rename(source / f"{number}.jpg")
    arguments = (tmp_path, monkeypatch, "flickr8k_cn", "captions")
    records, _ = run_ingest(*arguments, source / "pairs.jsonl", image_folder=".")
    assert len(records) == len(ROWS)
    with pytest.raises(InputError, match=r"holds no pairs\.jsonl: put it there"):
        run_ingest(*arguments, source / "images")
    with pytest.raises(InputError, match="format flickr8k_cn holds captions: change the kind"):
        ingest_corpus(*ROWS, kind="articles")


def test_corrupt_bytes_never_raise_an_unexpected_error(tmp_path):
    source = write_corpus(tmp_path, *ROWS)
    path = source / "pairs.jsonl"
    assert_handles_any_bytes("flickr8k_cn", "captions", source, path, path.read_bytes())


def test_real_pairs_are_ingested_with_the_default_params(tmp_path):
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / "flickr8k_cn"
    if not source.is_dir():
        pytest.skip("POLYMUSE_REAL_DATA names no folder with flickr8k_cn")
    limits = ingest.IngestConfig(**PROJECT_PARAMS["ingest"])
    ingest.main(limits, "captions", "captions", "flickr8k_cn", source, tmp_path / "out")
    records = schemas.read_parquet(
        tmp_path / "out" / "records.parquet", schemas.RECORDS["captions"]
    )
    assert (
        schemas.read_parquet(tmp_path / "out" / "rejected.parquet", schemas.REJECTED_RECORDS) == []
    )
    assert len(records) == 400 and sum(len(record["captions"]) for record in records) == 2000
    assert {record["split"] for record in records} == {"train", "validation", "test"}
    assert {record["language"] for record in records} == {"zh"}
