from collections import Counter, defaultdict
from dataclasses import replace
from io import BytesIO
from itertools import permutations, product
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from stages.datasets import synthetic
from stages.datasets.synthetic import tweet_lexicon, tweets
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.datasets.synthetic.config import cycle_shuffled
from stages.shared.data.records import SPLITS, TweetRecord
from stages.shared.metrics.grounding import find_stated_values
from stages.shared.runtime.stage import InputError
from tests.support.synthetic_corpus import (
    SYNTHETIC_CONFIG,
    build_synthetic_config,
    find_extra,
    get_scene,
    list_phrase_patterns,
)

VOCABULARY = {
    word
    for sentences in [
        *tweet_lexicon.ENTITY_SENTENCES.values(),
        tweet_lexicon.PLAIN_SENTENCES,
        tweet_lexicon.FILLERS,
        tweet_lexicon.SENTENCE_MARKS,
    ]
    for sentence in sentences
    for word in sentence.split()
}


@pytest.fixture(scope="module", params=["weather", "phrase"])
def rule(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def items(rule):
    return list(
        synthetic.read(Path("unused"), "tweets", replace(SYNTHETIC_CONFIG, entity_type_rule=rule))
    )


@pytest.fixture
def clear_caches():
    """Clears what is cached from the word lists, before and after the test."""
    for cached in (tweets.group_layouts_by_length, tweets.compute_bayes_optimal_entities):
        cached.cache_clear()
    yield
    for cached in (tweets.group_layouts_by_length, tweets.compute_bayes_optimal_entities):
        cached.cache_clear()


def select_tweets(items, *splits: str) -> list[TweetRecord]:
    wanted = splits or SPLITS
    return [item for item in items if isinstance(item, TweetRecord) and item.split in wanted]


def find_names(words: list[str]) -> list[tuple[int, int]]:
    """The spans of consecutive words that are in no word list."""
    places, start = [], None
    for place, word in enumerate([*words, "."]):
        if word not in VOCABULARY and start is None:
            start = place
        if word in VOCABULARY and start is not None:
            places.append((start, place))
            start = None
    return places


def find_families(words: list[str]) -> list[str]:
    """The families of the names, from the text alone; all parses must agree."""
    short = list(words)
    for start, end in reversed(find_names(words)):
        short[start:end] = ["X"]
    pieces = [
        ((*sentence.split(), mark), (family,) if family else ())
        for family, sentences in [
            *tweet_lexicon.ENTITY_SENTENCES.items(),
            ("", tweet_lexicon.PLAIN_SENTENCES),
        ]
        for sentence, mark in product(sentences, tweet_lexicon.SENTENCE_MARKS)
    ]
    fillers = {tuple(filler.split()) for filler in tweet_lexicon.FILLERS} | {()}
    ways: dict[int, set] = defaultdict(set)  # number of parsed words -> families so far
    for filler in fillers:
        if tuple(short[: len(filler)]) == filler:
            ways[len(filler)].add(())
    for place in range(len(short)):
        for piece, family in pieces:
            if tuple(short[place : place + len(piece)]) == piece:
                ways[place + len(piece)] |= {so_far + family for so_far in ways[place]}
    parses = {way for filler in fillers if len(filler) <= len(short)
             if tuple(short[len(short) - len(filler) :]) == filler
             for way in ways[len(short) - len(filler)]}  # fmt: skip
    (families,) = parses
    return list(families)


def sample_tweets(
    rule: str, count: int, seed: int = 3
) -> list[tuple[tweets.TweetText, tweets.FamilyTypes]]:
    """Sample tweets of the test split, without images."""
    process, random = (
        tweets.TweetSampler("test", replace(SYNTHETIC_CONFIG, entity_type_rule=rule)),
        Random(seed),
    )
    rows = []
    for _ in range(count):
        scene = random.choice(process.scenes[random.choice(tweets.WEIGHTED_WEATHER)])
        rows.append((process.sample_text(random), process.get_family_types(scene)))
    return rows


def compute_f1(pairs) -> float:
    """Micro F1 of pairs of predicted and true entity sets."""
    right = sum(len(guess & true) for guess, true in pairs)
    return 2 * right / sum(len(guess) + len(true) for guess, true in pairs)


def test_a_config_determines_the_corpus_and_another_seed_changes_it(items, rule):
    params = replace(SYNTHETIC_CONFIG, entity_type_rule=rule)
    assert items == list(synthetic.read(Path("unused"), "tweets", params))
    assert items != list(synthetic.read(Path("unused"), "tweets", replace(params, seed=1)))


def test_the_configured_number_of_tweets_each_have_their_own_image(items):
    assert [len(select_tweets(items, split)) for split in SPLITS] == [90, 45, 90]
    images = [tweet.image.content for tweet in select_tweets(items)]
    assert len(set(images)) == len(images)
    assert Image.open(BytesIO(images[0])).size == (32, 32)
    assert all(list(get_scene(tweet)) == list(IMAGE_SLOTS) for tweet in select_tweets(items))


def test_tags_follow_from_text_and_facts(items, rule):
    """Names are words of no list; families follow from patterns, types from families and scene."""
    is_decided_by_text = Counter()
    for tweet in select_tweets(items):
        scene, tags = get_scene(tweet), ["O"] * len(tweet.words)
        places, families = find_names(tweet.words), find_families(tweet.words)
        for (start, end), family in zip(places, families, strict=True):
            slot = family if rule == "phrase" else "weather"
            entity_type = (
                family
                if family.isupper()
                else tweet_lexicon.ENTITY_TYPE_BY_SLOT_VALUE[slot][scene[slot]]
            )
            tags[start:end] = [f"B-{entity_type}"] + [f"I-{entity_type}"] * (end - start - 1)
            is_decided_by_text[family.isupper()] += 1
        assert tweet.tags == tags, tweet.words
    assert is_decided_by_text[True] / is_decided_by_text.total() == pytest.approx(0.35, abs=0.08)


def test_names_of_test_share_no_word_with_other_splits(items):
    names: dict[bool, set] = {True: set(), False: set()}
    for tweet in select_tweets(items):
        for word, tag in zip(tweet.words, tweet.tags, strict=True):
            if tag != "O":
                names[tweet.split == "test"].add(word)
    assert len(names[True]) > 50 and len(names[False]) > 50
    assert not names[True] & names[False]


def test_no_invented_name_is_in_a_word_list():
    words = {word.lower() for pattern in list_phrase_patterns() for word in pattern.split()}
    for count in (2, 3):
        assert not words & {
            "".join(parts) for parts in permutations(tweet_lexicon.NAME_SYLLABLES, count)
        }


def test_no_scene_of_the_test_split_occurs_in_another_split(items):
    scenes = {True: set(), False: set()}
    for tweet in select_tweets(items):
        scenes[tweet.split == "test"].add(tuple(get_scene(tweet).values()))
    assert scenes[True] and scenes[False] and not scenes[True] & scenes[False]


def test_every_pattern_belongs_to_one_family():
    patterns = [
        sentence for group in tweet_lexicon.ENTITY_SENTENCES.values() for sentence in group
    ] + tweet_lexicon.PLAIN_SENTENCES
    assert len(patterns) == len(set(patterns))
    for sentences in tweet_lexicon.ENTITY_SENTENCES.values():
        assert all(sentence.split().count("X") == 1 for sentence in sentences)


def test_no_phrase_states_an_image_slot():
    for pattern in list_phrase_patterns():
        assert not any(find_stated_values(pattern, values) for values in IMAGE_SLOTS.values()), (
            pattern
        )
        assert not any(pattern in values for values in IMAGE_SLOTS.values()), pattern


def test_cycle_shuffled_yields_every_item_before_it_repeats_one():
    cards = cycle_shuffled(list("aab"), Random(0))
    for _ in range(5):
        assert sorted(next(cards) for _ in range(3)) == list("aab")


def test_every_split_has_the_same_distribution_of_weather():
    many = replace(SYNTHETIC_CONFIG, train=52, validation=52, test=52, tweet_ratio=1.0)
    items = list(synthetic.read(Path("unused"), "tweets", many))
    for split in SPLITS:
        counts = Counter(get_scene(tweet)["weather"] for tweet in select_tweets(items, split))
        assert counts == {"sun": 16, "rain": 12, "snow": 12, "storm": 12}


def test_the_best_guess_without_the_image_is_the_same_in_every_split(rule):
    """Otherwise a classifier could not learn from train what is most probable in test."""
    guesses = []
    for split in SPLITS:
        probabilities = tweets.TweetSampler(
            split, replace(SYNTHETIC_CONFIG, entity_type_rule=rule)
        ).compute_family_types_probabilities()
        assert sum(probabilities.values()) == pytest.approx(1)
        guesses.append(
            [
                tweets.compute_bayes_optimal_types((family,), probabilities)
                for family in tweets.FAMILIES
            ]
        )
    assert guesses[0] == guesses[1] == guesses[2]


def test_the_text_ceiling_of_the_weather_rule_matches_a_derivation_by_hand():
    """The text decides 35 % of the types; 4 of 13 open names have the type of sun."""
    probabilities = tweets.TweetSampler(
        "test", SYNTHETIC_CONFIG
    ).compute_family_types_probabilities()
    ceilings = tweets.compute_ceilings(probabilities, sample_tweets("weather", 50))
    assert ceilings["text"]["expected"] == pytest.approx(0.35 + 0.65 * 4 / 13, abs=1e-6)
    assert ceilings["both"] == {"expected": 1.0, "realised": 1.0}


def test_predicting_fewer_names_without_the_image_hardly_raises_f1(rule):
    """Predicting the names of all families is the best choice of families, or nearly so."""
    probabilities = tweets.TweetSampler(
        "test", replace(SYNTHETIC_CONFIG, entity_type_rule=rule)
    ).compute_family_types_probabilities()
    accuracies = []
    for index, family in enumerate(tweets.FAMILIES):
        (best,) = tweets.compute_bayes_optimal_types((family,), probabilities)
        accuracies.append(sum(chance for r, chance in probabilities.items() if r[index] == best))
    max_f1 = {}
    for is_predicted in product([0, 1], repeat=len(accuracies)):
        shares = np.array(is_predicted) * tweets.FAMILY_PROBABILITIES
        max_f1[sum(is_predicted)] = max(
            tweets.compute_f1(shares @ accuracies, shares.sum(), 1),
            max_f1.get(sum(is_predicted), 0),
        )
    margin = {"weather": 0.0, "phrase": 0.002}[rule]
    assert max(max_f1.values()) <= max_f1[len(accuracies)] + margin


def test_expected_ceilings_are_reached_by_counting_samples(rule):
    """The Bayes prediction of the text: the most frequent types of equal families in a sample."""
    rows = sample_tweets(rule, 40_000)
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for text, family_types in rows:
        types = tuple(family_types[tweets.FAMILIES.index(family)] for family in text.families)
        counts[tuple(text.families)][types] += 1
    pairs = []
    for text, family_types in rows:
        ((types, _),) = counts[tuple(text.families)].most_common(1)
        prediction = set(zip(text.spans, types, strict=True))
        pairs.append((prediction, text.get_entities(family_types)))
    probabilities = tweets.TweetSampler(
        "test", replace(SYNTHETIC_CONFIG, entity_type_rule=rule)
    ).compute_family_types_probabilities()
    ceilings = tweets.compute_ceilings(probabilities, rows)
    assert compute_f1(pairs) == pytest.approx(ceilings["text"]["expected"], abs=0.01)
    assert ceilings["text"]["realised"] == pytest.approx(ceilings["text"]["expected"], abs=0.01)


def test_layout_probabilities_match_sampled_frequencies():
    assert sum(
        c.sum() for one in tweets.group_layouts_by_length().values() for c in one.values()
    ) == (pytest.approx(1))
    rows = [text for text, _ in sample_tweets("weather", 40_000)]
    select_tweets = Counter((len(text.words), text.spans) for text in rows)
    by_family = Counter((text.spans, *text.families) for text in rows)
    for (length, spans), count in select_tweets.most_common(60):
        expected = tweets.group_layouts_by_length()[length][spans].sum()
        assert count == pytest.approx(len(rows) * expected, abs=5 * count**0.5)
    for (spans, *families), count in by_family.most_common(20):
        places = tuple(tweets.FAMILIES.index(family) for family in families)
        layouts = [
            one[spans][places] for one in tweets.group_layouts_by_length().values() if spans in one
        ]
        assert count == pytest.approx(len(rows) * sum(layouts), abs=5 * count**0.5)


def test_no_name_can_be_located_from_the_image_alone(rule):
    """At every length a tweet without names is more probable than any other tweet."""
    probabilities = tweets.TweetSampler(
        "test", replace(SYNTHETIC_CONFIG, entity_type_rule=rule)
    ).compute_family_types_probabilities()
    for length, family_types in product(tweets.group_layouts_by_length(), probabilities):
        assert tweets.compute_bayes_optimal_entities(length, family_types) == frozenset()


def test_a_tweet_without_names_is_the_most_probable_by_a_margin():
    """So an approximately trained tagger reaches the same prediction."""
    probabilities = tweets.TweetSampler(
        "test", SYNTHETIC_CONFIG
    ).compute_family_types_probabilities()
    for layouts, family_types in product(tweets.group_layouts_by_length().values(), probabilities):
        named = [tweets.sum_by_type(c, family_types).max() for spans, c in layouts.items() if spans]
        assert layouts[()] > 1.5 * max(named, default=0.0)


def test_with_certain_names_the_most_probable_tags_match_sampled_frequencies(
    monkeypatch, clear_caches
):
    """With few patterns and at least one name, the image ceiling is above 0 and exact."""
    patterns = {
        family: [f"a X {'b ' * (place % 3)}"] for place, family in enumerate(tweets.FAMILIES)
    }
    monkeypatch.setattr(tweet_lexicon, "ENTITY_SENTENCES", patterns)
    monkeypatch.setattr(tweet_lexicon, "FILLERS", ["c"])
    monkeypatch.setattr(tweets, "NAME_COUNT_WEIGHTS", {1: 1, 2: 1})
    monkeypatch.setattr(tweets, "WEIGHTED_WEATHER", ["sun", "rain", "snow", "storm"])
    monkeypatch.setattr(tweets, "PLAIN_SENTENCE_COUNTS", (1,))
    rows = sample_tweets("weather", 40_000)
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for text, family_types in rows:
        counts[len(text.words), family_types][text.get_entities(family_types)] += 1
    for (length, family_types), entity_counts in counts.items():
        (prediction, most), *runners_up = entity_counts.most_common(2)
        if runners_up and most > 1.1 * runners_up[0][1] and most > 300:
            assert tweets.compute_bayes_optimal_entities(length, family_types) == prediction
    pairs = [
        (
            tweets.compute_bayes_optimal_entities(len(text.words), family_types),
            text.get_entities(family_types),
        )
        for text, family_types in rows
    ]
    probabilities = tweets.TweetSampler(
        "test", SYNTHETIC_CONFIG
    ).compute_family_types_probabilities()
    ceiling = tweets.compute_ceilings(probabilities, rows)["picture"]
    assert ceiling["expected"] > 0.2
    assert ceiling["expected"] == pytest.approx(compute_f1(pairs), abs=0.01)
    assert ceiling["realised"] == pytest.approx(compute_f1(pairs), abs=1e-6)


def test_realised_ceilings_equal_the_f1_of_the_rule_on_the_tweets(items, rule):
    ceilings = find_extra(items, "ceilings.json")
    assert ceilings["metric"] == "f1" and set(ceilings) == {"rule", "metric", "validation", "test"}
    for split in ("validation", "test"):
        probabilities = tweets.TweetSampler(
            split, replace(SYNTHETIC_CONFIG, entity_type_rule=rule)
        ).compute_family_types_probabilities()
        pairs = []
        for tweet in select_tweets(items, split):
            places = find_names(tweet.words)
            types = tweets.compute_bayes_optimal_types(
                tuple(find_families(tweet.words)), probabilities
            )
            true = {(place, tweet.tags[place[0]][2:]) for place in places}
            pairs.append((set(zip(places, types, strict=True)), true))
        assert ceilings[split]["text"]["realised"] == pytest.approx(compute_f1(pairs), abs=1e-6)
        assert ceilings[split]["picture"] == {"expected": 0.0, "realised": 0.0}
        assert ceilings[split]["both"] == {"expected": 1.0, "realised": 1.0}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"entity_type_rule": "sun"}, "entity_type_rule is 'sun': choose one of weather | phrase"),
        ({"held_out_names_fraction": 0.0}, "held_out_names_fraction is 0.0: give more than 0"),
        ({"held_out_names_fraction": 1.0}, "held_out_names_fraction is 1.0: give less than 1"),
    ],
)
def test_invalid_params_are_named(changes, sentence):
    with pytest.raises(InputError, match=sentence.replace("|", r"\|")):
        build_synthetic_config(**changes)
