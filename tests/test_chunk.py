import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from stages.chunk import (
    Params,
    article_chunks,
    article_pairs,
    caption_chunks,
    cut,
    left_out,
    main,
    rejectable,
    similarities,
)
from stages.shared import tables

PARAMS = Params(
    leading_text="first", min_characters=2, similarity_min=0.0, similarity_max=0.98, max_rejected=8
)


def blocks(*parts):
    """Blocks from strings; a picture is written as <name>."""
    return [
        {"image": part[1:-1], "text": None, "original": None}
        if part.startswith("<")
        else {"image": None, "text": part, "original": part}
        for part in parts
    ]


def article(*parts):
    return {
        "id": "r",
        "split": "train",
        "language": "zh",
        "source": "a.md",
        "title": "T",
        "title_original": "T",
        "blocks": blocks(*parts),
    }


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["<a>", "one", "<b>", "two"], [("a", "one"), ("b", "two")]),
        (["zero", "<a>", "one", "<b>", "two"], [("a", "zero\n\none"), ("b", "two")]),
        (["zero", "<a>"], [("a", "zero")]),
        (["<a>", "one", "more", "<b>"], [("a", "one\n\nmore"), ("b", "")]),
        (["<a>", "<b>", "<c>", "one"], [("a", ""), ("b", ""), ("c", "one")]),
        (["zero", "<a>", "<b>", "one"], [("a", "zero"), ("b", "one")]),
        (["zero", "one"], [(None, "zero\n\none")]),
    ],
)
def test_the_text_between_two_pictures_belongs_to_the_first(parts, expected):
    assert cut(blocks(*parts), "first") == expected


def test_text_before_the_first_picture_is_left_out_if_params_say_so_but_never_a_whole_article():
    assert cut(blocks("zero", "<a>", "one"), "drop") == [("a", "one")]
    assert cut(blocks("zero"), "drop") == [(None, "zero")]


def test_cutting_loses_no_text_and_no_picture_and_keeps_their_order():
    random = Random(0)
    for _ in range(300):
        names = [f"<{i}>" if random.random() < 0.5 else f"text {i}" for i in range(8)]
        pairs = cut(blocks(*names), "first")
        assert [text for _, own in pairs for text in own.split("\n\n") if text] == [
            name for name in names if not name.startswith("<")
        ]
        assert [image for image, _ in pairs if image] == [
            name[1:-1] for name in names if name.startswith("<")
        ]


def test_a_chunk_without_text_is_dropped_and_the_others_keep_the_positions_of_their_pictures():
    record = article("<a>", "<b>", "one", "<c>", "x", "<d>", "two")
    chunks = article_chunks(record, PARAMS)
    found = [(c["position"], c["image"], c["text"], c["references"]) for c in chunks]
    assert found == [(1, "b", "one", ["one"]), (3, "d", "two", ["two"])]
    assert left_out(record, PARAMS) == {
        "pictures_without_text": 1,
        "texts_too_short": 1,
        "leading_texts_dropped": 0,
        "chunks_without_picture": 0,
    }


def test_an_article_without_pictures_is_one_chunk_without_image():
    record = article("one", "two")
    (chunk,) = article_chunks(record, PARAMS)
    assert chunk["image"] is None and chunk["text"] == "one\n\ntwo" and chunk["title"] == "T"
    assert left_out(record, PARAMS)["chunks_without_picture"] == 1


def test_a_leading_text_that_is_dropped_is_counted():
    dropping = replace(PARAMS, leading_text="drop")
    assert left_out(article("zero", "<a>", "one"), dropping)["leading_texts_dropped"] == 1
    assert left_out(article("zero"), dropping)["leading_texts_dropped"] == 0
    assert left_out(article("<a>", "one"), dropping)["leading_texts_dropped"] == 0


def test_similarity_is_of_characters_so_it_reads_any_script():
    # 2 LCS / (|a| + |b|): 红烧肉 and 红烧鱼 share 2 of 3 + 3; abcd and abxd share 3 of 4 + 4.
    assert similarities(["红烧肉", "红烧鱼"])[0, 1] == pytest.approx(4 / 6)
    found = similarities(["abcd", "abxd", "wyz"])
    expected = [[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]]
    assert found == pytest.approx(np.array(expected))


def test_the_band_the_cap_and_the_chunk_itself():
    similarity = np.array(
        [
            [1.0, 0.3, 0.5, 0.9, 0.99],
            [0.3, 1.0, 0.3, 0.1, 0.3],
            [0.5, 0.3, 1.0, 0.2, 0.5],
            [0.9, 0.1, 0.2, 1.0, 0.8],
            [0.99, 0.3, 0.5, 0.8, 1.0],
        ],
    )
    band = replace(PARAMS, similarity_min=0.3, similarity_max=0.9, max_rejected=2)
    # Of 0: 1, 2, 3 are in the band, and 3 and 2 the most alike. Of 1: three are equally alike.
    assert rejectable(similarity, band) == [[2, 3], [0, 2], [0, 4], [0, 4], [2, 3]]
    assert rejectable(similarity, replace(band, max_rejected=9))[0] == [1, 2, 3]
    assert rejectable(similarity, replace(band, max_rejected=0)) == [[]] * 5


def test_no_chunk_is_rejected_in_favour_of_its_copy():
    chunks = article_chunks(article("<a>", "same text", "<b>", "same text", "<c>", "other"), PARAMS)
    assert [pair["rejected"] for pair in article_pairs(chunks, PARAMS)] == [[2], [2], [0, 1]]


def test_pairs_name_positions_not_rows_of_the_chunks_that_are_left():
    record = article("<a>", "<b>", "one", "<c>", "<d>", "two", "<e>", "six")
    pairs = article_pairs(article_chunks(record, PARAMS), PARAMS)
    found = {pair["position"]: pair["rejected"] for pair in pairs}
    assert found == {1: [3, 4], 3: [1, 4], 4: [1, 3]}


def test_captions_are_one_chunk_whose_text_is_the_first():
    record = {"id": "r", "split": "test", "language": "en", "image": "p"}
    (chunk,) = caption_chunks({**record, "captions": ["x", "one", "two"]}, PARAMS)
    assert chunk["text"] == "one" and chunk["references"] == ["one", "two"]
    assert (chunk["position"], chunk["title"], chunk["image"]) == (0, "", "p")
    assert caption_chunks({**record, "captions": ["x"]}, PARAMS) == []


def run(tmp_path, kind, *records):
    tables.write(tmp_path / "in" / "records.parquet", list(records), tables.CLEAN[kind])
    main(PARAMS, kind, tmp_path / "in", tmp_path / "out")
    return (
        tables.read(tmp_path / "out" / "chunks.parquet", tables.CHUNKS),
        tables.read(tmp_path / "out" / "pairs.parquet", tables.PAIRS),
        json.loads((tmp_path / "out" / "summary.json").read_text()),
    )


def test_every_chunk_of_an_article_has_a_row_of_pairs_even_an_empty_one(tmp_path):
    single = {**article("<a>", "only"), "id": "s"}
    long = {**article("<a>", "one", "<b>", "two", "<c>"), "split": "test"}
    chunks, pairs, summary = run(tmp_path, "articles", single, long, article("<a>", "x"))
    assert [(c["record"], c["position"], c["split"]) for c in chunks] == [
        ("s", 0, "train"),
        ("r", 0, "test"),
        ("r", 1, "test"),
    ]
    assert [(p["record"], p["position"], p["rejected"]) for p in pairs] == [
        ("s", 0, []),
        ("r", 0, [1]),
        ("r", 1, [0]),
    ]
    assert summary["chunks"] == {"train": 1, "validation": 0, "test": 2}
    assert summary["pairs"] == 2 and summary["records_without_chunks"] == 1
    assert summary["pictures_without_text"] == 1 and summary["texts_too_short"] == 1


def test_captions_have_no_pairs(tmp_path):
    record = {"id": "r", "split": "train", "language": "en", "source": "c", "image": "p"}
    texts = ["one", "two", "x"]
    chunks, pairs, summary = run(
        tmp_path, "captions", {**record, "captions": texts, "originals": texts}
    )
    assert len(chunks) == 1 and pairs == [] and summary["texts_too_short"] == 1
