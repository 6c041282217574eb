"""Memotion 1, 2 and 3 as their archives unpack, and in redistributed forms."""

import csv
import json
import os
from pathlib import Path

import pytest

from stages.datasets.memotion import MemotionConfig, parse_ground_truth, read
from stages.ingest import __main__ as ingest
from stages.shared.core.config import build_config
from stages.shared.data.records import MemeRecord, Rejection
from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import (
    PROJECT_PARAMS,
    assert_handles_any_bytes,
    run_ingest,
    write_image,
)

KAGGLE_HEADER = ["", "image_name", "text_ocr", "text_corrected", "humour", "sarcasm", "offensive"]
KAGGLE_HEADER += ["motivational", "overall_sentiment"]
EARLIER_HEADER = [
    "Image_name",
    "Image_URL",
    "OCR_extracted_text",
    "Corrected_text",
    "Humour",
    "Sarcasm",
]
EARLIER_HEADER += ["Offensive", "Motivational", "Overall_Sentiment"]
MEMOTION_2_HEADER = [
    "Id",
    "Image url",
    "ocr_text",
    "humour",
    "sarcastic",
    "offensive",
    "motivational",
]
MEMOTION_2_HEADER += ["overall_sentiment", "classification_based_on"]
MEMOTION_3_HEADER = [
    "Id",
    "image url",
    "humour",
    "sarcastic",
    "offensive",
    "motivational",
    "overall",
    "ocr",
]
RAW_LABELS = ["very_funny", "general", "slight", "not_motivational", "very_positive"]
LABELS = ["very_funny", "general", "slight", "not_motivational", "positive"]
TASKS = ["sentiment", "humour", "sarcasm", "offensive", "motivational"]


def write_table(path, header, rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def kaggle_row(number, raw_labels=RAW_LABELS, corrected=None):
    """A row of the Kaggle table."""
    text = f"THE WORDS, OF NUMBER {number} HERE"
    return [
        number,
        f"image_{number}.jpg",
        text,
        text if corrected is None else corrected,
        *raw_labels,
    ]


def get_labels(row):
    return {entry["task"]: entry["label"] for entry in row["labels"]}


@pytest.fixture
def ingest_corpus(tmp_path, monkeypatch):
    """ingest_corpus(*rows): records and rejections of twenty Kaggle rows and these rows."""

    def run(*rows, **changes):
        source = tmp_path / "memotion"
        write_table(source / "labels.csv", KAGGLE_HEADER, [*map(kaggle_row, range(20)), *rows])
        for number in range(30):
            write_image(source / "images" / f"image_{number}.jpg", number)
        return run_ingest(tmp_path, monkeypatch, "memotion", "memes", source, **changes)

    return run


def ingest_again(tmp_path, **changes):
    with pytest.MonkeyPatch.context() as patch:
        return run_ingest(tmp_path, patch, "memotion", "memes", tmp_path / "memotion", **changes)


def read_output(tmp_path, name):
    return json.loads((tmp_path / "project" / "output" / name).read_text())


def test_a_meme_has_text_image_and_five_labels(ingest_corpus, tmp_path):
    records, rejected = ingest_corpus()
    assert rejected == [] and len(records) == 20
    assert records[3]["text"] == "THE WORDS, OF NUMBER 3 HERE"
    assert records[3]["source"] == "labels.csv:5" and records[3]["language"] == "en"
    assert get_labels(records[3]) == dict(zip(TASKS, ["positive", *LABELS[:4]], strict=True))
    assert len({row["image"] for row in records}) == 20
    tasks = read_output(tmp_path, "tasks.json")
    assert list(tasks) == TASKS and tasks["sentiment"] == ["negative", "neutral", "positive"]
    assert tasks["sarcasm"] == ["not_sarcastic", "general", "twisted_meaning", "very_twisted"]
    assert {row["split"] for row in records} == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"sentiment": "five"}, {"sentiment": "very_positive", "humour": "very_funny"}),
        ({"humour": "binary", "sarcasm": "binary"}, {"humour": "funny", "sarcasm": "sarcastic"}),
        ({"offensive": "binary", "humour": "none"}, {"offensive": "offensive", "humour": None}),
    ],
)
def test_label_sets_select_the_labels_of_each_task(ingest_corpus, tmp_path, choices, expected):
    records, _ = ingest_corpus(
        label_sets=PROJECT_PARAMS["formats"]["memotion"]["label_sets"] | choices
    )
    tasks = read_output(tmp_path, "tasks.json")
    for task, label in expected.items():
        assert get_labels(records[0]).get(task) == label
        assert (task in tasks) == (label is not None) and label in tasks.get(task, [None])


def test_the_text_is_the_corrected_one_else_the_recognized_one_else_empty(ingest_corpus):
    silent = [21, "image_21.jpg", "nan", "", *RAW_LABELS]
    records, rejected = ingest_corpus(
        kaggle_row(20, corrected=""), silent, kaggle_row(22, corrected="of people")
    )
    assert rejected == []
    assert [row["text"] for row in records[20:]] == [
        "THE WORDS, OF NUMBER 20 HERE",
        "",
        "of people",
    ]


def test_an_empty_cell_means_no_annotation(ingest_corpus):
    records, rejected = ingest_corpus(
        kaggle_row(20, raw_labels=["", " ", "slight", "NaN", "neutral"])
    )
    assert rejected == [] and get_labels(records[20]) == {
        "sentiment": "neutral",
        "offensive": "slight",
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            kaggle_row(20, [*RAW_LABELS[:4], "positivechandler_Friday-Mood.jpg"]),
            "unknown label: 'positivechandler_Friday-Mood.jpg' is none of very_negative, negative, "
            "neutral, positive, very_positive (sentiment)",
        ),
        (
            kaggle_row(20, ["extremely_sarcastic", *RAW_LABELS[1:]]),
            "unknown label: 'extremely_sarcastic'",
        ),
        (kaggle_row(20)[:5], "wrong count: 5 cells under 9 columns"),
        ([*kaggle_row(20), "more"], "wrong count: 10 cells under 9 columns"),
        (kaggle_row(20, corrected="a\0b"), "undecodable line: not utf-8"),
        ([20, " ", "text", "text", *RAW_LABELS], "no id: the row names no image"),
        (
            kaggle_row(7, corrected="another"),
            "duplicate id: 'image_7.jpg' is already used at labels.csv:9",
        ),
        ([20, "other.jpg", "", "", *RAW_LABELS], "empty text: the meme has neither"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason(ingest_corpus, row, reason):
    records, rejected = ingest_corpus(row)
    assert len(records) == 20
    assert any(
        source == "labels.csv:22" and message.startswith(reason) for source, message in rejected
    )
    assert {message.split(":")[0] for _, message in rejected} <= {
        reason.split(":")[0],
        "missing image",
    }


def test_a_meme_with_a_missing_image_keeps_its_text(ingest_corpus):
    records, rejected = ingest_corpus([20, "image_99.jpg", "lost", "", *RAW_LABELS])
    assert rejected == [("labels.csv:22", "missing image: image_99.jpg")]
    assert records[20]["image"] is None and records[20]["text"] == "lost"


def test_memes_are_ingested_without_images_if_there_are_none(ingest_corpus, tmp_path):
    ingest_corpus()
    for path in (tmp_path / "memotion" / "images").iterdir():
        path.rename(path.with_name("._" + path.name))  # as AppleDouble files
    records, rejected = ingest_again(tmp_path)
    assert rejected == [] and [row["image"] for row in records] == [None] * 20


def test_cells_may_hold_line_ends_and_quotes_but_no_undecodable_bytes(ingest_corpus, tmp_path):
    ingest_corpus(kaggle_row(20, corrected='he said\n"no", twice\r\nand left'))
    table = tmp_path / "memotion" / "labels.csv"
    table.write_bytes(
        b"\xef\xbb\xbf" + table.read_bytes() + b"21,image_21.jpg,\xff,\xff,a,b,c,d,e\r\n"
    )
    records, rejected = ingest_again(tmp_path)
    assert records[20]["text"] == 'he said\n"no", twice\r\nand left'
    assert rejected == [("labels.csv:25", "undecodable line: not utf-8")]
    # Latin-1, added to the encodings.
    table.write_bytes(
        table.read_bytes().replace(
            b"\xff,a,b,c,d,e", ",".join(["\xe9", *RAW_LABELS]).encode("latin-1")
        )
    )
    records, rejected = ingest_again(tmp_path, encodings=["utf-8", "latin-1"])
    assert rejected == [] and records[21]["text"] == "é"


def test_an_unclosed_quote_rejects_its_own_line_only(ingest_corpus, tmp_path):
    ingest_corpus()
    table = tmp_path / "memotion" / "labels.csv"
    text = table.read_text().replace('"THE WORDS, OF NUMBER 3', '"THE "WORDS, OF NUMBER 3', 1)
    table.write_text(
        text
        + '20,image_20.jpg,"open,open,a,b,c,d,e\n'
        + "21,image_21.jpg,a,b,"
        + ",".join(RAW_LABELS)
        + "\n"
    )
    records, rejected = ingest_again(tmp_path)
    assert len(records) == 20 and records[-1]["text"] == "b"
    assert {place for place, _ in rejected} == {"labels.csv:5", "labels.csv:22"}
    assert all(reason.startswith("not CSV") for _, reason in rejected)


def test_the_earlier_release_has_other_columns(tmp_path, monkeypatch):
    rows = [
        [f"10_year_{n}.JPG", "https://a.org/b.jpg", "ocr", f"text {n}", *RAW_LABELS]
        for n in range(9)
    ]
    write_table(tmp_path / "m" / "in" / "data_6512.csv", EARLIER_HEADER, rows, ";")
    write_image(tmp_path / "m" / "in" / "images" / "10_year_4.JPG", 4)
    records, rejected = run_ingest(tmp_path, monkeypatch, "memotion", "memes", tmp_path / "m")
    assert len(records) == 9 and len(rejected) == 8
    assert get_labels(records[4])["sarcasm"] == "general" and records[4]["image"]


TEST_HEADER = ["Image_name", "Image_URL", "OCR_extracted_text", "corrected_text"]


def write_official_test(tmp_path, ground_truths, header=("Image_name", "Labels")):
    """Write the official test files next to the Kaggle train table."""
    source = tmp_path / "memotion"
    rows = [[f"t{n}.png", "url", f"test {n}", "" if n else "of test"] for n in range(5)]
    write_table(source / "2000_testdata.csv", TEST_HEADER, rows)
    write_table(source / "Meme_groundTruth.csv", header, ground_truths)
    for n in range(5):
        write_image(source / "2000_data" / f"t{n}.png", 100 + n)


def test_the_ground_truth_of_test_gives_sentiment_binary_labels_and_levels(ingest_corpus, tmp_path):
    ingest_corpus()
    write_official_test(
        tmp_path, [["t2.png", "-1_0110_0230"], ["t0.png", "1_1001_1001"], ["t3.png", "0_0000_0000"]]
    )
    records, rejected = ingest_again(tmp_path)
    assert rejected == []
    test = {row["text"]: get_labels(row) for row in records if row["split"] == "test"}
    assert list(test) == ["of test", "test 1", "test 2", "test 3", "test 4"]
    assert test["test 2"] == {
        "sentiment": "negative",
        "humour": "not_funny",
        "sarcasm": "twisted_meaning",
        "offensive": "hateful_offensive",
        "motivational": "not_motivational",
    }
    assert list(test["of test"].values()) == [
        "positive",
        "funny",
        "not_sarcastic",
        "not_offensive",
        "motivational",
    ]
    assert test["test 1"] == {}  # no annotation
    assert all(row["image"] for row in records)
    # Only test has a file of its own, so a fraction of train becomes validation.
    assert {row["split"] for row in records} == {"train", "validation", "test"}
    assert not any(
        row["split"] == "validation" for row in ingest_again(tmp_path, validation_fraction=0.0)[0]
    )
    binary = PROJECT_PARAMS["formats"]["memotion"]["label_sets"] | {
        "sarcasm": "binary",
        "sentiment": "five",
    }
    records, _ = ingest_again(tmp_path, label_sets=binary)
    (labels,) = [get_labels(row) for row in records if row["text"] == "test 2"]
    assert labels["sarcasm"] == "sarcastic" and "sentiment" not in labels


@pytest.mark.parametrize(
    ("ground_truth", "reason"),
    [
        ("0_110_1310", "wrong field: '0_110_1310' is not T1_T2_T3, such as -1_1110_1310"),
        ("2_1110_1310", "unknown label: '2' is none of -1, 0, 1 (sentiment)"),
        ("0_1110_1410", "unknown label: '4' is none of 0, 1, 2, 3 (sarcasm)"),
        ("0_1112_1310", "unknown label: '2' is none of 0, 1 (motivational)"),
        ("", "wrong field: ''"),
    ],
)
def test_an_invalid_ground_truth_is_rejected(ground_truth, reason):
    choices = {
        "sentiment": "three",
        **dict.fromkeys(TASKS[1:4], "levels"),
        "motivational": "binary",
    }
    assert parse_ground_truth(ground_truth, choices).startswith(reason)


def test_ground_truths_that_match_no_row_are_rejected(ingest_corpus, tmp_path):
    ingest_corpus()
    write_official_test(
        tmp_path, [["t1.png", "0_110_1310"], ["t9.png", "0_1110_1310"], ["t1.png", "0_0000_0000"]]
    )
    _, rejected = ingest_again(tmp_path)
    assert sorted((source, message.split(":")[0]) for source, message in rejected) == [
        ("Meme_groundTruth.csv:2", "wrong field"),
        ("Meme_groundTruth.csv:3", "missing row"),
        ("Meme_groundTruth.csv:4", "duplicate id"),
    ]
    write_official_test(tmp_path, [], header=("name", "label"))
    with pytest.raises(InputError, match=r"groundTruth\.csv has no column Labels"):
        ingest_again(tmp_path)
    (tmp_path / "memotion" / "2000_testdata.csv").unlink()
    with pytest.raises(InputError, match=r"Meme_groundTruth\.csv but no 2000_testdata\.csv or"):
        ingest_again(tmp_path)


def test_memotion_2_has_other_names_of_columns_and_sarcasm_levels(tmp_path, monkeypatch):
    source = tmp_path / "m2"
    raw_labels = ["hilarious", "extremely_sarcastic", "not_offensive", "motivational"]
    for split in ("train", "val"):
        rows = [[n, "url", f"{split} {n}", *raw_labels, "negative", "both"] for n in range(4)]
        write_table(source / f"memotion_{split}.csv", MEMOTION_2_HEADER, rows)
        for n in range(4):
            write_image(source / f"{split}_images" / f"{n}.jpg", n + 50 * (split == "val"))
    records, rejected = run_ingest(tmp_path, monkeypatch, "memotion", "memes", source)
    assert (
        rejected == [] and [row["split"] for row in records] == ["train"] * 4 + ["validation"] * 4
    )
    assert get_labels(records[0]) == dict(
        zip(TASKS, ["negative", "hilarious", "very_twisted", *raw_labels[2:]], strict=True)
    )
    assert len({row["image"] for row in records}) == 8


def test_memotion_3_has_a_tab_separated_file_and_ground_truths_without_names(tmp_path, monkeypatch):
    source = tmp_path / "m3"
    rows = [[n, "url", *LABELS[:4], "neutral", f"kya, {n}"] for n in range(4)]
    write_table(source / "train.csv", MEMOTION_3_HEADER, rows)
    write_table(source / "val.csv", MEMOTION_3_HEADER, rows, "\t")
    write_table(source / "test.csv", ["image url", "ocr"], [["url", f"test {n}"] for n in range(3)])
    (source / "answer-groudtruth.txt").write_text("0_1110_1310\n\n-1_0000_0000\n1_0001_0001\n")
    for folder, shift in [("trainImages/trainImages", 0), ("valImages", 50), ("testImages", 100)]:
        for n in range(4):
            write_image(source / folder / f"{n}.jpg", n + shift)
    records, rejected = run_ingest(tmp_path, monkeypatch, "memotion", "memes", source)
    assert rejected == [] and len({row["image"] for row in records}) == len(records) == 11
    assert [get_labels(row)["sentiment"] for row in records[8:]] == [
        "neutral",
        "negative",
        "positive",
    ]
    assert records[5]["text"] == "kya, 1" and records[5]["split"] == "validation"
    (source / "answer-groudtruth.txt").write_text("0_1110_1310\n")
    with pytest.raises(InputError, match=r"has 1 labels, but test\.csv has 3 rows: give two files"):
        run_ingest(tmp_path, monkeypatch, "memotion", "memes", source)


def test_rows_after_a_malformed_one_are_rejected_if_images_are_numbered(tmp_path, monkeypatch):
    """The second row has one cell too few: it may be the rest of the row above."""
    source = tmp_path / "m3"
    header = [*MEMOTION_3_HEADER[1:]]
    rows = [["url", *LABELS[:4], "neutral", f"kya {n}"] for n in range(4)]
    write_table(source / "train.csv", header, [rows[0], rows[1][:-1], *rows[2:]])
    for n in range(4):
        write_image(source / "trainImages" / f"{n}.jpg", n)
    items = list(
        read(
            source,
            "memes",
            build_config(MemotionConfig, PROJECT_PARAMS["formats"]["memotion"], "memotion"),
        )
    )
    (meme,) = [item for item in items if isinstance(item, MemeRecord)]
    assert (meme.text, meme.image.path) == ("kya 0", "0.jpg")
    assert [
        (item.source, item.reason.split(":")[0]) for item in items if isinstance(item, Rejection)
    ] == [
        ("train.csv:3", "wrong count"),
        ("train.csv:4", "no id"),
        ("train.csv:5", "no id"),
    ]


def test_a_file_without_labels_gives_memes_without_annotation(tmp_path, monkeypatch):
    source = tmp_path / "m3"
    rows = [[n, "url", *LABELS[:4], "neutral", f"kya {n}"] for n in range(4)]
    write_table(source / "train.csv", MEMOTION_3_HEADER, rows)
    write_table(source / "test.csv", ["Id", "ocr"], [[n, f"test {n}"] for n in range(3)])
    records, _ = run_ingest(tmp_path, monkeypatch, "memotion", "memes", source)
    assert [row["labels"] for row in records if row["split"] == "test"] == [[], [], []]


def test_missing_columns_and_files_are_named(tmp_path, monkeypatch):
    source = tmp_path / "memotion"
    write_table(source / "labels.csv", [*KAGGLE_HEADER[:4], "humour", "offensive"], [])
    with pytest.raises(
        InputError, match=r"no column overall_sentiment, sarcasm, motivational \(its"
    ):
        run_ingest(tmp_path, monkeypatch, "memotion", "memes", source)
    write_table(source / "labels.csv", ["a", "a"], [])
    with pytest.raises(InputError, match="names the column 'a' twice: name it once"):
        run_ingest(tmp_path, monkeypatch, "memotion", "memes", source)
    (source / "labels.csv").write_text(" \n")
    with pytest.raises(InputError, match="is empty: add a line that names its columns"):
        run_ingest(tmp_path, monkeypatch, "memotion", "memes", source)
    (source / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"holds no labels\.csv or .*formats\.memotion\.files"):
        run_ingest(tmp_path, monkeypatch, "memotion", "memes", source)
    with pytest.raises(InputError, match="format memotion holds memes: change the kind"):
        run_ingest(tmp_path, monkeypatch, "memotion", "posts", source)
    with pytest.raises(
        InputError, match=r"memotion\.validation_fraction is 1\.0: give less than 1"
    ):
        run_ingest(tmp_path, monkeypatch, "memotion", "memes", source, validation_fraction=1.0)


def test_corrupt_bytes_never_raise_an_unexpected_error(tmp_path):
    source = write_table(tmp_path / "labels.csv", KAGGLE_HEADER, map(kaggle_row, range(9))).parent
    ground_truth = write_table(
        tmp_path / "Meme_groundTruth.csv", ["name", "Labels"], [["t1.png", "0_0000_0000"]]
    )
    write_table(tmp_path / "2000_testdata.csv", TEST_HEADER, [["t1.png", "", "a", "b"]])
    for path in (source / "labels.csv", ground_truth):
        good = path.read_bytes()
        assert_handles_any_bytes("memotion", "memes", source, path, good)
        path.write_bytes(good)


def test_real_rows_are_ingested_except_a_duplicate(tmp_path, monkeypatch):
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / "memotion_text"
    if not source.is_dir():
        pytest.skip("POLYMUSE_REAL_DATA names no folder with memotion_text")
    files = PROJECT_PARAMS["formats"]["memotion"]["files"] | {"train": ["data_3000.csv"]}
    about = (tmp_path, monkeypatch, "memotion", "memes", source)
    monkeypatch.setattr(
        "tests.support.published_corpus.INGEST_CONFIG",
        ingest.IngestConfig(**PROJECT_PARAMS["ingest"]),
    )
    records, rejected = run_ingest(*about, files=files)
    assert len(records) == 3011 and len(rejected) == 7  # three pairs of stray quotes
    counts = read_output(tmp_path, "summary.json")
    assert counts["records"] == {"train": 2289, "validation": 291, "test": 431}
    assert counts["labels"]["sarcasm"]["test"]["very_twisted"] == 22
