"""Memes as rows of a table with configurable columns and labels."""

import csv
import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from stages.datasets.table import TableTaskConfig, format_value, parse_label
from stages.ingest import __main__ as ingest
from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import (
    PROJECT_PARAMS,
    assert_handles_any_bytes,
    run_ingest,
    write_image,
)

HEADER = ["Name", "Words", "Level", "Mood"]
COLUMNS = {"image": "Name", "text": "Words", "id": None, "split": None, "language": None}
LEVEL = {"column": "Level", "labels": {"non-off": "not_offensive", "off": "offensive"}}
MOOD = {"column": "Mood", "labels": {1: "glad", 0: "sad", "yes": "glad"}}
TASKS = {"offensive": LEVEL | {"default_label": None}, "mood": MOOD | {"default_label": None}}
TABLE_CONFIG = {"columns": COLUMNS, "tasks": TASKS, "image_suffix": ".png"}


def build_row(number):
    return [f"m{number}", f"the words of number {number}", "off", "1"]


def write_table(path, rows, header=HEADER, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture
def ingest_corpus(tmp_path, monkeypatch):
    """ingest_corpus(*rows): records and rejections of a table of ten rows and these."""

    def run(*rows, file="memes.csv", delimiter=",", **changes):
        source = tmp_path / "table"
        write_table(source / file, [*map(build_row, range(10)), *rows], delimiter=delimiter)
        for number in range(20):
            write_image(source / "images" / f"m{number}.png", number)
        return run_ingest(tmp_path, monkeypatch, "table", "memes", source, **TABLE_CONFIG | changes)

    return run


def labels(record):
    return {entry["task"]: entry["label"] for entry in record["labels"]}


def read_output(tmp_path, name):
    return json.loads((tmp_path / "project" / "output" / name).read_text())


@pytest.mark.parametrize(
    ("file", "delimiter"), [("memes.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")]
)
def test_columns_and_delimiters_are_configurable(ingest_corpus, tmp_path, file, delimiter):
    records, rejected = ingest_corpus(file=file, delimiter=delimiter)
    assert rejected == [] and len(records) == len({record["image"] for record in records}) == 10
    assert records[2]["text"] == "the words of number 2" and records[2]["source"] == f"{file}:4"
    assert labels(records[2]) == {"offensive": "offensive", "mood": "glad"}
    tasks = {"offensive": ["not_offensive", "offensive"], "mood": ["glad", "sad"]}
    assert read_output(tmp_path, "tasks.json") == tasks


def test_an_empty_cell_means_no_annotation(ingest_corpus):
    records, rejected = ingest_corpus(["m10", "a", "", " "], ["m11", "b", "non-off", ""])
    assert rejected == []
    assert [labels(record) for record in records[10:]] == [{}, {"offensive": "not_offensive"}]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["m10", "a", "Off", "1"], "unknown label: 'Off' is none of non-off, off (offensive)"),
        (["m10", "a", "off", "2"], "unknown label: '2' is none of 1, 0, yes (mood)"),
        (["m10", "a", "off"], "wrong count: 3 cells under 4 columns"),
        (["m10", "a\0", "off", "1"], "undecodable line: not utf-8"),
        (["m3", "other", "off", "1"], "duplicate id: 'm3' is already used at memes.csv:5"),
        (["", "the words of number 3", "off", "1"], None),
        (["m99", " ", "off", "1"], "empty text: the meme has neither text nor a usable image"),
        (["../../m1", "", "off", "1"], "empty text: the meme has neither text nor a usable image"),
    ],
)
def test_an_unusable_row_is_rejected_with_its_reason(ingest_corpus, cells, reason):
    records, rejected = ingest_corpus(cells)
    messages = [message for place, message in rejected if place == "memes.csv:12"]
    assert messages[-1:] == ([reason] if reason else []) and len(records) == 10 + (reason is None)


def test_a_missing_or_outside_image_keeps_the_text(ingest_corpus):
    records, rejected = ingest_corpus(["m99", "a", "off", "1"], ["../../x", "b", "off", "1"])
    assert [message.split(" (")[0] for _, message in rejected] == [
        "missing image: m99.png",
        "path leaves the folder: ../../x.png",
    ]
    assert [record["image"] for record in records[10:]] == [None, None]


def test_id_split_and_language_may_have_columns(ingest_corpus, tmp_path):
    header = [*HEADER, "Key", "Part", "Tongue"]
    rows = [
        [*build_row(n), f"0{n}", part, "pt_BR"]
        for n, part in enumerate(["train", "DEV", "test", ""])
    ]
    columns = COLUMNS | {"id": "Key", "split": "Part", "language": "Tongue"}
    ingest_corpus()
    write_table(
        tmp_path / "table" / "memes.csv", [*rows, [*build_row(4), "01", "train", ""]], header
    )
    write_table(tmp_path / "table" / "more.csv", [[*build_row(5), "5", "all", ""]], header)
    with pytest.MonkeyPatch.context() as patch:
        about = (tmp_path, patch, "table", "memes", tmp_path / "table")
        records, rejected = run_ingest(*about, **TABLE_CONFIG | {"columns": columns})
    assert [record["split"] for record in records[:3]] == ["train", "validation", "test"]
    assert len(records) == 4 and {record["language"] for record in records} == {"pt"}
    known = "train, validation, test, val, dev, valid"
    assert rejected == [
        ("memes.csv:6", "duplicate id: '01' is already used at memes.csv:3"),
        ("more.csv:2", f"wrong field: split: 'all' is none of {known}"),
    ]


def test_files_may_be_the_splits_and_apple_double_files_are_ignored(
    ingest_corpus, tmp_path, monkeypatch
):
    source = tmp_path / "table"
    ingest_corpus(file="train.csv")
    write_table(source / "val.csv", [build_row(10)])
    (source / "test.jsonl").write_text(json.dumps(dict(zip(HEADER, build_row(11), strict=True))))
    (source / "._val.csv").write_bytes(b"\0\5\x16\7")
    records, rejected = run_ingest(tmp_path, monkeypatch, "table", "memes", source, **TABLE_CONFIG)
    assert rejected == []
    assert [record["split"] for record in records] == ["test", *["train"] * 10, "validation"]


def test_json_lines_may_hold_texts_numbers_and_lists(ingest_corpus, tmp_path, monkeypatch):
    ingest_corpus()
    source = tmp_path / "table"
    (source / "memes.csv").unlink()
    rows = [
        {"Name": "m1", "Words": "one\ntwo", "Level": "off", "Mood": 0},
        {"Name": "m2", "Words": "b", "Level": None, "Mood": True},
        {"Name": "m3", "Words": "c", "Level": ["x", "off"], "other": {"a": 1}},
        {"Name": "m4", "Words": ["d"], "Level": "off"},
        {"Name": "m5", "Words": "e", "Level": ["off", "non-off"]},
        {"Name": "m6", "Words": "f", "Level": ["x"]},
        {"Name": 7, "Words": None, "Mood": False},
    ]
    lines = [*map(json.dumps, rows), "[1]", '{"Name": ']
    (source / "memes.jsonl").write_text("\n".join(lines))
    write_image(source / "images" / "7.png", 77)
    mood = MOOD | {"labels": {"true": "glad", "false": "sad", 0: "sad"}, "default_label": None}
    tasks = {"offensive": LEVEL | {"default_label": "not_offensive"}, "mood": mood}
    about = (tmp_path, monkeypatch, "table", "memes", source)
    limits = ingest.IngestConfig(
        **PROJECT_PARAMS["ingest"]
        | {"num_shards": 1, "max_rejected_fraction": 0.95, "test_fraction": 0.5}
    )
    monkeypatch.setattr("tests.support.published_corpus.INGEST_CONFIG", limits)
    records, rejected = run_ingest(*about, **TABLE_CONFIG | {"tasks": tasks})
    assert [record["text"] for record in records] == ["one\ntwo", "b", "c", "f", ""]
    assert [list(labels(record).values()) for record in records] == [
        ["offensive", "sad"],
        ["glad"],
        ["offensive"],
        ["not_offensive"],
        ["sad"],
    ]
    assert [(place, message.split(" at ")[0]) for place, message in rejected] == [
        ("memes.jsonl:4", "wrong field: Words: give one text, not a list"),
        (
            "memes.jsonl:5",
            "contradiction: a list contains offensive and not_offensive (offensive)",
        ),
        ("memes.jsonl:8", "wrong field: the line: Input should be an object"),
        ("memes.jsonl:9", "not JSON: Invalid JSON: EOF while parsing a value"),
    ]


def test_a_list_without_known_values_gets_the_default_label():
    task = TableTaskConfig(column="c", labels={"a": "yes", "b": "yes"}, default_label=None)
    assert parse_label(["c", "a", "b"], task, "t") == "yes" and parse_label([], task, "t") is None
    task = TableTaskConfig(column="c", labels={"a": "yes"}, default_label="no")
    assert parse_label(["c"], task, "t") == "no"


def test_memes_are_ingested_without_tasks(ingest_corpus, tmp_path):
    records, rejected = ingest_corpus(tasks={})
    assert (
        rejected == [] and len(records) == 10 and all(record["labels"] == [] for record in records)
    )
    assert read_output(tmp_path, "tasks.json") == {}


def test_missing_columns_are_named_together(ingest_corpus, tmp_path, monkeypatch):
    columns = COLUMNS | {"id": "Key", "language": "Tongue"}
    with pytest.raises(
        InputError, match=r"has no column Key, Tongue \(its columns: Name, Words, Level"
    ):
        ingest_corpus(columns=columns)
    with pytest.raises(InputError, match="names neither image nor text: name at least one"):
        ingest_corpus(columns=COLUMNS | {"image": None, "text": None})
    with pytest.raises(InputError, match=r"holds no \*\.xml: put a table there"):
        ingest_corpus(files=["*.xml"])
    (tmp_path / "table" / "memes.csv").unlink()
    (tmp_path / "table" / "memes.jsonl").write_text('{"Name": "a", "Words": "b"}\n')
    with pytest.raises(InputError, match=r"no column Level, Mood .*: correct formats\.table of"):
        run_ingest(tmp_path, monkeypatch, "table", "memes", tmp_path / "table", **TABLE_CONFIG)


def test_corrupt_bytes_never_raise_an_unexpected_error(tmp_path):
    header = ["image", "text", "sentiment"]
    rows = [["a", 'said, "so"\nand', "positive"]] * 5
    path = write_table(tmp_path / "memes.csv", rows, header)
    assert_handles_any_bytes("table", "memes", tmp_path, path, path.read_bytes())
    path.unlink()
    good = json.dumps(dict(zip(header, rows[0], strict=True))) + "\n"
    path = tmp_path / "memes.jsonl"
    assert_handles_any_bytes("table", "memes", tmp_path, path, good.encode() * 5)


def real_data_dir(name):
    source = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / name
    return source if source.is_dir() else pytest.skip(f"POLYMUSE_REAL_DATA names no folder {name}")


def test_real_memes_with_three_tasks_are_ingested(tmp_path, monkeypatch):
    tasks = {
        "sentiment": {
            "column": "Valence",
            "labels": {n: n for n in ("negative", "neutral", "positive")},
        },
        "sarcasm": {"column": "Sarcasm", "labels": {"non-sarcastic": "no", "sarcasm": "yes"}},
        "offensive": LEVEL | {"column": "Level1"},
    }
    changes = {
        "columns": COLUMNS | {"text": "Text"},
        "tasks": {name: task | {"default_label": None} for name, task in tasks.items()},
    }
    monkeypatch.setattr(
        "tests.support.published_corpus.INGEST_CONFIG",
        ingest.IngestConfig(**PROJECT_PARAMS["ingest"]),
    )
    records, rejected = run_ingest(
        tmp_path, monkeypatch, "table", "memes", real_data_dir("cm_memes"), **changes
    )
    assert len(records) == 179 and rejected == []
    assert read_output(tmp_path, "summary.json")["labels"]["offensive"] == {
        "train": {"not_offensive": 86, "offensive": 61},
        "validation": {"not_offensive": 4, "offensive": 3},
        "test": {"not_offensive": 15, "offensive": 10},
    }


def test_real_memes_without_annotation_are_ingested(tmp_path, monkeypatch):
    columns = PROJECT_PARAMS["formats"]["table"]["columns"] | {"id": "id", "split": "split"}
    about = (tmp_path, monkeypatch, "table", "memes", real_data_dir("propaganda_memes"))
    records, rejected = run_ingest(*about, columns=columns, tasks={})
    assert len(records) == 55 and rejected == [] and all(record["image"] for record in records)
    assert sum("\n" in record["text"] for record in records) > 40


@pytest.mark.parametrize("spelling", ["True", "TRUE", "true", " True ", "1.0", "1"])
def test_booleans_and_whole_numbers_have_one_label_in_any_spelling(spelling):
    keys = [True, False] if "u" in spelling.lower() else [1, 0]
    task = TableTaskConfig(
        column="c",
        labels=dict(zip(map(format_value, keys), ["yes", "no"], strict=True)),
        default_label=None,
    )
    assert parse_label(spelling, task, "t") == "yes"
    assert parse_label([spelling], task, "t") == "yes"


def test_two_labels_for_two_spellings_of_a_value_are_an_error():
    with pytest.raises(ValidationError, match="in two spellings: give it one label"):
        TableTaskConfig(column="c", labels={"true": "yes", "TRUE": "no"}, default_label=None)


def test_yaml_booleans_name_the_values_that_pandas_and_spreadsheets_write(ingest_corpus):
    task = {"column": "Mood", "labels": {True: "glad", False: "sad", "1": "glad"}}
    tasks = {"mood": task | {"default_label": None}}
    records, rejected = ingest_corpus(
        ["m10", "True", "", "True"], ["m11", "b", "", "FALSE"], ["m12", "c", "", "yes"], tasks=tasks
    )
    assert [labels(record) for record in records[10:]] == [{"mood": "glad"}, {"mood": "sad"}]
    assert records[10]["text"] == "True"
    assert rejected == [("memes.csv:14", "unknown label: 'yes' is none of true, false, 1 (mood)")]


def test_nan_in_json_lines_is_a_missing_text_or_label(ingest_corpus, tmp_path, monkeypatch):
    ingest_corpus()
    rows = [
        {"Name": "m10", "Words": float("nan"), "Level": "off", "Mood": "1"},
        {"Name": "m11", "Words": "nan", "Level": float("nan"), "Mood": ["yes", float("nan")]},
    ]
    (tmp_path / "table" / "more.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records, rejected = run_ingest(
        tmp_path, monkeypatch, "table", "memes", tmp_path / "table", **TABLE_CONFIG
    )
    assert rejected == [] and [record["text"] for record in records[10:]] == ["", "nan"]
    assert [labels(record) for record in records[10:]] == [
        {"offensive": "offensive", "mood": "glad"},
        {"mood": "glad"},
    ]


def test_a_language_is_read_by_name_or_rejected(ingest_corpus, tmp_path, monkeypatch):
    ingest_corpus()
    rows = [[*build_row(n), name] for n, name in enumerate(["English", "eng ", "en_US", "Elvish"])]
    write_table(tmp_path / "table" / "memes.csv", rows, [*HEADER, "Tongue"])
    changes = TABLE_CONFIG | {"columns": COLUMNS | {"language": "Tongue"}}
    records, rejected = run_ingest(
        tmp_path, monkeypatch, "table", "memes", tmp_path / "table", **changes
    )
    assert [record["language"] for record in records] == ["en"] * 3
    reason = "wrong field: language: 'Elvish' is no language: give an ISO 639-1 code such as en"
    assert rejected == [("memes.csv:5", reason)]
