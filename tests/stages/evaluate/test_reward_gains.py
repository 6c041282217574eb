"""Rewards of whole articles, with an embedder that counts letters."""

import math

import pytest
import torch

from stages.evaluate import reward_gains
from stages.shared.similarity.embedders import Embedder


class LetterCounts(Embedder):
    """Embeds a text as its counts of a and b."""

    languages = ("en",)

    def embed(self, texts):
        return torch.tensor([[float(text.count("a")), float(text.count("b"))] for text in texts])


def row(record: str, position: int, text: str, references: list[str], language: str = "en") -> dict:
    key = {"record": record, "position": position, "language": language}
    return key | {"text": text, "references": references}


def test_the_paragraphs_of_an_article_are_joined_in_order_of_position():
    rows = [row("x", 1, "bb", ["b"]), row("x", 0, "aa", ["a"])]
    assert reward_gains.collect_articles(rows, 9) == [
        {"record": "x", "language": "en", "text": "aa\nbb", "references": ["a\nb"]}
    ]


def test_a_captioned_image_keeps_all_of_its_references():
    (article,) = reward_gains.collect_articles([row("x", 0, "aa", ["a", "b", "ab"])], 9)
    assert (article["text"], article["references"]) == ("aa", ["a", "b", "ab"])


def test_articles_are_evenly_spaced_whatever_the_order_of_rows():
    rows = [row(name, 0, "a", ["a"]) for name in "abcdef"]
    for shuffled in (rows, rows[::-1]):
        articles = reward_gains.collect_articles(shuffled, 3)
        assert [article["record"] for article in articles] == ["a", "c", "e"]
    assert reward_gains.collect_articles([], 3) == []


def test_rewards_match_values_derived_by_hand():
    """x: 1 of 3 characters is wrong; the cosine of (2, 1) and (3, 0) is 2 / sqrt 5.

    y is Chinese and has no semantic reward.
    """
    articles = reward_gains.collect_articles(
        [row("x", 0, "aab", ["aaa"]), row("y", 0, "a", ["a"], "zh")], 9
    )
    first, second = reward_gains.compute_article_rewards(articles, LetterCounts("letters"))
    assert first == {
        "record": "x",
        "literal": pytest.approx(2 / 3),
        "semantic": pytest.approx(2 / math.sqrt(5)),
    }
    assert second == {"record": "y", "literal": 1, "semantic": None}
    assert reward_gains.summarize_rewards([first, second]) == {
        "literal": pytest.approx((2 / 3 + 1) / 2),
        "semantic": pytest.approx(2 / math.sqrt(5)),
        "articles": 2,
    }


def test_without_an_embedder_only_the_semantic_reward_is_unavailable():
    rewards = reward_gains.compute_article_rewards(
        reward_gains.collect_articles([row("x", 0, "aab", ["aaa"])], 9), None
    )
    assert rewards == [{"record": "x", "literal": pytest.approx(2 / 3), "semantic": None}]
    assert reward_gains.summarize_rewards(rewards)["semantic"] == "unavailable"


def test_a_gain_is_the_mean_of_paired_differences_with_articles_as_clusters():
    """Differences .5, .3 of x and .1 of y: mean .3; sums of deviations .2 and -.2.

    So the error is sqrt(2 (.04 + .04)) / 3. Keys of only one phase do not count.
    """
    before = {("x", 0): 0.1, ("x", 1): 0.2, ("y", 0): 0.6, ("z", 0): 0.9}
    after = {("y", 0): 0.7, ("x", 1): 0.5, ("x", 0): 0.6}
    gain = reward_gains.compute_gain(before, after)
    assert gain == pytest.approx({"value": 0.3, "standard_error": 0.4 / 3})


def test_the_error_is_zero_if_all_articles_gain_the_same():
    before = {("x", 0): 0.1, ("y", 0): 0.9, ("z", 0): 0.5}
    gain = reward_gains.compute_gain(before, {key: value + 0.05 for key, value in before.items()})
    assert gain == pytest.approx({"value": 0.05, "standard_error": 0})


def test_a_column_without_values_in_one_phase_has_no_gain():
    before = [{"record": "x", "literal": 0.5, "semantic": None}]
    after = [{"record": "x", "literal": 0.75, "semantic": 0.5}]
    gains = reward_gains.compute_gains(before, after, ["literal", "semantic", "grounding"])
    assert gains.keys() == {"literal"} and gains["literal"]["value"] == 0.25
