import json
from pathlib import Path

import pytest

from stages.datasets.jsonl import JsonlConfig, parse_line, read
from stages.shared.data.records import (
    ArticleRecord,
    CaptionRecord,
    ImageFile,
    PostRecord,
    Rejection,
    TweetRecord,
)
from stages.shared.runtime.stage import InputError

HERE = Path("folder")


def row(values, kind="articles"):
    line = values if isinstance(values, bytes) else json.dumps(values).encode()
    return parse_line(line, kind, HERE, "a.jsonl:3", ["utf-8"])


def test_an_article_with_every_field():
    values = {
        "article_id": "a7",
        "title": "T",
        "topic": "other",
        "language": "zh-CN",
        "chunks": [{"image": "images/x.jpg", "text": "one"}, {"image": "y.jpg", "text": "two"}],
        "reference": "one two",
        "split": "val",
        "source": "somewhere",
        "licence": "CC0",
    }
    assert row(values) == ArticleRecord(
        source="a.jsonl:3",
        key="a7",
        title="T",
        language="zh",
        split="validation",
        blocks=[ImageFile("images/x.jpg", HERE), "one", ImageFile("y.jpg", HERE), "two"],
    )


def test_missing_and_null_fields_are_left_open():
    found = row({"article_id": 5, "title": None, "topic": "Topic", "chunks": [{"text": "one"}, {}]})
    assert found == ArticleRecord(source="a.jsonl:3", key="5", title="Topic", blocks=["one"])


def test_the_reference_stands_for_the_text_only_where_no_chunk_has_one():
    pictures = [{"image": "a.jpg"}, {"image": "b.jpg", "text": ""}]
    found = row({"chunks": pictures, "reference": "whole"})
    assert found.blocks == [ImageFile("a.jpg", HERE), ImageFile("b.jpg", HERE), "whole"]
    found = row({"chunks": [*pictures, {"text": "own"}], "reference": "whole"})
    assert "whole" not in found.blocks


@pytest.mark.parametrize(
    ("given", "captions"),
    [
        ({"captions": ["one", "two"]}, ["one", "two"]),
        ({"caption": "one"}, ["one"]),
        ({"captions": ["one"], "caption": "two"}, ["one"]),
        ({}, []),
    ],
)
def test_captions_come_as_a_list_or_one(given, captions):
    found = row({"id": 3, "image": "a.jpg", **given}, "captions")
    picture = ImageFile("a.jpg", HERE)
    assert found == CaptionRecord(source="a.jsonl:3", key="3", image=picture, captions=captions)


def test_a_tweet_and_a_post_with_every_field_and_with_those_they_need():
    picture = ImageFile("a.jpg", HERE)
    words, tags = ["\u00a0", "York"], ["O", "B-LOC"]
    common = {"id": 3, "split": "dev", "language": "EN", "image": "a.jpg"}
    told = {"source": "a.jsonl:3", "key": "3", "split": "validation", "language": "en"}
    tagged, labelled = {"words": words, "tags": tags}, {"text": " one ", "label": "neutral"}
    assert row(common | tagged, "tweets") == TweetRecord(**told, **tagged, image=picture)
    assert row(common | labelled, "posts") == PostRecord(**told, **labelled, image=picture)
    assert row(tagged | {"image": None}, "tweets") == TweetRecord(source="a.jsonl:3", **tagged)
    assert row(labelled, "posts") == PostRecord(source="a.jsonl:3", **labelled)


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b"{", "articles", "not JSON: "),
        (b"[" * 100_000, "articles", "not JSON: "),
        (b'{"title": "\\udc00"}', "articles", "not JSON: "),
        (b"\xff{}", "articles", "undecodable line: not utf-8"),
        (b"5", "articles", "wrong field: the line: "),
        ({"title": 5}, "articles", "wrong field: title: "),
        ({"chunks": "a"}, "articles", "wrong field: chunks: "),
        ({"chunks": [{"text": "a"}, {"text": ["b"]}]}, "articles", "wrong field: chunks.1.text: "),
        ({"split": "training"}, "articles", "wrong field: split: Input should be 'train'"),
        ({"caption": "a"}, "captions", "wrong field: image: Field required"),
        ({"image": "a.jpg", "captions": [1]}, "captions", "wrong field: captions.0: "),
        ({"image": "a.jpg", "captions": "one"}, "captions", "wrong field: captions: "),
        ({"words": ["a"]}, "tweets", "wrong field: tags: Field required"),
        ({"words": "a", "tags": ["O"]}, "tweets", "wrong field: words: "),
        ({"text": "a"}, "posts", "wrong field: label: Field required"),
        ({"text": "a", "label": "happy"}, "posts", "wrong field: label: Input should be 'negat"),
        ({"text": None, "label": "neutral"}, "posts", "wrong field: text: "),
    ],
)
def test_a_wrong_line_is_rejected_and_says_where_and_why(line, kind, reason):
    found = row(line, kind)
    assert isinstance(found, Rejection) and found.source == "a.jsonl:3"
    assert found.reason.startswith(reason)


def test_lines_are_counted_as_an_editor_does_and_blank_ones_skipped(tmp_path):
    # U+2028 within a line ends no line; neither does the byte order mark belong to the first.
    first = "\ufeff" + json.dumps({"title": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "b.jsonl").write_text(first + "\r\n\n  \n{}\nx")
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "c.json").write_text("{}")
    rows = list(read(tmp_path, "articles", JsonlConfig(encodings=["utf-8"])))
    assert [found.source for found in rows] == ["a.jsonl:1", "b.jsonl:1", "b.jsonl:4", "b.jsonl:5"]
    assert rows[1].title == "a\u2028b" and isinstance(rows[3], Rejection)
    assert (
        list(read(tmp_path / "b.jsonl", "articles", JsonlConfig(encodings=["utf-8"]))) == rows[1:]
    )


def test_the_next_encoding_is_tried_line_by_line(tmp_path):
    lines = [
        json.dumps({"title": "中文"}, ensure_ascii=False).encode(e) for e in ("utf-8", "gb18030")
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = read(tmp_path, "articles", JsonlConfig(encodings=["utf-8", "gb18030"]))
    assert [found.title for found in rows] == ["中文", "中文"]


def test_a_folder_without_files_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.jsonl file"):
        list(read(tmp_path, "articles", JsonlConfig(encodings=["utf-8"])))
