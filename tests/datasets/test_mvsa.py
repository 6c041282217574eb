# ruff: noqa: RUF001  odd characters are what this is about
"""MVSA as its archives unpack, and as others pass it on."""

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


def write(folder, content, guids, file="labelResultAll.txt"):
    """A corpus with a text and a picture for each of the guids."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    for guid in guids:
        (folder / "data" / f"{guid}.txt").write_text(f"the text of number {guid} \n")
        write_image(folder / "data" / f"{guid}.jpg", guid)
    return folder


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """taken(lines): records and rejects of a list of 30 posts with one label and these lines."""

    def run(lines="", file="labels.csv", **changes):
        rows = "".join(f"{guid},{SENTIMENT_LABELS[guid % 3]}\n" for guid in range(30))
        source = write(tmp_path / "mvsa", LIST + rows + lines, range(36), file)
        return run_ingest(tmp_path, monkeypatch, "mvsa", "posts", source, **changes)

    return run


def counts(tmp_path):
    return json.loads((tmp_path / "project" / "taken" / "summary.json").read_text())


def split_lists(folder):
    names = {"train": "train", "validation": "valid", "test": "test"}
    return {split: (folder / f"{name}.txt").read_text() for split, name in names.items()}


def test_a_post_has_text_label_and_picture(taken, tmp_path):
    records, rejected = taken()
    assert rejected == [] and len(records) == 30
    assert records[4]["text"] == "the text of number 4" and records[4]["label"] == "neutral"
    assert records[4]["source"] == "labels.csv:6" and records[4]["language"] == "en"
    assert len({row["image"] for row in records}) == 30
    assert counts(tmp_path)["labels"]["test"] == dict.fromkeys(SENTIMENT_LABELS, 1)
    assert counts(tmp_path)["without_picture"] == {"train": 0, "validation": 0, "test": 0}


# Rows: the text's label; columns: the picture's, both in the order of "+0-"; "x": left out.
@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        ("neutral_yields", "++x +0- x--"),
        ("agree", "+xx x0x xx-"),
        ("text", "+++ 000 ---"),
        ("picture", "+0- +0- +0-"),
    ],
)
def test_the_labels_of_text_and_picture_become_one(merge, expected):
    for text, row in zip("+0-", expected.split(), strict=True):
        for image, label in zip("+0-", row, strict=True):
            found = merge_annotations([NAMES[text], NAMES[image]], merge)
            if label == "x":
                said = f"contradiction: the text is {NAMES[text]}, the image {NAMES[image]}"
                assert found == MvsaLabelRejection(said, intentional=True)
            else:
                assert found == NAMES[label]


@pytest.mark.parametrize(
    ("votes", "label"),  # text and picture of three annotators
    [
        ("++ ++ ++", "+"),
        ("++ +- 00", "no majority: the image is positive, negative, neutral"),
        ("++ 00 -+", "no majority: the text is positive, neutral, negative"),
        ("+0 +0 -0", "+"),
        ("+- +- -0", "contradiction: the text is positive, the image negative"),
        ("0- 0- +-", "-"),
    ],
)
def test_of_three_annotators_the_majority_counts_for_each_modality(votes, label):
    found = merge_annotations(
        [NAMES[one] for pair in votes.split() for one in pair], "neutral_yields"
    )
    assert found == (
        NAMES[label] if label in NAMES else MvsaLabelRejection(label, intentional=True)
    )


def test_a_modality_that_does_not_count_needs_no_majority():
    votes = [NAMES[one] for one in "+++-00"]  # text and picture in turn
    assert merge_annotations(votes, "text") == "positive"
    tied = MvsaLabelRejection(
        "no majority: the image is positive, negative, neutral", intentional=True
    )
    assert merge_annotations(votes, "picture") == merge_annotations(votes, "neutral_yields") == tied


def test_both_archives_are_read_and_contradictions_are_no_faults(tmp_path, monkeypatch):
    agreed = "".join(f"{guid}\tpositive,neutral\n" for guid in range(6))
    opposed = "".join(f"{guid}\tpositive,negative\n" for guid in range(6, 150))
    single = write(tmp_path / "single" / "MVSA_Single", SINGLE + agreed + opposed, range(150))
    # 144 of 150, more than the tests' ingest.max_rejected
    records, rejected = run_ingest(tmp_path, monkeypatch, "mvsa", "posts", single.parent)
    assert [row["label"] for row in records] == ["positive"] * 6
    assert counts(tmp_path)["rejected"] == {"contradiction": 144} and len(rejected) == 144
    header = "ID\ttext,image\ttext,image\ttext,image\n"
    votes = ["positive,neutral", "negative,neutral", "positive,neutral"]
    rows = "".join("\t".join([str(guid), *votes]) + "\n" for guid in range(5))
    rows += "5\tpositive,neutral\t\t \n"  # two annotators said nothing
    multiple = write(tmp_path / "multiple", header + rows, range(6))
    records, rejected = run_ingest(tmp_path, monkeypatch, "mvsa", "posts", multiple)
    assert rejected == [] and [row["label"] for row in records] == ["positive"] * 6


def test_a_corpus_of_which_nothing_is_left_says_why(tmp_path, monkeypatch):
    source = write(tmp_path / "mvsa", SINGLE + "1\tpositive,negative\n", [1])
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
def test_a_row_of_no_use_is_rejected_and_says_why(tmp_path, taken, line, reason):
    taken()
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
    records, rejected = take_again(tmp_path)
    [(place, said)] = rejected
    assert place == "labels.csv:32" and said.startswith(reason)
    assert len(records) == 31


def test_splits_hold_the_same_share_of_every_label_and_are_written_out(taken, tmp_path):
    records, _ = taken(validation_fraction=0.2, test_fraction=0.3)
    found = Counter((row["split"], row["label"]) for row in records)
    shares = {"train": 5, "validation": 2, "test": 3}  # of ten
    assert found == {(split, name): n for split, n in shares.items() for name in SENTIMENT_LABELS}
    lists = split_lists(tmp_path / "project" / "taken")
    assert all(text.startswith("guid,label\n") for text in lists.values())
    by_text = {row["text"]: (row["split"], row["label"]) for row in records}
    listed = {
        f"the text of number {guid}": (split, label)
        for split, text in lists.items()
        for guid, label in re.findall(r"(\d+),(\w+)\n", text)
    }
    assert listed == by_text


def test_posts_of_one_text_share_a_split_and_the_shares_stay_exact(taken, tmp_path):
    taken()
    for guid in range(0, 30, 2):  # five texts under three labels each
        (tmp_path / "mvsa" / "data" / f"{guid}.txt").write_text(f"retweet {guid // 6}")
    for seed in range(4):
        with pytest.MonkeyPatch.context() as patch:
            about = ("mvsa", "posts", tmp_path / "mvsa")
            records, _ = run_ingest(
                tmp_path, patch, *about, seed=seed, validation_fraction=0.2, test_fraction=0.3
            )
        of_text = {(row["text"], row["split"]) for row in records}
        assert len(of_text) == len({row["text"] for row in records}) == 20
        found = Counter((row["split"], row["label"]) for row in records)
        shares = {"train": 5, "validation": 2, "test": 3}
        assert found == {
            (split, name): n for split, n in shares.items() for name in SENTIMENT_LABELS
        }


def test_splits_are_the_seeds_whatever_the_order_of_the_list(taken, tmp_path):
    first = {row["text"]: row["split"] for row in taken()[0]}
    labels = tmp_path / "mvsa" / "labels.csv"
    header, *rows = labels.read_text().splitlines()
    labels.rename(tmp_path / "mvsa" / "given.csv")
    (tmp_path / "mvsa" / "given.csv").write_text("\n".join([header, *reversed(rows)]))
    again = {row["text"]: row["split"] for row in taken(label_files=["given.csv"])[0]}
    assert again == first
    other = {row["text"]: row["split"] for row in taken(seed=1)[0]}
    assert other.keys() == first.keys() and other != first


def test_written_lists_read_again_give_the_same_splits(taken, tmp_path):
    first = taken()[0]
    for path in (tmp_path / "project" / "taken").glob("*.txt"):
        (tmp_path / "mvsa" / path.name).write_text(path.read_text())
    again = taken(splits="published")[0]
    keys = ("id", "split", "label", "text")
    rows = [sorted(tuple(row[key] for key in keys) for row in one) for one in (first, again)]
    assert rows[0] == rows[1] and again[0]["source"] == "train.txt:2"
    (tmp_path / "mvsa" / "train.txt").unlink()
    with pytest.raises(InputError, match=r"holds no train\.txt.* formats\.mvsa\.splits to strat"):
        taken(splits="published")


def test_shares_are_rounded_down_and_never_to_nothing():
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


def test_a_corpus_without_any_picture_is_taken_in_without(taken, tmp_path):
    taken()
    pictures = sorted((tmp_path / "mvsa" / "data").glob("*.jpg"))
    for path in pictures[1:]:
        path.unlink()
    records, rejected = take_again(tmp_path)
    assert sum(row["image"] is None for row in records) == len(rejected) == 29
    pictures[0].unlink()
    records, rejected = take_again(tmp_path)
    assert [row["image"] for row in records] == [None] * 30 and rejected == []
    assert sum(counts(tmp_path)["without_picture"].values()) == 30


def take_again(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        return run_ingest(tmp_path, patch, "mvsa", "posts", tmp_path / "mvsa")


def test_texts_of_a_chinese_windows_are_read(taken, tmp_path):
    taken()
    said = {1: ("That’s right…", "gb18030"), 2: ("ももクロ 嵐", "gb18030"), 3: ("café", "utf-8")}
    for guid, (text, encoding) in said.items():
        (tmp_path / "mvsa" / "data" / f"{guid}.txt").write_bytes(text.encode(encoding))
    (tmp_path / "mvsa" / "data" / "4.txt").write_bytes(b"caf\xe9")
    texts = [row["text"] for row in take_again(tmp_path)[0]]
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
def test_invalid_split_fractions_are_rejected(taken, changes, message):
    with pytest.raises(InputError, match=message):
        taken(**changes)


def test_missing_labels_and_other_kinds_are_named(taken, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"holds no mine\.csv.* formats\.mvsa\.label_files"):
        taken(label_files=["mine.csv"])
    with pytest.raises(InputError, match="format mvsa holds posts: change the kind"):
        run_ingest(tmp_path, monkeypatch, "mvsa", "tweets", tmp_path)
    with pytest.raises(InputError, match="is a file: give the folder"):
        run_ingest(tmp_path, monkeypatch, "mvsa", "posts", tmp_path / "mvsa" / "labels.csv")


def test_the_labels_may_lie_in_a_folder_of_their_own(taken):
    records, _ = taken(file="label/train.txt")
    assert len(records) == 30 and records[0]["source"] == "train.txt:2"


def test_no_bytes_end_the_reading(tmp_path):
    rows = "".join(f"{guid}\tpositive,neutral\n" for guid in range(9))
    source = write(tmp_path, SINGLE + rows, range(9))
    path = source / "labelResultAll.txt"
    assert_handles_any_bytes("mvsa", "posts", source, path, path.read_bytes())


def test_real_pairs_are_taken_in_as_params_are_shipped(tmp_path):
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / "mvsa_single"
    if not source.is_dir():
        pytest.skip("POLYMUSE_REAL_DATA names no folder with mvsa_single")
    limits = ingest.IngestConfig(**PROJECT_PARAMS["ingest"])
    ingest.main(limits, "posts", "posts", "mvsa", source, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["records"] == {"train": 138, "validation": 15, "test": 15}
    assert summary["labels"]["test"] == {"negative": 5, "neutral": 4, "positive": 6}
    assert summary["rejected"] == {} and sum(summary["without_picture"].values()) == 0
    records = schemas.read_parquet(tmp_path / "out" / "records.parquet", schemas.RECORDS["posts"])
    assert not any("\ufffd" in row["text"] for row in records)
    lists = split_lists(tmp_path / "out")
    assert sum(len(text.splitlines()) - 1 for text in lists.values()) == 168
