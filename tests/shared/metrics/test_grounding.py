"""Matching of slot phrases in texts, and slot scores."""

import json

import pytest

from stages.shared.metrics.grounding import (
    SceneSlots,
    find_phrases,
    find_stated_values,
    load_slots,
    mean_slot_score,
    score_slots,
)

WEATHER = {"rain": ["rain", "wet sky"], "snow": ["snow"], "downpour": ["heavy rain"]}
PLACE = {"beach": ["beach", "shore"], "forest": ["forest"]}
GOAL = {"bread": ["loaf of bread"], "boat": ["boat"]}
SLOTS = SceneSlots(topic={"goal": GOAL}, picture={"weather": WEATHER, "place": PLACE})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Rain on the shore.", {"rain"}),
        ("A WET\n  sky", {"rain"}),
        ("the full-width \uff32\uff21\uff29\uff2e falls", {"rain"}),
        ("rain, then snow", {"rain", "snow"}),
        ("rain and a wet sky", {"rain"}),
        ("a train of rainbows, snowing", set()),
        ("heavy rain", {"downpour"}),
        ("rain before heavy rain", {"rain", "downpour"}),
        ("", set()),
    ],
)
def test_phrases_match_whole_words_in_any_case_width_and_spacing(text, values):
    assert find_stated_values(text, WEATHER) == values


def test_a_phrase_does_not_end_before_a_mark_of_its_last_letter():
    assert find_stated_values("कि", {"x": ["क"]}) == set()
    assert find_stated_values("क और", {"x": ["क"]}) == {"x"}


def test_special_characters_in_a_phrase_are_literal():
    assert find_stated_values("up (a.b)", {"x": ["(a.b)"]}) == {"x"}
    assert find_stated_values("up (aab)", {"x": ["(a.b)"]}) == set()


def test_a_slot_is_correct_only_if_the_true_value_and_no_other_is_stated():
    facts = {"weather": "rain", "place": "beach", "goal": "boat"}
    text = "In rain and snow she carries the boat; no place is named."
    assert score_slots(text, facts, SLOTS) == {"weather": 0, "place": 0, "goal": 1}
    assert mean_slot_score(score_slots(text, facts, SLOTS)) == pytest.approx(1 / 3)


def test_only_slots_with_a_true_value_are_scored():
    assert score_slots("rain", {"weather": "rain"}, SLOTS) == {"weather": 1}


def test_the_order_of_values_and_phrases_changes_nothing():
    reordered = {value: phrases[::-1] for value, phrases in reversed(WEATHER.items())}
    for text in ("heavy rain", "rain", "wet sky and snow"):
        assert find_stated_values(text, reordered) == find_stated_values(text, WEATHER)


def test_slots_are_read_from_the_corpus_and_are_none_without_ground_truth(tmp_path):
    assert load_slots(tmp_path) is None
    content = {"topic": {"goal": GOAL}, "picture": {"weather": WEATHER, "place": PLACE}}
    (tmp_path / "slots.json").write_text(json.dumps(content))
    assert load_slots(tmp_path) == SLOTS


def test_positions_refer_to_the_unmodified_text():
    """Case and spacing may differ; a longer phrase hides a shorter phrase inside it."""
    text = "HEAVY\n rain, then Snow; no rainbow, rain"
    matches = find_phrases(text, {"rain": ["rain"], "pour": ["heavy rain"], "snow": ["snow"]})
    assert [(value, text[start:end]) for value, start, end in matches] == [
        ("pour", "HEAVY\n rain"),
        ("snow", "Snow"),
        ("rain", "rain"),
    ]
    assert matches[-1][2] == len(text)
