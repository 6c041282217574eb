"""Flickr8k-CN: captions in Chinese or English of one picture a line."""

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


def row(number, split, **more):
    """A line of pairs.jsonl; zhm stands on lines of test only, as published."""
    return {
        "image": f"{number}.jpg",
        "split": split,
        "en": [f"dog {number}", f"a dog {number}"],
        "zhc": [f"第{number}只狗", f"狗{number}"],
        "zhb": [f"狗{number}号"],
        "zhm": [f"人译{number}"] if split == "test" else [],
        **more,
    }


ROWS = [row(n, split) for n, split in enumerate(["train"] * 4 + ["val"] + ["test"] * 3)]


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """taken(rows...): records and rejects of a corpus with these lines."""

    def run(*rows, kind="captions", **changes):
        source = write(tmp_path / "flickr", *rows)
        return run_ingest(tmp_path, monkeypatch, "flickr8k_cn", kind, source, **changes)

    return run


def write(source, *rows):
    for number in range(10):
        write_image(source / "images" / f"{number}.jpg", number * 20)
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in rows]
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
def test_params_name_the_lists_and_the_language_follows(taken, lists, captions, language):
    records, rejected = taken(*ROWS, caption_sets=lists)
    assert rejected == []
    assert records[0]["captions"] == captions and records[0]["source"] == "pairs.jsonl:1"
    assert {one["language"] for one in records} == {language}
    splits = ["train"] * 4 + ["validation"] + ["test"] * 3
    assert [one["split"] for one in records] == splits


@pytest.mark.parametrize("lists", [["en", "zhc"], []])
def test_a_corpus_has_one_language(taken, lists):
    with pytest.raises(InputError, match=r"formats\.flickr8k_cn: caption_sets is .*: give \[en\]"):
        taken(*ROWS, caption_sets=lists)


def test_a_part_of_the_corpus_that_is_all_of_train_is_split_by_hash(taken):
    rows = [row(number, "train") for number in range(10)]
    records, _ = taken(*rows)
    assert {one["split"] for one in records} == {"train", "validation", "test"}
    again, _ = taken(*ROWS, row(8, "train"), row(9, "train"), splits="hash")
    assert [one["split"] for one in again] == [one["split"] for one in records]
    with pytest.raises(InputError, match="none of 10 records is in test"):
        taken(*rows, splits="published")


def test_translations_by_people_are_of_test_alone_and_the_rest_is_counted(taken):
    rows = [row(n, split) for n, split in enumerate(["train"] * 2 + ["test"] * 8)]
    records, rejected = taken(*rows, caption_sets=["zhm"])
    assert len(records) == 8 and rejected == []
    assert {"train", "test"} <= {one["split"] for one in records}
    omitted = json.loads(Path("taken/omitted.json").read_text())
    assert omitted == {"pictures outside test, without zhm": 2}
    with pytest.raises(InputError, match="all 2 images are outside test and have no zhm: name "):
        taken(*rows[:2], caption_sets=["zhm"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: "),
        (b"\xff{}", "undecodable line: not utf-8"),
        (b"[]", "wrong field: the line: "),
        (row(8, "train", zhc="狗"), "wrong field: zhc: "),
        (row(8, "train", zhc=["狗", 5]), "wrong field: zhc.1: "),
        (row(8, "training"), "wrong field: split: "),
        ({"zhc": ["狗"]}, "wrong field: image: Field required"),
        (row(8, "train", zhc=[]), "empty text: no caption in zhc"),
        (row(77, "train"), "missing image: 77.jpg"),
        (row(8, "train", image="../../secret.jpg"), "path leaves the folder: "),
        (row(8, "train", image="https://example.org/a.jpg"), "remote image: "),
        (row(0, "test", zhc=["另外"]), "duplicate id: the same image as pairs.jsonl:1, split "),
    ],
)
def test_a_line_of_no_use_is_rejected_and_the_rest_goes_on(tmp_path, taken, line, reason):
    write_image(tmp_path / "secret.jpg")
    records, rejected = taken(*ROWS, line, row(9, "train"))
    [(place, said)] = rejected
    assert place == "pairs.jsonl:9" and said.startswith(reason)
    assert len(records) == 9 and records[-1]["source"] == "pairs.jsonl:10"


def test_a_blank_caption_is_rejected_by_itself(taken):
    records, rejected = taken(*ROWS[1:], row(0, "train", zhc=["狗", " \u3000", ""]))
    assert records[-1]["captions"] == ["狗"]
    assert rejected == [
        ("pairs.jsonl:8", "empty text: zhc.1"),
        ("pairs.jsonl:8", "empty text: zhc.2"),
    ]


def test_the_file_itself_may_be_named_and_a_folder_without_it_is_told(tmp_path, monkeypatch, taken):
    source = write(tmp_path / "flickr", *ROWS)
    for number in range(10):
        (source / "images" / f"{number}.jpg").rename(source / f"{number}.jpg")
    arguments = (tmp_path, monkeypatch, "flickr8k_cn", "captions")
    records, _ = run_ingest(*arguments, source / "pairs.jsonl", image_folder=".")
    assert len(records) == len(ROWS)
    with pytest.raises(InputError, match=r"holds no pairs\.jsonl: put it there"):
        run_ingest(*arguments, source / "images")
    with pytest.raises(InputError, match="format flickr8k_cn holds captions: change the kind"):
        taken(*ROWS, kind="articles")


def test_no_bytes_end_the_reading(tmp_path):
    source = write(tmp_path, *ROWS)
    path = source / "pairs.jsonl"
    assert_handles_any_bytes("flickr8k_cn", "captions", source, path, path.read_bytes())


def test_a_real_part_of_it_is_taken_in_as_params_are_shipped(tmp_path):
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
    assert len(records) == 400 and sum(len(one["captions"]) for one in records) == 2000
    assert {one["split"] for one in records} == {"train", "validation", "test"}
    assert {one["language"] for one in records} == {"zh"}
