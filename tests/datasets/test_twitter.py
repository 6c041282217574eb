"""Tagged tweets as published, with the peculiarities and faults of real files."""

import json
import os
import re
from pathlib import Path

import pytest

from stages import clean
from stages.ingest import __main__ as ingest
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import (
    PROJECT_PARAMS,
    assert_handles_any_bytes,
    run_ingest,
    write_image,
)


def build_tweet(number, *lines):
    """The lines of a tweet; by default a valid one with an entity."""
    lines = lines or (f"Tweet\tO\nabout\tO\nBoris{number}\tB-PER\nB.\tI-PER",)
    return "\n".join([f"IMGID:{number}", *lines, "", ""])


def write_corpus(folder, **splits):
    """Write a corpus with three valid tweets per split; `splits` are appended to its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(["train", "valid", "test"]):
        good = "".join(build_tweet(10 * place + number) for number in range(3))
        (folder / f"{name}.txt").write_bytes((good + splits.get(name, "")).encode())
    return folder


@pytest.fixture
def ingest_corpus(tmp_path, monkeypatch):
    """ingest_corpus(lines): records and rejections; the lines follow the valid ones of train."""

    def run(lines="", **changes):
        source = write_corpus(tmp_path / "twitter", train=lines)
        return run_ingest(tmp_path, monkeypatch, "twitter", "tweets", source, **changes)

    return run


def read_summary(tmp_path):
    return json.loads((tmp_path / "project" / "output" / "summary.json").read_text())


def test_a_tweet_has_words_tags_and_the_split_of_its_file(ingest_corpus, tmp_path):
    records, rejected = ingest_corpus()
    assert rejected == []
    assert [row["split"] for row in records] == ["train"] * 3 + ["validation"] * 3 + ["test"] * 3
    assert records[1]["words"] == ["Tweet", "about", "Boris1", "B."]
    assert records[1]["tags"] == ["O", "O", "B-PER", "I-PER"]
    assert records[1]["source"] == "train.txt:7"
    assert read_summary(tmp_path)["without_picture"] == {"train": 3, "validation": 3, "test": 3}
    assert read_summary(tmp_path)["entities"]["train"] == {"PER": 3}


@pytest.mark.parametrize(
    "word",
    ["\u00a0", "\u200d", "❤\ufe0f", "\ufe0f", "a\u2028b", "\x85", "\u3000", " ", "\x1c", "👨‍👩‍👧"],
)
def test_unicode_whitespace_words_are_kept(ingest_corpus, tmp_path, word):
    records, rejected = ingest_corpus(build_tweet(9, "so\tO", f"{word}\tB-LOC", "is\tO"))
    assert rejected == []
    row = next(row for row in records if row["words"][0] == "so")
    assert row["words"] == ["so", word, "is"] and row["tags"] == ["O", "B-LOC", "O"]
    clean.main(load_config(clean.CleanConfig, "clean"), "tweets", Path("output"), Path("cleaned"))
    cleaned = schemas.read_parquet(Path("cleaned/records.parquet"), schemas.CLEAN_RECORDS["tweets"])
    row = next(row for row in cleaned if row["words"][0] == "so")
    assert len(row["words"]) == 3 and all(row["words"]) and row["originals"][1] == word


@pytest.mark.parametrize(
    ("lines", "place", "reason"),
    [
        (build_tweet(9, "a\tO", "b"), 21, "no tab: 'b' is not a word, a tab and a tag"),
        (build_tweet(9, "a O"), 20, "no tab: 'a O'"),
        (build_tweet(9, "a\tb\tO"), 20, "2 tabs: "),
        (build_tweet(9, "a\tB-DOG"), 20, "unknown tag: 'B-DOG' of 'a'"),
        (build_tweet(9, "a\tB-PER "), 20, "unknown tag: 'B-PER '"),
        (build_tweet(9, "a\tPER"), 20, "unknown tag: 'PER'"),
        (build_tweet(9, "a\t"), 20, "unknown tag: ''"),
        (build_tweet(9, "a\to"), 20, "unknown tag: 'o'"),
        (build_tweet(9, "\tO"), 19, "empty text: word 1 has no character"),
        (build_tweet(9, "a\0\tO"), 20, "undecodable line: not utf-8"),
        ("IMGID:9\n\n", 19, "empty text: the tweet has no word"),
        ("a\tO\n\n", 19, "no id: the tweet does not begin with IMGID: and an id"),
        ("IMGID:\na\tO\n", 19, "no id: "),
        (build_tweet(2, "a\tO"), 19, "duplicate id: '2' is already used at train.txt:13"),
        (build_tweet(2), 19, "duplicate id: the same tweet as train.txt:13"),
    ],
)
def test_a_tweet_with_an_invalid_line_is_rejected_and_its_neighbours_are_kept(
    ingest_corpus, lines, place, reason
):
    records, rejected = ingest_corpus(lines + build_tweet(8, "so\tO"))
    [(source, message)] = rejected
    assert source == f"train.txt:{place}" and message.startswith(reason)
    assert len(records) == 10 and records[3]["words"] == ["so"]


def test_other_line_ends_byte_order_marks_and_encodings_are_read(tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "twitter")
    for number, name in enumerate(["train.txt", "valid.txt"]):
        mark = "\ufeff" if number else ""
        text = f"{mark}IMGID:{number}\n吃\tO\n北京\tB-LOC"  # no line feed at the end
        (source / name).write_bytes(
            text.replace("\n", "\r\n").encode("utf-8" if number else "gb18030")
        )
    (source / "test.txt").unlink()
    records, rejected = run_ingest(
        tmp_path, monkeypatch, "twitter", "tweets", source, encodings=["utf-8", "gb18030"]
    )
    assert rejected == []
    assert [row["words"] for row in records] == [["吃", "北京"]] * 2
    assert {row["language"] for row in records} == {"zh"}


def test_orphan_tags_are_kept_and_counted(ingest_corpus, tmp_path):
    records, _ = ingest_corpus(build_tweet(9, "a\tI-LOC", "b\tI-PER", "c\tI-PER"))
    assert records[3]["tags"] == ["I-LOC", "I-PER", "I-PER"]
    assert read_summary(tmp_path)["orphan_tags"] == {"train": 2, "validation": 0, "test": 0}
    assert read_summary(tmp_path)["entities"]["train"] == {"LOC": 1, "PER": 4}


def test_entity_types_are_mapped(ingest_corpus):
    lines = build_tweet(9, "a\tB-OTHER", "b\tI-OTHER", "c\tB-MISC")
    assert ingest_corpus(lines)[0][3]["tags"] == ["B-MISC", "I-MISC", "B-MISC"]
    assert (
        ingest_corpus(lines, entity_types=["PER", "OTHER", "MISC"], entity_type_map={})[0][3][
            "tags"
        ][0]
        == "B-OTHER"
    )
    with pytest.raises(
        InputError, match=r"formats\.twitter: entity_type_map maps to 'MISC', which"
    ):
        ingest_corpus(lines, entity_types=["PER"])


def test_images_are_named_after_their_tweet_and_rejected_separately(tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "twitter", train=build_tweet("17_06_5"))
    write_image(source / "images" / "0.jpg", 1)
    write_image(source / "twitter2017_images" / "17_06_5.jpg", 2)
    (source / "images" / "1.jpg").write_text("not an image")
    (source / "images" / "2.jpg").symlink_to("/etc/hostname")
    records, rejected = run_ingest(tmp_path, monkeypatch, "twitter", "tweets", source)
    assert [row["image"] is None for row in records] == [False, True, True, False] + [True] * 6
    assert [place for place, _ in rejected][:2] == ["train.txt:7", "train.txt:13"]
    assert rejected[0][1].startswith("unreadable image: ") and "1.jpg" in rejected[0][1]
    assert rejected[1][1].startswith("path leaves the folder")
    assert [message for _, message in rejected[2:4]] == [
        f"missing image: {n}.jpg" for n in (10, 11)
    ]
    assert read_summary(tmp_path)["without_picture"] == {"train": 2, "validation": 3, "test": 3}


def test_tweets_with_the_same_words_and_missing_images_are_different_records(ingest_corpus):
    records, rejected = ingest_corpus(build_tweet(8, "a\tO") + build_tweet(9, "a\tO"))
    assert rejected == [] and len({row["id"] for row in records}) == 11


def test_dev_is_an_alias_of_valid_and_files_may_be_one_folder_deeper(tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "gmner" / "txt")
    (source / "valid.txt").rename(source / "dev.txt")
    write_image(tmp_path / "gmner" / "images" / "10.png", 3)
    records, _ = run_ingest(tmp_path, monkeypatch, "twitter", "tweets", tmp_path / "gmner")
    assert records[3]["split"] == "validation" and records[3]["image"]


def test_missing_files_are_named(tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "twitter")
    arguments = (tmp_path, monkeypatch, "twitter", "tweets")
    with pytest.raises(InputError, match="is a file: give the folder that holds it"):
        run_ingest(*arguments, source / "train.txt")
    with pytest.raises(InputError, match="format twitter holds tweets: change the kind"):
        run_ingest(tmp_path, monkeypatch, "twitter", "posts", source)
    for name in ["test.txt", "valid.txt"]:
        (source / name).unlink()
    with pytest.raises(InputError, match=r"holds no valid\.txt and no test\.txt: put it there"):
        run_ingest(*arguments, source)
    (source / "train.txt").unlink()
    with pytest.raises(InputError, match=r"holds no train\.txt, and no folder in it does: put"):
        run_ingest(*arguments, source)


def test_corrupt_bytes_never_raise_an_unexpected_error(tmp_path):
    path = write_corpus(tmp_path) / "train.txt"
    assert_handles_any_bytes("twitter", "tweets", tmp_path, path, path.read_bytes())


@pytest.mark.parametrize(
    ("name", "train", "valid", "num_b_tags", "orphans"),
    [
        # Numbers of B- tags by type, of train and valid, as published.
        ("twitter2015", 4000, 1000, (2217 + 2091 + 931 + 927, 552 + 522 + 247 + 220), (186, 53)),
        ("twitter2017", 3373, 723, (2943 + 1674 + 731 + 701, 626 + 375 + 173 + 150), (0, 0)),
    ],
)
def test_the_real_files_are_ingested_completely(tmp_path, name, train, valid, num_b_tags, orphans):
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / "mner" / name
    if not source.is_dir():
        pytest.skip("POLYMUSE_REAL_DATA names no folder with mner")
    limits = ingest.IngestConfig(**PROJECT_PARAMS["ingest"])
    ingest.main(limits, "tweets", "tweets", "twitter", source, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["records"] == {"train": train, "validation": valid, "test": 0}
    assert summary["rejected"] == {}
    for split, num_b, num_orphans in zip(["train", "validation"], num_b_tags, orphans, strict=True):
        assert summary["orphan_tags"][split] == num_orphans
        assert sum(summary["entities"][split].values()) == num_b + num_orphans
    content = b"".join((source / f"{one}.txt").read_bytes() for one in ("train", "valid"))
    records = schemas.read_parquet(tmp_path / "out" / "records.parquet", schemas.RECORDS["tweets"])
    assert sum(len(row["words"]) for row in records) == len(re.findall(rb"\t", content))
