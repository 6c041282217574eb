"""Rules reword a text without a language model; each change by hand."""

from random import Random

import pytest

from stages.augment.rule_paraphraser import (
    REPLACEMENTS,
    add_filler,
    normalize_text,
    paraphrase_with_rules,
    reorder_clauses,
    replace_words,
    vary_case_and_punctuation,
)

TEXTS = [
    "When you sit down, everyone needs something",
    "I do not want to get up",
    "lol",
    "MONDAY. AGAIN.",
    "Because I am the boss, you are not going to leave early tonight",
    "10 Year Challenge",
]


@pytest.mark.parametrize("text", TEXTS)
def test_wordings_differ_in_more_than_case_and_marks_and_are_the_same_each_time(text):
    found = paraphrase_with_rules(text, 5, "0 a")
    assert len({normalize_text(wording) for wording in [text, *found]}) == 1 + len(found) == 6
    assert paraphrase_with_rules(text, 5, "0 a") == found
    assert paraphrase_with_rules(text, 5, "0 b") != found
    assert paraphrase_with_rules(text, 3, "0 a") == found[:3]


def test_a_text_without_a_letter_has_only_fillers_about_it():
    assert all("🙂" in wording for wording in paraphrase_with_rules("🙂", 5, "0"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("When you sit down, everyone calls", "Everyone calls, when you sit down"),
        ("WHEN YOU SIT, THEY CALL!", "THEY CALL, WHEN YOU SIT!"),
        ("Bob sits, everyone calls.", "Everyone calls, Bob sits."),
        ("You sit, and everyone calls", None),  # the second part hangs on the first
        ("A, b, but c", None),
        ("You sit. Then, all call", None),
        ("no comma", None),
    ],
)
def test_parts_around_a_comma_change_places_where_they_can(text, wanted):
    assert reorder_clauses(text, Random(0)) == (wanted or text)


def test_many_parts_come_in_any_order_but_that_of_the_text():
    found = {reorder_clauses("one, two, three", Random(seed)) for seed in range(50)}
    assert found == {
        "two, one, three",
        "two, three, one",
        "three, one, two",
        "three, two, one",
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I do not care", "I don't care"),
        ("I DON'T CARE", "I DO NOT CARE"),
        ("i'm late", "I am late"),
        ("Maybe later", "Perhaps later"),
        ("gonna eat", "going to eat"),
        ("going to school", "going to school"),
        ("tired of me aren't you", "tired of me aren't you"),  # no "are not you"
        ("yes you are", "yes you are"),
        ("bigger", "bigger"),
    ],
)
def test_words_are_put_for_words_of_the_same_meaning(text, wanted):
    assert replace_words(text, Random(0)) == wanted


def test_no_word_that_carries_a_feeling_is_replaced():
    feelings = {"love", "hate", "happy", "sad", "angry", "stupid", "ugly", "great", "never", "not"}
    assert not feelings & {word for pair in REPLACEMENTS.items() for word in pair}


def test_what_is_put_for_a_word_is_never_the_word():
    assert all(one != other for one, other in REPLACEMENTS.items())


@pytest.mark.parametrize("seed", range(20))
def test_a_filler_leaves_every_word_in_its_place(seed):
    for text in TEXTS:
        assert normalize_text(text) in normalize_text(add_filler(text, Random(seed)))


@pytest.mark.parametrize("seed", range(20))
def test_noise_adds_no_stress(seed):
    assert vary_case_and_punctuation("Stop it!", Random(seed)).count("!") == 1
    for text in TEXTS:
        found = vary_case_and_punctuation(text, Random(seed))
        assert normalize_text(found) == normalize_text(text) and not set(found) & set("!?")
