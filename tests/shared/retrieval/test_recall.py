from itertools import combinations

import numpy as np
import pytest

from stages.shared.retrieval import recall
from stages.shared.retrieval.evaluation import describe_weakness


def unit(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def pairs(count=40, width=6, noise=0.7, seed=0):
    """Vectors of images that resemble those of their texts; every third text occurs twice."""
    random = np.random.default_rng(seed)
    texts = [f"text {number - (number % 3 == 2)}" for number in range(count)]
    distinct = list(dict.fromkeys(texts))
    vectors = unit(random.normal(size=(len(distinct), width)))
    images = vectors[[distinct.index(text) for text in texts]]
    return unit(images + noise * random.normal(size=images.shape)), texts, vectors, distinct


def recalls_as_loops(images, texts, vectors, distinct):
    """Recall at k of both directions, each query and candidate singly."""
    result = {}
    for k in (1, 5, 10):
        hits = 0
        for image, text in zip(images, texts, strict=True):
            order = sorted(range(len(distinct)), key=lambda row: -float(image @ vectors[row]))
            hits += text in [distinct[row] for row in order[:k]]
        result["image_to_text", k] = hits / len(images)
        hits = 0
        for text, vector in zip(distinct, vectors, strict=True):
            order = sorted(range(len(images)), key=lambda row: -float(vector @ images[row]))
            hits += text in [texts[row] for row in order[:k]]
        result["text_to_image", k] = hits / len(distinct)
    return result


@pytest.mark.parametrize("block", [7, 512])
def test_recalls_are_those_of_loops(monkeypatch, block):
    monkeypatch.setattr(recall, "QUERIES_PER_BLOCK", block)
    images, texts, vectors, distinct = pairs()
    summary = recall.summarize_retrieval(images, texts, vectors)
    for (direction, k), expected in recalls_as_loops(images, texts, vectors, distinct).items():
        assert summary[direction][f"recall_at_{k}"] == pytest.approx(expected)
        assert 0 < expected < 1 or k == 10
    assert summary["pairs"] == 40 and summary["beats_chance"]


def test_chance_is_the_share_of_draws_with_a_match():
    for candidates, matches, k in [(6, 1, 1), (6, 2, 3), (5, 4, 2), (4, 1, 10)]:
        draws = list(combinations(range(candidates), min(k, candidates)))
        hits = sum(any(item < matches for item in draw) for draw in draws)
        assert recall.chance_recall(candidates, matches, k) == pytest.approx(hits / len(draws))


def test_constant_features_find_nothing():
    same = np.ones((30, 4)) / 2
    summary = recall.summarize_retrieval(same, [f"{row}" for row in range(30)], same)
    for direction in ("image_to_text", "text_to_image"):
        assert summary[direction]["recall_at_10"] == 0
        assert summary[direction]["chance_at_1"] == pytest.approx(1 / 30)
    assert not summary["beats_chance"]


def test_random_features_rarely_beat_chance():
    random = np.random.default_rng(0)
    beaten = [
        recall.summarize_retrieval(
            unit(random.normal(size=(50, 8))),
            [str(row) for row in range(50)],
            unit(random.normal(size=(50, 8))),
        )["beats_chance"]
        for _ in range(100)
    ]
    assert sum(beaten) <= 8


def test_the_tiny_encoder_is_never_used_on_photographs_in_silence():
    images, texts, vectors, _ = pairs()
    retrieval = recall.summarize_retrieval(images, texts, vectors)
    warning = describe_weakness("tiny", retrieval)
    assert warning and "align.encoder: efficientnet-lite0" in warning and "chance" in warning
    assert describe_weakness("tiny", None)
    assert describe_weakness("efficientnet-lite0", retrieval) is None
    assert describe_weakness("efficientnet-lite0", None) is None


def test_an_encoder_that_does_not_beat_chance_is_named():
    images, texts, vectors, _ = pairs(noise=1000.0)
    retrieval = recall.summarize_retrieval(images, texts, vectors)
    warning = describe_weakness("efficientnet-lite0", retrieval)
    assert warning and "no better than chance" in warning
