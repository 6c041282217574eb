# ruff: noqa: RUF001  the tests contain ambiguous characters
"""MVSA as its archives unpack, and in redistributed forms."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from stages.datasets.mvsa import (
    SENTIMENT_LABELS,
    MvsaLabelRejection,
    compute_split_size,
    merge_annotations,
)
from stages.ingest import __main__ as ingest
from stages.shared.core import schemas
from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import (
    PROJECT_PARAMS,
    assert_handles_any_bytes,
    run_ingest,
    write_image,
)

NAMES = {"+": "positive", "0": "neutral", "-": "negative"}
SINGLE = "ID\ttext,image\n"
LIST = "guid,tag\n"


def write_corpus(folder, content, guids, file="labelResultAll.txt"):
    """Write a corpus with a text and an image for each guid."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    for guid in guids:
        (folder / "data" / f"{guid}.txt").write_text(f"the text of number {guid} \n")
        write_image(folder / "data" / f"{guid}.jpg", guid)
    return folder


@pytest.fixture
def ingest_corpus(tmp_path, monkeypatch):
    """ingest_corpus(lines): records and rejections of a list of 30 posts and these lines."""

    def run(lines="", file="labels.csv", **changes):
        rows = "".join(f"{guid},{SENTIMENT_LABELS[guid % 3]}\n" for guid in range(30))
        source = write_corpus(tmp_path / "mvsa", LIST + rows + lines, range(36), file)
        return run_ingest(tmp_path, monkeypatch, "mvsa", "posts", source, **changes)

    return run


def read_summary(tmp_path):
    return json.loads((tmp_path / "project" / "output" / "summary.json").read_text())


def read_split_lists(folder):
    names = {"train": "train", "validation": "valid", "test": "test"}
    return {split: (folder / f"{name}.txt").read_text() for split, name in names.items()}


def test_a_post_has_text_label_and_image(ingest_corpus, tmp_path):
    records, rejected = ingest_corpus()
    assert rejected == [] and len(records) == 30
    assert records[4]["text"] == "the text of number 4" and records[4]["label"] == "neutral"
    assert records[4]["source"] == "labels.csv:6" and records[4]["language"] == "en"
    assert len({row["image"] for row in records}) == 30
    assert read_summary(tmp_path)["labels"]["test"] == dict.fromkeys(SENTIMENT_LABELS, 1)
    assert read_summary(tmp_path)["without_picture"] == {"train": 0, "validation": 0, "test": 0}


# Rows: label of the text; columns: label of the image, both in the order "+0-"; x: left out.
@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        ("neutral_yields", "++x +0- x--"),
        ("agree", "+xx x0x xx-"),
        ("text", "+++ 000 ---"),
        ("picture", "+0- +0- +0-"),
    ],
)
def test_text_and_image_labels_are_merged(merge, expected):
    for text, row in zip("+0-", expected.split(), strict=True):
        for image, label in zip("+0-", row, strict=True):
            merged = merge_annotations([NAMES[text], NAMES[image]], merge)
            if label == "x":
                message = f"contradiction: the text is {NAMES[text]}, the image {NAMES[image]}"
                assert merged == MvsaLabelRejection(message, intentional=True)
            else:
                assert merged == NAMES[label]


@pytest.mark.parametrize(
    ("votes", "label"),  # text and image labels of three annotators
    [
        ("++ ++ ++", "+"),
        ("++ +- 00", "no majority: the image is positive, negative, neutral"),
        ("++ 00 -+", "no majority: the text is positive, neutral, negative"),
        ("+0 +0 -0", "+"),
        ("+- +- -0", "contradiction: the text is positive, the image negative"),
        ("0- 0- +-", "-"),
    ],
)
def test_three_annotators_are_reduced_to_the_majority_of_each_modality(votes, label):
    merged = merge_annotations(
        [NAMES[sign] for pair in votes.split() for sign in pair], "neutral_yields"
    )
    assert merged == (
        NAMES[label] if label in NAMES else MvsaLabelRejection(label, intentional=True)
    )


def test_an_ignored_modality_needs_no_majority():
    votes = [NAMES[sign] for sign in "+++-00"]  # alternating text and image labels
    assert merge_annotations(votes, "text") == "positive"
    tied = MvsaLabelRejection(
        "no majority: the image is positive, negative, neutral", intentional=True
    )
    assert merge_annotations(votes, "picture") == merge_annotations(votes, "neutral_yields") == tied


def test_both_archives_are_read_and_contradictions_are_left_out(tmp_path, monkeypatch):
    agreed = "".join(f"{guid}\tpositive,neutral\n" for guid in range(6))
    opposed = "".join(f"{guid}\tpositive,negative\n" for guid in range(6, 150))
    single = write_corpus(
        tmp_path / "single" / "MVSA_Single", SINGLE + agreed + opposed, range(150)
    )
    # 144 of 150, more than the tests' ingest.max_rejected
    records, rejected = run_ingest(tmp_path, monkeypatch, "mvsa", "posts", single.parent)
    assert [row["label"] for row in records] == ["positive"] * 6
    assert read_summary(tmp_path)["rejected"] == {"contradiction": 144} and len(rejected) == 144
    header = "ID\ttext,image\ttext,image\ttext,image\n"
    votes = ["positive,neutral", "negative,neutral", "positive,neutral"]
    rows = "".join("\t".join([str(guid), *votes]) + "\n" for guid in range(5))
    rows += "5\tpositive,neutral\t\t \n"  # two annotators left their cells empty
    multiple = write_corpus(tmp_path / "multiple", header + rows, range(6))
    records, rejected = run_ingest(tmp_path, monkeypatch, "mvsa", "posts", multiple)
    assert rejected == [] and [row["label"] for row in records] == ["positive"] * 6


def test_a_corpus_without_any_usable_row_is_rejected(tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "mvsa", SINGLE + "1\tpositive,negative\n", [1])
    with pytest.raises(InputError, match="all 1 rows were left out, most often for 'contradiction"):
        run_ingest(tmp_path, monkeypatch, "mvsa", "posts", source)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("30,happy", "unknown label: 'happy' is none of negative, neutral, positive"),
        ("30,positive,happy", "unknown label: 'happy'"),
        ("30,positive,neutral,neutral", "wrong count: 3 labels, but each annotator gives two"),
        ("30,null", "no label: the row has none"),
        ("30,", "no label: "),
        ("30", "no label: "),
        (",positive", "no id: the line begins with the separator"),
        ("4,neutral", "duplicate id: already used at labels.csv:6"),
        ("99,positive", "missing text: 99.txt"),
        ("../labels,positive", "missing text: ../labels.txt"),
        ("a\0b,positive", "undecodable line: not utf-8 or gb18030 or latin-1"),
        ("31,positive", "empty text: data/31.txt has none"),
        ("32,positive", "path leaves the folder: data/32.txt"),
        ("33,positive", "missing text: data/33.txt cannot be read"),
        ("34,positive", "undecodable file: data/34.txt is not utf-8 or gb18030 or latin-1"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason(tmp_path, ingest_corpus, line, reason):
    ingest_corpus()
    data = tmp_path / "mvsa" / "data"
    (data / "31.txt").write_text(" \n")
    (tmp_path / "secret.txt").write_text("secret")
    for guid in (32, 33):
        (data / f"{guid}.txt").unlink()
    (data / "32.txt").symlink_to(tmp_path / "secret.txt")
    (data / "33.txt").mkdir()
    (data / "34.txt").write_bytes(b"a\0b")
    labels = tmp_path / "mvsa" / "labels.csv"
    labels.write_text(labels.read_text() + f"{line}\n30,positive\n")
    records, rejected = ingest_again(tmp_path)
    [(place, message)] = rejected
    assert place == "labels.csv:32" and message.startswith(reason)
    assert len(records) == 31


def test_stratified_splits_hold_equal_fractions_of_every_label_and_are_written(
    ingest_corpus, tmp_path
):
    records, _ = ingest_corpus(validation_fraction=0.2, test_fraction=0.3)
    counts = Counter((row["split"], row["label"]) for row in records)
    shares = {"train": 5, "validation": 2, "test": 3}  # of ten
    assert counts == {(split, name): n for split, n in shares.items() for name in SENTIMENT_LABELS}
    lists = read_split_lists(tmp_path / "project" / "output")
    assert all(text.startswith("guid,label\n") for text in lists.values())
    by_text = {row["text"]: (row["split"], row["label"]) for row in records}
    listed = {
        f"the text of number {guid}": (split, label)
        for split, text in lists.items()
        for guid, label in re.findall(r"(\d+),(\w+)\n", text)
    }
    assert listed == by_text


def test_posts_with_the_same_text_share_a_split_and_fractions_stay_exact(ingest_corpus, tmp_path):
    ingest_corpus()
    for guid in range(0, 30, 2):  # five texts with three labels each
        (tmp_path / "mvsa" / "data" / f"{guid}.txt").write_text(f"retweet {guid // 6}")
    for seed in range(4):
        with pytest.MonkeyPatch.context() as patch:
            arguments = ("mvsa", "posts", tmp_path / "mvsa")
            records, _ = run_ingest(
                tmp_path, patch, *arguments, seed=seed, validation_fraction=0.2, test_fraction=0.3
            )
        texts_and_splits = {(row["text"], row["split"]) for row in records}
        assert len(texts_and_splits) == len({row["text"] for row in records}) == 20
        counts = Counter((row["split"], row["label"]) for row in records)
        shares = {"train": 5, "validation": 2, "test": 3}
        assert counts == {
            (split, name): n for split, n in shares.items() for name in SENTIMENT_LABELS
        }


def test_splits_depend_on_the_seed_and_not_on_the_row_order(ingest_corpus, tmp_path):
    first = {row["text"]: row["split"] for row in ingest_corpus()[0]}
    labels = tmp_path / "mvsa" / "labels.csv"
    header, *rows = labels.read_text().splitlines()
    labels.rename(tmp_path / "mvsa" / "reordered.csv")
    (tmp_path / "mvsa" / "reordered.csv").write_text("\n".join([header, *reversed(rows)]))
    again = {row["text"]: row["split"] for row in ingest_corpus(label_files=["reordered.csv"])[0]}
    assert again == first
    other = {row["text"]: row["split"] for row in ingest_corpus(seed=1)[0]}
    assert other.keys() == first.keys() and other != first


def test_written_split_lists_reproduce_the_splits(ingest_corpus, tmp_path):
    first = ingest_corpus()[0]
    for path in (tmp_path / "project" / "output").glob("*.txt"):
        (tmp_path / "mvsa" / path.name).write_text(path.read_text())
    again = ingest_corpus(splits="published")[0]
    keys = ("id", "split", "label", "text")
    rows = [
        sorted(tuple(row[key] for key in keys) for row in records) for records in (first, again)
    ]
    assert rows[0] == rows[1] and again[0]["source"] == "train.txt:2"
    (tmp_path / "mvsa" / "train.txt").unlink()
    with pytest.raises(InputError, match=r"holds no train\.txt.* formats\.mvsa\.splits to strat"):
        ingest_corpus(splits="published")


def test_split_sizes_are_rounded_down_but_not_to_zero():
    assert [compute_split_size(0.1, count) for count in (2683, 470, 1358)] == [
        268,
        47,
        135,
    ]  # MVSA-Single
    assert [
        compute_split_size(0.29, 100),
        compute_split_size(0.1, 3),
        compute_split_size(0.1, 2),
        compute_split_size(0.0, 50),
    ] == [29, 1, 0, 0]


def test_a_corpus_without_any_image_is_ingested(ingest_corpus, tmp_path):
    ingest_corpus()
    image_paths = sorted((tmp_path / "mvsa" / "data").glob("*.jpg"))
    for path in image_paths[1:]:
        path.unlink()
    records, rejected = ingest_again(tmp_path)
    assert sum(row["image"] is None for row in records) == len(rejected) == 29
    image_paths[0].unlink()
    records, rejected = ingest_again(tmp_path)
    assert [row["image"] for row in records] == [None] * 30 and rejected == []
    assert sum(read_summary(tmp_path)["without_picture"].values()) == 30


def ingest_again(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        return run_ingest(tmp_path, patch, "mvsa", "posts", tmp_path / "mvsa")


def test_texts_in_windows_encodings_are_read(ingest_corpus, tmp_path):
    ingest_corpus()
    texts = {1: ("That’s right…", "gb18030"), 2: ("ももクロ 嵐", "gb18030"), 3: ("café", "utf-8")}
    for guid, (text, encoding) in texts.items():
        (tmp_path / "mvsa" / "data" / f"{guid}.txt").write_bytes(text.encode(encoding))
    (tmp_path / "mvsa" / "data" / "4.txt").write_bytes(b"caf\xe9")
    texts = [row["text"] for row in ingest_again(tmp_path)[0]]
    assert texts[1:5] == ["That’s right…", "ももクロ 嵐", "café", "café"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation_fraction": 0.5, "test_fraction": 0.5},
            r"formats\.mvsa: validation_fraction 0\.5 and test_fraction 0\.5 leave no training",
        ),
        ({"test_fraction": -0.1}, r"formats\.mvsa\.test_fraction is -0\.1: give 0 or more"),
    ],
)
def test_invalid_split_fractions_are_rejected(ingest_corpus, changes, message):
    with pytest.raises(InputError, match=message):
        ingest_corpus(**changes)


def test_missing_labels_and_other_kinds_are_rejected(ingest_corpus, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"holds no mine\.csv.* formats\.mvsa\.label_files"):
        ingest_corpus(label_files=["mine.csv"])
    with pytest.raises(InputError, match="format mvsa holds posts: change the kind"):
        run_ingest(tmp_path, monkeypatch, "mvsa", "tweets", tmp_path)
    with pytest.raises(InputError, match="is a file: give the folder"):
        run_ingest(tmp_path, monkeypatch, "mvsa", "posts", tmp_path / "mvsa" / "labels.csv")


def test_labels_may_be_in_a_separate_folder(ingest_corpus):
    records, _ = ingest_corpus(file="label/train.txt")
    assert len(records) == 30 and records[0]["source"] == "train.txt:2"


def test_corrupt_bytes_never_raise_an_unexpected_error(tmp_path):
    rows = "".join(f"{guid}\tpositive,neutral\n" for guid in range(9))
    source = write_corpus(tmp_path, SINGLE + rows, range(9))
    path = source / "labelResultAll.txt"
    assert_handles_any_bytes("mvsa", "posts", source, path, path.read_bytes())


def test_real_pairs_are_ingested_with_the_default_params(tmp_path):
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / "mvsa_single"
    if not source.is_dir():
        pytest.skip("POLYMUSE_REAL_DATA names no folder with mvsa_single")
    limits = ingest.IngestConfig(**PROJECT_PARAMS["ingest"])
    ingest.main(limits, "posts", "posts", "mvsa", source, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["records"] == {"train": 137, "validation": 15, "test": 15}
    assert summary["labels"]["test"] == {"negative": 5, "neutral": 4, "positive": 6}
    assert summary["rejected"] == {"undecodable file": 1}  # a single rare character
    assert sum(summary["without_picture"].values()) == 0
    records = schemas.read_parquet(tmp_path / "out" / "records.parquet", schemas.RECORDS["posts"])
    assert not any("\ufffd" in row["text"] for row in records)
    lists = read_split_lists(tmp_path / "out")
    assert sum(len(text.splitlines()) - 1 for text in lists.values()) == 167
