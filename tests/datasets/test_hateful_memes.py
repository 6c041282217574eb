"""Hateful Memes as published: one JSON lines file per split, test without labels."""

import json

import pytest

from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import assert_handles_any_bytes, run_ingest, write_image


def build_line(number, label=0, **changes):
    name = f"{number:05d}"
    row = {"id": name, "img": f"img/{name}.png", "label": label, "text": f"its words {number}"}
    return (
        json.dumps({key: value for key, value in (row | changes).items() if value != "no"}) + "\n"
    )


@pytest.fixture
def ingest_corpus(tmp_path, monkeypatch):
    """ingest_corpus(*lines): records and rejections of ten memes in train and these lines."""

    def run(*lines, inside="data", **changes):
        source = tmp_path / "hm"
        (source / inside).mkdir(parents=True, exist_ok=True)
        text = "".join([*(build_line(number, number % 2) for number in range(10)), *lines])
        (source / inside / "train.jsonl").write_text(text)
        for number in range(30):
            write_image(source / inside / "img" / f"{number:05d}.png", number)
        return run_ingest(tmp_path, monkeypatch, "hateful_memes", "memes", source, **changes)

    return run


def get_labels(record):
    return [entry["label"] for entry in record["labels"]]


def test_a_lone_file_is_split_by_ingest(ingest_corpus, tmp_path):
    records, rejected = ingest_corpus()
    assert rejected == [] and len(records) == 10
    assert [get_labels(record) for record in records[:2]] == [["not_hateful"], ["hateful"]]
    assert len({record["image"] for record in records}) == 10
    assert {"train", "test"} <= {record["split"] for record in records}
    tasks = json.loads((tmp_path / "project" / "output" / "tasks.json").read_text())
    assert tasks == {"hateful": ["not_hateful", "hateful"]}


def test_files_are_the_splits_and_labels_are_optional(ingest_corpus, tmp_path):
    ingest_corpus()
    folder = tmp_path / "hm" / "data"
    (folder / "dev.jsonl").write_text(build_line(20) + build_line(21, 1))
    (folder / "dev_unseen.jsonl").write_text(build_line(22))
    (folder / "test_seen.jsonl").write_text(build_line(23, "no") + build_line(24, None))
    records, rejected = ingest_corpus()
    assert rejected == []
    splits_and_labels = [(record["split"], get_labels(record)) for record in records[10:]]
    assert splits_and_labels == [
        ("validation", ["not_hateful"]),
        ("validation", ["hateful"]),
        ("test", []),
        ("test", []),
    ]
    records, _ = ingest_corpus(variant="unseen")
    assert [record["text"] for record in records[10:]] == ["its words 22"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (build_line(12, 2), "unknown label: '2' is none of 0, 1 (hateful)"),
        (build_line(12, "yes"), "unknown label: 'yes' is none of 0, 1 (hateful)"),
        (build_line(3, text="other"), "duplicate id: '00003' is already used at train.jsonl:4"),
        (build_line(12, img="img/x.png"), "missing image: img/x.png"),
        (build_line(12, id=None), "wrong field: id.str: Input should be a valid string"),
        ("{\n", "not JSON: Invalid JSON"),
        (build_line(12, id="no"), "wrong field: id: Field required"),
    ],
)
def test_a_line_of_no_use_is_rejected_and_says_why(ingest_corpus, bad, reason):
    _, rejected = ingest_corpus(bad)
    ((place, message),) = rejected
    assert place == "train.jsonl:11" and message.startswith(reason)


def test_ids_keep_their_zeros_and_labels_may_be_strings(ingest_corpus):
    records, rejected = ingest_corpus(
        build_line(12, "1"), build_line(13, id=13), build_line(13, id="13", text="again")
    )
    assert [get_labels(record) for record in records[10:]] == [["hateful"], ["not_hateful"]]
    assert rejected == [("train.jsonl:13", "duplicate id: '13' is already used at train.jsonl:12")]
    records, rejected = ingest_corpus(
        build_line(12, id="12"), build_line(13, id="012"), build_line(14, id="00012")
    )
    assert rejected == [] and len(records) == 13


def test_a_missing_train_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "hm").mkdir()
    with pytest.raises(InputError, match=r"holds no train\.jsonl, .*: put the files of Hateful"):
        run_ingest(tmp_path, monkeypatch, "hateful_memes", "memes", tmp_path / "hm")


def test_corrupt_bytes_never_raise_an_unexpected_error(tmp_path):
    path = tmp_path / "train.jsonl"
    good = "".join(map(build_line, range(9))).encode()
    assert_handles_any_bytes("hateful_memes", "memes", tmp_path, path, good)
