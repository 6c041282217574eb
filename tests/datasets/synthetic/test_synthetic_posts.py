from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import pytest

from stages.datasets import synthetic
from stages.datasets.synthetic import posts, tweet_lexicon
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.shared.data.records import SPLITS, PostRecord
from tests.support.synthetic_corpus import SYNTHETIC_CONFIG, find_extra, get_scene

# Whole decks of 200 cards in every split.
DECKS = replace(SYNTHETIC_CONFIG, train=200, validation=200, test=400, post_ratio=1.0)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "posts", DECKS))


def drawn(items, *splits: str) -> list[PostRecord]:
    wanted = splits or SPLITS
    return [item for item in items if isinstance(item, PostRecord) and item.split in wanted]


def read_as(text: str) -> tuple[str, str]:
    """Mood and tone from the words alone: of all moods and tones exactly one must fit."""
    moods = {
        mood
        for mood, patterns in tweet_lexicon.STATEMENT_PATTERNS.items()
        for pattern, thing in product(patterns, tweet_lexicon.TOPIC_NOUNS)
        if pattern.format(thing=thing) in text
    }
    tones = {
        tone
        for tone, patterns in tweet_lexicon.TONE_PATTERNS.items()
        for pattern in patterns
        if pattern.replace("{said}", "").strip() in text
    }
    (mood,), (tone,) = moods, tones
    return mood, tone


def test_the_same_params_give_the_same_bytes_and_another_seed_others(items):
    small = replace(SYNTHETIC_CONFIG, post_ratio=0.5)
    first = list(synthetic.read(Path("unused"), "posts", small))
    assert first == list(synthetic.read(Path("unused"), "posts", small))
    assert first != list(synthetic.read(Path("unused"), "posts", replace(small, seed=1)))
    assert [len(drawn(first, split)) for split in SPLITS] == [60, 30, 60]


def test_every_post_has_one_picture_of_its_own(items):
    pictures = [post.image.content for post in drawn(items)]
    assert len(set(pictures)) == len(pictures)
    assert all(list(get_scene(post)) == list(IMAGE_SLOTS) for post in drawn(items))


# Rows: weather; columns: place.
MOODS = """
        beach     meadow    forest    mountain  city      desert
sun     positive  positive  positive  positive  positive  neutral
snow    positive  positive  neutral   neutral   neutral   negative
rain    neutral   neutral   negative  negative  negative  negative
storm   neutral   neutral   negative  negative  negative  negative
"""


def test_the_mood_of_a_picture_by_hand():
    places, *rows = [line.split() for line in MOODS.strip().splitlines()]
    for weather, *moods in rows:
        for place, mood in zip(places, moods, strict=True):
            assert posts.compute_scene_sentiment({"weather": weather, "place": place}) == mood


# Mood and tone of the text -> the label where the picture is negative, neutral, positive.
LABELS = {
    ("negative", "emphatic"): ["negative", "negative", "negative"],
    ("negative", "soft"): ["negative", "negative", "positive"],
    ("neutral", "emphatic"): ["negative", "neutral", "positive"],
    ("neutral", "soft"): ["negative", "neutral", "positive"],
    ("positive", "emphatic"): ["positive", "positive", "positive"],
    ("positive", "soft"): ["negative", "positive", "positive"],
}


def test_words_and_facts_alone_give_the_label(items):
    for post in drawn(items):
        of_picture = posts.compute_scene_sentiment(get_scene(post))
        assert post.label == LABELS[read_as(post.text)][posts.SENTIMENTS.index(of_picture)], (
            post.text
        )


def test_every_text_has_one_mood_and_one_tone_and_4_to_20_words():
    lengths = []
    for (mood, statements), (tone, tones) in product(
        tweet_lexicon.STATEMENT_PATTERNS.items(), tweet_lexicon.TONE_PATTERNS.items()
    ):
        for statement, pattern in product(statements, tones):
            said = pattern.format(said=statement.format(thing="trip"))
            assert read_as(said) == (mood, tone)
            lengths += [len((greeting + said).split()) for greeting in tweet_lexicon.GREETINGS]
    assert min(lengths) >= 4 and max(lengths) <= 20


def test_texts_vary():
    texts = {
        tweet_lexicon.compose_statement("positive", "soft", Random(seed)) for seed in range(1000)
    }
    assert len(texts) > 900


def test_no_scene_of_the_test_split_is_seen_in_another(items):
    seen = {True: set(), False: set()}
    for post in drawn(items):
        seen[post.split == "test"].add(tuple(get_scene(post).values()))
    assert seen[True] and seen[False] and not seen[True] & seen[False]


def test_every_split_has_the_moods_in_the_same_shares(items):
    for split, decks in zip(SPLITS, (1, 1, 2), strict=True):
        rows = drawn(items, split)
        of_text = Counter(read_as(post.text) for post in rows)
        of_picture = Counter(posts.compute_scene_sentiment(get_scene(post)) for post in rows)
        for mood, share in (("negative", 0.3), ("neutral", 0.4), ("positive", 0.3)):
            assert of_picture[mood] == share * 200 * decks
            assert of_text[mood, "soft"] == of_text[mood, "emphatic"] == share * 100 * decks


def test_ceilings_by_hand(items):
    """Text: neutral 0.4, of which 0.4 right; else emphatic 0.3, right; soft 0.3, of which 0.7.

    Picture: neutral 0.4, of which 0.4 right; else 0.6, wrong where the text is opposite and
    emphatic, 0.3 / 2.
    """
    text = 0.4 * 0.4 + 0.3 + 0.3 * 0.7
    picture = 0.4 * 0.4 + 0.6 * (1 - 0.15)
    of_split = {
        "text": {"expected": text, "realised": text},
        "picture": {"expected": picture, "realised": picture},
        "both": {"expected": 1.0, "realised": 1.0},
    }
    ceilings = find_extra(items, "ceilings.json")
    assert ceilings["metric"] == "accuracy"
    for split in ("validation", "test"):
        for inputs, figures in of_split.items():
            assert ceilings[split][inputs] == pytest.approx(figures, abs=1e-6)


@pytest.mark.parametrize("inputs", ["text", "picture", "both"])
def test_ceilings_are_reached_by_counting(items, inputs):
    """The most frequent label of equal inputs, counted on the posts themselves."""
    rows = drawn(items, "test")
    seen: dict[tuple, Counter] = defaultdict(Counter)
    for post in rows:
        of_picture = posts.compute_scene_sentiment(get_scene(post))
        key = {"text": read_as(post.text), "picture": (of_picture,)}
        seen[key.get(inputs, (*read_as(post.text), of_picture))][post.label] += 1
    right = sum(max(found.values()) for found in seen.values())
    ceiling = find_extra(items, "ceilings.json")["test"][inputs]["realised"]
    assert right / len(rows) == pytest.approx(ceiling, abs=1e-6)


def test_realised_ceilings_are_those_of_the_rule_where_a_deck_is_not_dealt_to_its_end():
    items = list(synthetic.read(Path("unused"), "posts", replace(DECKS, test=70, train=2)))
    rows = drawn(items, "test")
    best = posts.compute_bayes_optimal_labels(posts.VISIBLE_FACTORS["text"])
    right = sum(best[read_as(post.text)] == post.label for post in rows)
    ceiling = find_extra(items, "ceilings.json")["test"]["text"]
    assert ceiling["realised"] == pytest.approx(right / len(rows), abs=1e-6)
    assert ceiling["expected"] == pytest.approx(0.67)
