"""Rewards of whole articles by a rule of the test: meaning is what letter a text has most of."""

import math

import pytest
import torch

from stages.evaluate import reward_gains
from stages.shared.similarity.embedders import Embedder


class Letters(Embedder):
    """A text as its counts of a and b."""

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


def test_a_captioned_picture_keeps_all_of_its_references():
    (found,) = reward_gains.collect_articles([row("x", 0, "aa", ["a", "b", "ab"])], 9)
    assert (found["text"], found["references"]) == ("aa", ["a", "b", "ab"])


def test_at_most_so_many_articles_are_chosen_evenly_in_any_order_of_rows():
    rows = [row(name, 0, "a", ["a"]) for name in "abcdef"]
    for given in (rows, rows[::-1]):
        assert [one["record"] for one in reward_gains.collect_articles(given, 3)] == ["a", "c", "e"]
    assert reward_gains.collect_articles([], 3) == []


def test_rewards_by_hand():
    """x: 1 of 3 characters is wrong, (2, 1) against (3, 0) is 2/sqrt 5; y, in Chinese, has none."""
    written = reward_gains.collect_articles(
        [row("x", 0, "aab", ["aaa"]), row("y", 0, "a", ["a"], "zh")], 9
    )
    first, second = reward_gains.compute_article_rewards(written, Letters())
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


def test_without_an_embedder_meaning_is_unavailable_and_letters_are_not():
    found = reward_gains.compute_article_rewards(
        reward_gains.collect_articles([row("x", 0, "aab", ["aaa"])], 9), None
    )
    assert found == [{"record": "x", "literal": pytest.approx(2 / 3), "semantic": None}]
    assert reward_gains.summarize_rewards(found)["semantic"] == "unavailable"


def test_a_gain_is_the_mean_of_differences_by_pairs_with_articles_as_clusters():
    """Differences .5, .3 of x and .1 of y: mean .3; sums of deviations .2 and -.2, so the error is
    sqrt(2 (.04 + .04)) / 3. What one phase alone has does not count."""
    before = {("x", 0): 0.1, ("x", 1): 0.2, ("y", 0): 0.6, ("z", 0): 0.9}
    after = {("y", 0): 0.7, ("x", 1): 0.5, ("x", 0): 0.6}
    found = reward_gains.compute_gain(before, after)
    assert found == pytest.approx({"value": 0.3, "standard_error": 0.4 / 3})


def test_what_every_article_gains_alike_has_no_error_however_different_they_are():
    before = {("x", 0): 0.1, ("y", 0): 0.9, ("z", 0): 0.5}
    found = reward_gains.compute_gain(before, {key: value + 0.05 for key, value in before.items()})
    assert found == pytest.approx({"value": 0.05, "standard_error": 0})


def test_a_column_that_one_phase_has_no_value_of_has_no_gain():
    before = [{"record": "x", "literal": 0.5, "semantic": None}]
    after = [{"record": "x", "literal": 0.75, "semantic": 0.5}]
    found = reward_gains.compute_gains(before, after, ["literal", "semantic", "grounding"])
    assert found.keys() == {"literal"} and found["literal"]["value"] == 0.25
