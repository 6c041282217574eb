"""The rules of the offline paraphraser, with examples derived by hand."""

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
def test_wordings_differ_in_more_than_case_and_punctuation_and_are_reproducible(text):
    wordings = paraphrase_with_rules(text, 5, "0 a")
    assert len({normalize_text(wording) for wording in [text, *wordings]}) == 1 + len(wordings) == 6
    assert paraphrase_with_rules(text, 5, "0 a") == wordings
    assert paraphrase_with_rules(text, 5, "0 b") != wordings
    assert paraphrase_with_rules(text, 3, "0 a") == wordings[:3]


def test_a_text_without_letters_only_gets_fillers():
    assert all("🙂" in wording for wording in paraphrase_with_rules("🙂", 5, "0"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("When you sit down, everyone calls", "Everyone calls, when you sit down"),
        ("WHEN YOU SIT, THEY CALL!", "THEY CALL, WHEN YOU SIT!"),
        ("Bob sits, everyone calls.", "Everyone calls, Bob sits."),
        ("You sit, and everyone calls", None),  # the second clause depends on the first
        ("A, b, but c", None),
        ("You sit. Then, all call", None),
        ("no comma", None),
    ],
)
def test_independent_clauses_around_a_comma_are_swapped(text, expected):
    assert reorder_clauses(text, Random(0)) == (expected or text)


def test_several_clauses_get_any_order_that_does_not_begin_with_the_first():
    orders = {reorder_clauses("one, two, three", Random(seed)) for seed in range(50)}
    assert orders == {
        "two, one, three",
        "two, three, one",
        "three, one, two",
        "three, two, one",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I do not care", "I don't care"),
        ("I DON'T CARE", "I DO NOT CARE"),
        ("i'm late", "I am late"),
        ("Maybe later", "Perhaps later"),
        ("gonna eat", "going to eat"),
        ("going to school", "going to school"),
        ("tired of me aren't you", "tired of me aren't you"),  # not "are not you"
        ("yes you are", "yes you are"),
        ("bigger", "bigger"),
    ],
)
def test_words_are_replaced_by_synonyms(text, expected):
    assert replace_words(text, Random(0)) == expected


def test_no_word_that_expresses_a_sentiment_is_replaced():
    sentiment_words = {
        "love",
        "hate",
        "happy",
        "sad",
        "angry",
        "stupid",
        "ugly",
        "great",
        "never",
        "not",
    }
    assert not sentiment_words & {word for pair in REPLACEMENTS.items() for word in pair}


def test_no_word_is_replaced_by_itself():
    assert all(word != synonym for word, synonym in REPLACEMENTS.items())


@pytest.mark.parametrize("seed", range(20))
def test_a_filler_does_not_change_the_words_of_the_text(seed):
    for text in TEXTS:
        assert normalize_text(text) in normalize_text(add_filler(text, Random(seed)))


@pytest.mark.parametrize("seed", range(20))
def test_varied_punctuation_never_adds_an_exclamation_or_question_mark(seed):
    assert vary_case_and_punctuation("Stop it!", Random(seed)).count("!") == 1
    for text in TEXTS:
        varied = vary_case_and_punctuation(text, Random(seed))
        assert normalize_text(varied) == normalize_text(text) and not set(varied) & set("!?")
