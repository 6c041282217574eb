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

FOLDER = Path("folder")


def parse_row(values, kind="articles"):
    line = values if isinstance(values, str) else json.dumps(values)
    return parse_line("a.jsonl:3", line, kind, FOLDER)


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
    assert parse_row(values) == ArticleRecord(
        source="a.jsonl:3",
        key="a7",
        title="T",
        language="zh-CN",
        split="validation",
        blocks=[ImageFile("images/x.jpg", FOLDER), "one", ImageFile("y.jpg", FOLDER), "two"],
    )


def test_missing_and_null_fields_are_left_unset():
    parsed = parse_row(
        {"article_id": 5, "title": None, "topic": "Topic", "chunks": [{"text": "one"}, {}]}
    )
    assert parsed == ArticleRecord(source="a.jsonl:3", key="5", title="Topic", blocks=["one"])


def test_the_reference_is_used_only_if_no_chunk_has_a_text():
    images = [{"image": "a.jpg"}, {"image": "b.jpg", "text": ""}]
    parsed = parse_row({"chunks": images, "reference": "whole"})
    assert parsed.blocks == [ImageFile("a.jpg", FOLDER), ImageFile("b.jpg", FOLDER), "whole"]
    parsed = parse_row({"chunks": [*images, {"text": "own"}], "reference": "whole"})
    assert "whole" not in parsed.blocks


def test_images_of_an_article_with_one_text_may_be_a_list():
    parsed = parse_row({"title": "T", "images": ["a.jpg", "b.jpg"], "reference": "whole"})
    images = [ImageFile("a.jpg", FOLDER), ImageFile("b.jpg", FOLDER)]
    assert parsed == ArticleRecord(source="a.jsonl:3", title="T", blocks=[*images, "whole"])


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({"captions": ["one", "two"]}, ["one", "two"]),
        ({"caption": "one"}, ["one"]),
        ({"captions": ["one"], "caption": "two"}, ["one"]),
        ({}, []),
    ],
)
def test_captions_may_be_a_list_or_a_single_text(fields, captions):
    parsed = parse_row({"id": 3, "image": "a.jpg", **fields}, "captions")
    image = ImageFile("a.jpg", FOLDER)
    assert parsed == CaptionRecord(source="a.jsonl:3", key="3", image=image, captions=captions)


def test_a_tweet_and_a_post_with_all_and_with_required_fields():
    image = ImageFile("a.jpg", FOLDER)
    words, tags = ["\u00a0", "York"], ["O", "B-LOC"]
    common = {"id": 3, "split": "dev", "language": "EN", "image": "a.jpg"}
    common_fields = {"source": "a.jsonl:3", "key": "3", "split": "validation", "language": "EN"}
    tagged, labeled = {"words": words, "tags": tags}, {"text": " one ", "label": "neutral"}
    assert parse_row(common | tagged, "tweets") == TweetRecord(
        **common_fields, **tagged, image=image
    )
    assert parse_row(common | labeled, "posts") == PostRecord(
        **common_fields, **labeled, image=image
    )
    assert parse_row(tagged | {"image": None}, "tweets") == TweetRecord(
        source="a.jsonl:3", **tagged
    )
    assert parse_row(labeled, "posts") == PostRecord(source="a.jsonl:3", **labeled)


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        ("{", "articles", "not JSON: "),
        ("[" * 100_000, "articles", "not JSON: "),
        ('{"title": "\\udc00"}', "articles", "not JSON: "),
        ("5", "articles", "wrong field: the line: "),
        ({"title": 5}, "articles", "wrong field: title: "),
        ({"chunks": "a"}, "articles", "wrong field: chunks: "),
        ({"chunks": [{"text": "a"}, {"text": ["b"]}]}, "articles", "wrong field: chunks.1.text: "),
        ({"images": ["a", 1]}, "articles", "wrong field: images.1: "),
        (
            {"images": ["a"], "chunks": [{"text": "b"}]},
            "articles",
            "wrong field: the line: Value error, chunks and images are both given",
        ),
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
def test_an_invalid_line_is_rejected_with_place_and_reason(line, kind, reason):
    parsed = parse_row(line, kind)
    assert isinstance(parsed, Rejection) and parsed.source == "a.jsonl:3"
    assert parsed.reason.startswith(reason)


def test_lines_are_numbered_as_in_an_editor_and_blank_lines_are_skipped(tmp_path):
    # U+2028 within a line ends no line; neither does the byte order mark belong to the first.
    first = "\ufeff" + json.dumps({"title": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "b.jsonl").write_text(first + "\r\n\n  \n{}\nx")
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "c.json").write_text("{}")
    rows = list(read(tmp_path, "articles", JsonlConfig(encodings=["utf-8"])))
    assert [row.source for row in rows] == [
        "a.jsonl:1",
        "b.jsonl:1",
        "b.jsonl:4",
        "b.jsonl:5",
    ]
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
    assert [row.title for row in rows] == ["中文", "中文"]


def test_a_folder_without_files_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"holds no \.jsonl file"):
        list(read(tmp_path, "articles", JsonlConfig(encodings=["utf-8"])))
