"""Hateful Memes as published: files of JSON lines that are the splits, one of them unjudged."""

import json

import pytest

from stages.shared.runtime.stage import InputError
from tests.support.published_corpus import assert_handles_any_bytes, run_ingest, write_image


def line(number, label=0, **changes):
    name = f"{number:05d}"
    row = {"id": name, "img": f"img/{name}.png", "label": label, "text": f"its words {number}"}
    return (
        json.dumps({key: value for key, value in (row | changes).items() if value != "no"}) + "\n"
    )


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """taken(*lines): records and rejects of ten memes in train and these lines."""

    def run(*lines, inside="data", **changes):
        source = tmp_path / "hm"
        (source / inside).mkdir(parents=True, exist_ok=True)
        text = "".join([*(line(number, number % 2) for number in range(10)), *lines])
        (source / inside / "train.jsonl").write_text(text)
        for number in range(30):
            write_image(source / inside / "img" / f"{number:05d}.png", number)
        return run_ingest(tmp_path, monkeypatch, "hateful_memes", "memes", source, **changes)

    return run


def of(record):
    return [one["label"] for one in record["labels"]]


def test_a_lone_file_is_split_by_ingest(taken, tmp_path):
    records, rejected = taken()
    assert rejected == [] and len(records) == 10
    assert [of(one) for one in records[:2]] == [["not_hateful"], ["hateful"]]
    assert len({one["image"] for one in records}) == 10
    assert {"train", "test"} <= {one["split"] for one in records}
    tasks = json.loads((tmp_path / "project" / "taken" / "tasks.json").read_text())
    assert tasks == {"hateful": ["not_hateful", "hateful"]}


def test_files_are_the_splits_and_one_without_labels_is_taken_as_not_judged(taken, tmp_path):
    taken()
    folder = tmp_path / "hm" / "data"
    (folder / "dev.jsonl").write_text(line(20) + line(21, 1))
    (folder / "dev_unseen.jsonl").write_text(line(22))
    (folder / "test_seen.jsonl").write_text(line(23, "no") + line(24, None))
    records, rejected = taken()
    assert rejected == []
    found = [(one["split"], of(one)) for one in records[10:]]
    assert found == [
        ("validation", ["not_hateful"]),
        ("validation", ["hateful"]),
        ("test", []),
        ("test", []),
    ]
    records, _ = taken(variant="unseen")
    assert [one["text"] for one in records[10:]] == ["its words 22"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line(12, 2), "unknown label: '2' is none of 0, 1 (hateful)"),
        (line(12, "yes"), "unknown label: 'yes' is none of 0, 1 (hateful)"),
        (line(3, text="other"), "duplicate id: '00003' is already used at train.jsonl:4"),
        (line(12, img="img/x.png"), "missing image: img/x.png"),
        (line(12, id=None), "wrong field: id.str: Input should be a valid string"),
        ("{\n", "not JSON: Invalid JSON"),
        (line(12, id="no"), "wrong field: id: Field required"),
    ],
)
def test_a_line_of_no_use_is_rejected_and_says_why(taken, bad, reason):
    _, rejected = taken(bad)
    ((place, said),) = rejected
    assert place == "train.jsonl:11" and said.startswith(reason)


def test_ids_keep_their_zeros_and_labels_may_be_texts(taken):
    records, rejected = taken(line(12, "1"), line(13, id=13), line(13, id="13", text="again"))
    assert [of(one) for one in records[10:]] == [["hateful"], ["not_hateful"]]
    assert rejected == [("train.jsonl:13", "duplicate id: '13' is already used at train.jsonl:12")]
    records, rejected = taken(line(12, id="12"), line(13, id="012"), line(14, id="00012"))
    assert rejected == [] and len(records) == 13


def test_a_missing_train_is_named(tmp_path, monkeypatch):
    (tmp_path / "hm").mkdir()
    with pytest.raises(InputError, match=r"holds no train\.jsonl, .*: put the files of Hateful"):
        run_ingest(tmp_path, monkeypatch, "hateful_memes", "memes", tmp_path / "hm")


def test_no_bytes_end_the_reading(tmp_path):
    path = tmp_path / "train.jsonl"
    good = "".join(map(line, range(9))).encode()
    assert_handles_any_bytes("hateful_memes", "memes", tmp_path, path, good)
