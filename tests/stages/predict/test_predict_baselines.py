"""Retrieved texts and shuffled images of a generator: small cases by hand, and properties."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.predict.baselines import (
    compute_word_f1,
    retrieve_texts,
    select_consensus,
    shuffle_images,
    split_words,
)
from stages.shared.features.store import Features

ANGLES = {"north": 90, "east": 0, "north-east": 45, "south": 270, "west": 180}  # images, degrees
TITLES = {"cakes": 0, "songs": 90, "cake": 10}  # topics, degrees


def unit_vectors(degrees) -> np.ndarray:
    radians = np.deg2rad(list(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float16)


def build_features(text_kind: Literal["encoder", "learned"] = "encoder") -> Features:
    return Features(
        image_index={name: row for row, name in enumerate(ANGLES)},
        pooled=unit_vectors(ANGLES.values()),
        patches=np.zeros((len(ANGLES), 1, 1), np.float16),
        text_kind=text_kind,
        text_index={name: row for row, name in enumerate(TITLES)},
        text_pooled=unit_vectors(TITLES.values()),
    )


def chunk(record, position, image, text, title="", references=None) -> dict:
    row = {"record": record, "position": position, "image": image, "text": text, "title": title}
    return row | {"references": references or [text], "split": "-", "language": "en"}


def texts_by_baseline(rows: list[dict]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["baseline"], []).append(row["text"])
    return texts


TRAIN = [
    chunk("a", 0, "north", "a dog runs", references=["a dog runs", "a dog plays"]),
    chunk("b", 0, "east", "a red car", references=["a red car", "one car"]),
    chunk("c", 0, "west", "two people sit", references=["two people sit"]),
]


def test_captions_come_from_the_nearest_images():
    """45 degrees away from north and east, 135 from west: north is the first of two equals.

    Candidates of the consensus: a dog runs, a dog plays, a red car, one car. F1 with the others:
    (2/3 + 1/3 + 0), (2/3 + 1/3 + 0), (1/3 + 1/3 + 2/5), (2/5): `a red car` has 16/15, the most.
    """
    test = [chunk("t", 0, "north-east", "unknown")]
    rows, omitted = retrieve_texts(test, TRAIN, build_features(), 1, 2)
    assert texts_by_baseline(rows) == {"nearest_image": ["a dog runs"], "consensus": ["a red car"]}
    assert omitted.keys() == {"nearest_topic"}
    rows, _ = retrieve_texts([chunk("t", 0, "south", "")], TRAIN[1:], build_features(), 1, 1)
    assert texts_by_baseline(rows)["nearest_image"] == ["a red car"]  # 90 degrees away, like west


ARTICLES = [
    chunk("a", 0, "north", "a0", "cakes"),
    chunk("a", 1, "east", "a1", "cakes"),
    chunk("b", 0, "east", "b0", "songs"),
    chunk("b", 1, "north", "b1", "songs"),
    chunk("c", 0, "east", "c0", "songs"),
]
TEST_ARTICLE = [
    chunk("t", 0, "east", "unknown", "cake"),
    chunk("t", 1, "north", "unknown", "cake"),
    chunk("t", 2, "north", "unknown", "cake"),
]


def test_whole_articles_are_retrieved_and_compared_place_by_place():
    """b has both images in the order of the test article; its third paragraph is missing."""
    rows, omitted = retrieve_texts(TEST_ARTICLE, ARTICLES, build_features(), 5, 1)
    assert texts_by_baseline(rows) == {
        "nearest_image": ["b0", "b1", ""],
        "consensus": ["b0", "b1", ""],
        "nearest_topic": ["a0", "a1", ""],
    }
    assert omitted == {}


def test_single_chunks_take_the_chunk_with_their_number_by_topic():
    rows, _ = retrieve_texts(TEST_ARTICLE, ARTICLES, build_features(), 1, 1)
    texts = texts_by_baseline(rows)
    assert texts["nearest_image"] == ["a1", "a0", "a0"]  # the first of the equally near chunks
    assert texts["nearest_topic"] == ["a0", "a1", "a0"]  # no third chunk: the first


def test_titles_without_features_are_compared_by_words():
    """cake is no word of any title: the first title; `songs of cakes` has more with `songs`."""
    features = build_features(text_kind="learned")
    test = [chunk("t", 0, "east", "", "the songs"), chunk("u", 0, "east", "", "cake")]
    rows, _ = retrieve_texts(test, ARTICLES, features, 1, 1)
    assert texts_by_baseline(rows)["nearest_topic"] == ["b0", "a0"]


def test_an_item_without_image_or_topic_has_no_retrieved_text():
    test = [TEST_ARTICLE[0], chunk("u", 0, None, "unknown")]
    rows, _ = retrieve_texts(test, ARTICLES, build_features(), 1, 3)
    for texts in texts_by_baseline(rows).values():
        assert texts[0] and not texts[1]
    rows, omitted = retrieve_texts(test[1:], ARTICLES, build_features(), 1, 3)
    assert rows == [] and omitted.keys() == {"nearest_image", "consensus", "nearest_topic"}


@pytest.mark.parametrize("max_chunks", [1, 5])
def test_texts_of_the_test_split_are_never_read(max_chunks):
    changed = [row | {"text": "x", "references": ["x", "y"]} for row in TEST_ARTICLE]
    results = [
        texts_by_baseline(retrieve_texts(rows, ARTICLES, build_features(), max_chunks, 3)[0])
        for rows in (TEST_ARTICLE, changed)
    ]
    known = {row["text"] for row in ARTICLES} | {""}
    assert results[0] == results[1]
    assert {text for texts in results[0].values() for text in texts} <= known


def test_word_f1_matches_values_derived_by_hand():
    assert compute_word_f1(split_words("A dog runs"), split_words("a dog")) == pytest.approx(4 / 5)
    assert compute_word_f1(split_words("红车"), split_words("红灯")) == pytest.approx(1 / 2)
    assert compute_word_f1(split_words(""), split_words("")) == 0


@given(st.lists(st.text("ab ", max_size=6), min_size=1, max_size=6), st.integers(1, 5))
def test_the_consensus_is_a_candidate_and_that_of_identical_texts_is_the_text(texts, count):
    candidates = [[text] for text in texts]
    assert select_consensus(candidates) in candidates
    assert select_consensus([[texts[0]]] * count) == [texts[0]]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=8), st.integers(0, 5))
def test_shuffled_images_are_those_of_another_record(counts, seed):
    rows = [
        chunk(f"r{record}", position, f"r{record}/{position}", "")
        for record, count in enumerate(counts)
        for position in range(count)
    ]
    rows.append(chunk("bare", 0, None, ""))
    shuffled = shuffle_images(rows, seed)
    if sum(count > 0 for count in counts) < 2:
        assert shuffled == []
        return
    assert shuffled == shuffle_images(rows, seed)
    sources = {}
    for row, other in zip(rows, shuffled, strict=True):
        assert row | {"image": other["image"]} == other
        if row["image"] is None:
            assert other["image"] is None
            continue
        source = other["image"].split("/")[0]
        assert source != row["record"] and source == sources.setdefault(row["record"], source)
    assert len(set(sources.values())) == len(sources)  # each record gives its images once


def test_another_seed_shuffles_in_another_way():
    rows = [chunk(f"r{number}", 0, f"image{number}", "") for number in range(20)]
    images = [[row["image"] for row in shuffle_images(rows, seed)] for seed in (0, 1)]
    assert images[0] != images[1]
