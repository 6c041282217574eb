"""Synthetic articles with one text about all images: what it states, and its ceilings."""

from collections import Counter
from pathlib import Path

import pytest

from stages.datasets import synthetic
from stages.datasets.synthetic import one_text_articles
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS, TOPIC_SLOTS
from stages.datasets.synthetic.one_text_articles import (
    COMPARED_SLOTS,
    ORDINALS,
    PICTURE_SLOTS,
    SLOTS,
    ImageSetSampler,
    enumerate_comparisons,
    predict_from_first_image,
)
from stages.shared.data.records import ArticleRecord
from stages.shared.metrics.grounding import SceneSlots, score_slots
from tests.support.synthetic_corpus import build_synthetic_config, find_extra

ALL_SLOTS = SceneSlots(TOPIC_SLOTS, PICTURE_SLOTS)
CONFIG = build_synthetic_config(article_style="one_text", train=60, validation=40, test=60)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "articles", CONFIG))


@pytest.fixture(scope="module")
def articles(items):
    return [item for item in items if isinstance(item, ArticleRecord)]


def get_facts(article):
    assert {fact.position for fact in article.facts} == {0}
    return {fact.slot: fact.value for fact in article.facts}


def test_an_article_has_its_text_after_three_to_five_different_images(articles):
    counts = Counter()
    for article in articles:
        *images, text = article.blocks
        assert isinstance(text, str) and not any(isinstance(image, str) for image in images)
        counts[len(images)] += 1
        assert len(article.boxes) == len(images)
    assert counts.keys() == {3, 4, 5}


def test_a_text_states_all_its_slots_and_nothing_else(articles):
    for article in articles:
        text = article.blocks[-1]
        assert score_slots(text, get_facts(article), ALL_SLOTS) == dict.fromkeys(SLOTS, 1), text


def test_a_foil_is_wrong_in_its_slot_only(articles):
    for article in articles:
        assert len(article.foils) == (0 if article.split == "train" else len(PICTURE_SLOTS))
        for foil in article.foils:
            scores = score_slots(foil.text, get_facts(article), ALL_SLOTS)
            assert [slot for slot, right in scores.items() if not right] == [foil.slot]


def test_no_split_shows_a_combination_that_another_one_shows():
    by_split = {}
    for split in ("train", "test"):
        sampler = ImageSetSampler(split, CONFIG)
        by_split[split] = {
            (key, weather) for key, weathers in sampler.groups.items() for weather in weathers
        }
    assert by_split["train"] and by_split["test"]
    assert not by_split["train"] & by_split["test"]


@pytest.mark.parametrize("weathers", [("sun", "rain"), ("sun", "rain", "snow", "storm")])
def test_the_first_image_alone_predicts_as_derived_by_hand(weathers):
    """It is odd with probability (1/3 + 1/4 + 1/5) / 3 = 47/180, and then shows the odd weather.

    Else the odd weather is one of the m - 1 others: of two weathers the other one is more probable,
    of four the first one, (133/180) / 3 < 47/180. The odd image is one of the first three with
    47/180 each.
    """
    assert float(sum(probability for _, probability in enumerate_comparisons(weathers))) == 1
    for first in weathers:
        prediction = predict_from_first_image(weathers, first)
        others = [weather for weather in weathers if weather != first]
        odd = others[0] if len(weathers) == 2 else first
        assert prediction == {"usual_weather": first, "odd_weather": odd, "odd_image": ORDINALS[0]}


def test_expected_ceilings_are_those_of_the_enumerated_process(items):
    ceilings = find_extra(items, "ceilings.json")
    for split in ("train", "validation", "test"):
        first = ceilings[split]["first_picture"]["expected"]
        assert first["usual_weather"] == pytest.approx(133 / 180, abs=1e-6)
        assert first["odd_image"] == pytest.approx(47 / 180, abs=1e-6)
        assert 47 / 180 < first["odd_weather"] < 133 / 180
        picture = ceilings[split]["picture"]["expected"]
        assert all(picture[slot] == 1 for slot in PICTURE_SLOTS)
        assert first["total"] < picture["total"] < ceilings[split]["both"]["expected"]["total"] == 1


def test_realised_ceilings_are_the_accuracy_of_the_rule_on_the_records(items, articles):
    ceilings = find_extra(items, "ceilings.json")
    for split in ("validation", "test"):
        sampler = ImageSetSampler(split, CONFIG)
        selected = [get_facts(article) for article in articles if article.split == split]
        num_right = Counter()
        for facts in selected:
            key = tuple(facts[slot] for slot in IMAGE_SLOTS if slot != "weather")
            is_odd = facts["odd_image"] == "first"
            first = facts["odd_weather" if is_odd else "usual_weather"]
            prediction = predict_from_first_image(sampler.groups[key], first)
            for slot in COMPARED_SLOTS:
                num_right[slot] += prediction[slot] == facts[slot]
        realised = ceilings[split]["first_picture"]["realised"]
        for slot in COMPARED_SLOTS:
            assert realised[slot] == pytest.approx(num_right[slot] / len(selected), abs=1e-6)


def test_a_config_determines_the_corpus(items):
    assert items == list(one_text_articles.generate_articles(CONFIG))
