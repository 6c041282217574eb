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

# Whole cycles of 200 combinations in every split.
CONFIG = replace(SYNTHETIC_CONFIG, train=200, validation=200, test=400, post_ratio=1.0)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "posts", CONFIG))


def select_posts(items, *splits: str) -> list[PostRecord]:
    wanted = splits or SPLITS
    return [item for item in items if isinstance(item, PostRecord) and item.split in wanted]


def read_factors(text: str) -> tuple[str, str]:
    """Mood and tone from the text alone; exactly one of each must match."""
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


def test_a_config_determines_the_corpus_and_another_seed_changes_it(items):
    small = replace(SYNTHETIC_CONFIG, post_ratio=0.5)
    first = list(synthetic.read(Path("unused"), "posts", small))
    assert first == list(synthetic.read(Path("unused"), "posts", small))
    assert first != list(synthetic.read(Path("unused"), "posts", replace(small, seed=1)))
    assert [len(select_posts(first, split)) for split in SPLITS] == [60, 30, 60]


def test_every_post_has_its_own_image(items):
    images = [post.image.content for post in select_posts(items)]
    assert len(set(images)) == len(images)
    assert all(list(get_scene(post)) == list(IMAGE_SLOTS) for post in select_posts(items))


# Rows: weather; columns: place.
MOODS = """
        beach     meadow    forest    mountain  city      desert
sun     positive  positive  positive  positive  positive  neutral
snow    positive  positive  neutral   neutral   neutral   negative
rain    neutral   neutral   negative  negative  negative  negative
storm   neutral   neutral   negative  negative  negative  negative
"""


def test_the_mood_of_an_image_matches_a_table():
    places, *rows = [line.split() for line in MOODS.strip().splitlines()]
    for weather, *moods in rows:
        for place, mood in zip(places, moods, strict=True):
            assert posts.compute_scene_sentiment({"weather": weather, "place": place}) == mood


# Mood and tone of the text -> label if the image is negative, neutral, positive.
LABELS = {
    ("negative", "emphatic"): ["negative", "negative", "negative"],
    ("negative", "soft"): ["negative", "negative", "positive"],
    ("neutral", "emphatic"): ["negative", "neutral", "positive"],
    ("neutral", "soft"): ["negative", "neutral", "positive"],
    ("positive", "emphatic"): ["positive", "positive", "positive"],
    ("positive", "soft"): ["negative", "positive", "positive"],
}


def test_labels_follow_from_text_and_facts(items):
    for post in select_posts(items):
        image_mood = posts.compute_scene_sentiment(get_scene(post))
        assert post.label == LABELS[read_factors(post.text)][posts.SENTIMENTS.index(image_mood)], (
            post.text
        )


def test_every_text_has_one_mood_and_one_tone_and_4_to_20_words():
    lengths = []
    for (mood, statements), (tone, tones) in product(
        tweet_lexicon.STATEMENT_PATTERNS.items(), tweet_lexicon.TONE_PATTERNS.items()
    ):
        for statement, pattern in product(statements, tones):
            text = pattern.format(said=statement.format(thing="trip"))
            assert read_factors(text) == (mood, tone)
            lengths += [len((greeting + text).split()) for greeting in tweet_lexicon.GREETINGS]
    assert min(lengths) >= 4 and max(lengths) <= 20


def test_statements_vary():
    texts = {
        tweet_lexicon.compose_statement("positive", "soft", Random(seed)) for seed in range(1000)
    }
    assert len(texts) > 900


def test_no_scene_of_the_test_split_occurs_in_another_split(items):
    scenes = {True: set(), False: set()}
    for post in select_posts(items):
        scenes[post.split == "test"].add(tuple(get_scene(post).values()))
    assert scenes[True] and scenes[False] and not scenes[True] & scenes[False]


def test_every_split_has_the_same_distribution_of_moods(items):
    for split, num_cycles in zip(SPLITS, (1, 1, 2), strict=True):
        rows = select_posts(items, split)
        text_moods = Counter(read_factors(post.text) for post in rows)
        image_moods = Counter(posts.compute_scene_sentiment(get_scene(post)) for post in rows)
        for mood, share in (("negative", 0.3), ("neutral", 0.4), ("positive", 0.3)):
            assert image_moods[mood] == share * 200 * num_cycles
            assert (
                text_moods[mood, "soft"] == text_moods[mood, "emphatic"] == share * 100 * num_cycles
            )


def test_ceilings_match_a_derivation_by_hand(items):
    """Text: 0.4 neutral, 0.4 of them correct; 0.3 emphatic, all correct; 0.3 soft, 0.7 correct.

    Image: 0.4 neutral, 0.4 of them correct; 0.6 not neutral, wrong if the text is opposite and
    emphatic, which has the probability 0.3 / 2.
    """
    text = 0.4 * 0.4 + 0.3 + 0.3 * 0.7
    image = 0.4 * 0.4 + 0.6 * (1 - 0.15)
    expected = {
        "text": {"expected": text, "realised": text},
        "picture": {"expected": image, "realised": image},
        "both": {"expected": 1.0, "realised": 1.0},
    }
    ceilings = find_extra(items, "ceilings.json")
    assert ceilings["metric"] == "accuracy"
    for split in ("validation", "test"):
        for inputs, values in expected.items():
            assert ceilings[split][inputs] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("inputs", ["text", "picture", "both"])
def test_ceilings_are_reached_by_counting_labels(items, inputs):
    """The ceiling is the accuracy of the most frequent label of equal inputs."""
    rows = select_posts(items, "test")
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for post in rows:
        image_mood = posts.compute_scene_sentiment(get_scene(post))
        key = {"text": read_factors(post.text), "picture": (image_mood,)}
        counts[key.get(inputs, (*read_factors(post.text), image_mood))][post.label] += 1
    num_correct = sum(max(label_counts.values()) for label_counts in counts.values())
    ceiling = find_extra(items, "ceilings.json")["test"][inputs]["realised"]
    assert num_correct / len(rows) == pytest.approx(ceiling, abs=1e-6)


def test_realised_ceilings_match_the_rule_when_a_cycle_is_incomplete():
    items = list(synthetic.read(Path("unused"), "posts", replace(CONFIG, test=70, train=2)))
    rows = select_posts(items, "test")
    best = posts.compute_bayes_optimal_labels(posts.VISIBLE_FACTORS["text"])
    num_correct = sum(best[read_factors(post.text)] == post.label for post in rows)
    ceiling = find_extra(items, "ceilings.json")["test"]["text"]
    assert ceiling["realised"] == pytest.approx(num_correct / len(rows), abs=1e-6)
    assert ceiling["expected"] == pytest.approx(0.67)
