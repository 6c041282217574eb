from collections import Counter
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from stages.datasets import synthetic
from stages.datasets.synthetic import article_lexicon, scene_renderer
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS, SLOTS, TOPIC_SLOTS
from stages.shared.data.records import ArticleRecord, CaptionRecord
from stages.shared.metrics.grounding import SceneSlots, find_stated_values, score_slots
from tests.support.synthetic_corpus import SYNTHETIC_CONFIG, find_extra

ALL_SLOTS = SceneSlots(TOPIC_SLOTS, IMAGE_SLOTS)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "articles", SYNTHETIC_CONFIG))


def select_articles(items) -> list[ArticleRecord]:
    return [item for item in items if isinstance(item, ArticleRecord)]


def get_scenes(article: ArticleRecord, slots=SLOTS) -> list[dict[str, str]]:
    scenes: dict[int, dict[str, str]] = {}
    for fact in article.facts:
        if fact.slot in slots:
            scenes.setdefault(fact.position, {})[fact.slot] = fact.value
    return list(scenes.values())


def test_a_config_determines_the_corpus_and_another_seed_changes_it(items):
    assert items == list(synthetic.read(Path("unused"), "articles", SYNTHETIC_CONFIG))
    assert items != list(
        synthetic.read(Path("unused"), "articles", replace(SYNTHETIC_CONFIG, seed=1))
    )


def test_every_text_states_all_its_slots_and_nothing_else(items):
    for article in select_articles(items):
        texts = [block for block in article.blocks if isinstance(block, str)]
        for text, truth in zip(texts, get_scenes(article), strict=True):
            assert score_slots(text, truth, ALL_SLOTS) == dict.fromkeys(SLOTS, 1), text


def test_titles_state_their_topic_slots_and_no_image_slot(items):
    for article in select_articles(items):
        assert not any(find_stated_values(article.title, values) for values in IMAGE_SLOTS.values())
        truth = get_scenes(article)[0]
        assert find_stated_values(article.title, TOPIC_SLOTS["name"]) == {truth["name"]}
        assert find_stated_values(article.title, TOPIC_SLOTS["goal"]) == {truth["goal"]}
        assert any(words in article.title for words in article_lexicon.TITLE_STYLES[truth["style"]])


def test_no_combination_of_the_test_split_occurs_in_another_split(items):
    for slots in (TOPIC_SLOTS, IMAGE_SLOTS):
        combinations = {True: set(), False: set()}
        for article in select_articles(items):
            for scene in get_scenes(article, slots):
                combinations[article.split == "test"].add(tuple(scene.values()))
        assert combinations[True] and combinations[False]
        assert not combinations[True] & combinations[False]


def test_the_images_of_a_configured_fraction_of_articles_differ_in_one_slot_only(items):
    is_single_slot = Counter()
    for article in select_articles(items):
        scenes = get_scenes(article, IMAGE_SLOTS)
        assert 3 <= len(scenes) <= 5
        assert len({tuple(scene.values()) for scene in scenes}) == len(scenes)
        changed = {slot for slot in IMAGE_SLOTS if len({scene[slot] for scene in scenes}) > 1}
        is_single_slot[len(changed) == 1] += 1
        assert bool(article.foils) == (len(changed) == 1 and article.split != "train")
    assert is_single_slot[True] / sum(is_single_slot.values()) == pytest.approx(0.5, abs=0.15)


def test_a_foil_is_the_reference_with_one_image_slot_changed(items):
    num_foils = 0
    for article in select_articles(items):
        texts, truths = article.blocks[1::2], get_scenes(article)
        for foil in article.foils:
            scores = score_slots(foil.text, truths[foil.position], ALL_SLOTS)
            assert scores == dict.fromkeys(SLOTS, 1) | {foil.slot: 0}
            (wrong_value,) = find_stated_values(foil.text, SLOTS[foil.slot])
            values = SLOTS[foil.slot]
            true_phrases = values[truths[foil.position][foil.slot]]
            originals = [
                foil.text.replace(new, old)
                for new in values[wrong_value]
                if new in foil.text
                for old in true_phrases
            ]
            assert texts[foil.position] in originals  # the same phrasing
            num_foils += 1
    assert num_foils > 50


def test_realised_ceilings_equal_the_accuracy_of_the_rule_on_the_records(items):
    """Of an invisible slot one value is predicted; the accuracy is the share of that value."""
    ceilings = find_extra(items, "ceilings.json")
    for split in ("validation", "test"):
        scenes = [s for a in select_articles(items) if a.split == split for s in get_scenes(a)]
        weights = synthetic.ArticleSampler(split, SYNTHETIC_CONFIG).compute_slot_weights()
        for inputs, visible_slots in (
            ("topic", TOPIC_SLOTS),
            ("picture", IMAGE_SLOTS),
            ("both", SLOTS),
        ):
            num_correct = 0
            for scene in scenes:
                for slot, value in scene.items():
                    prediction = (
                        value
                        if slot in visible_slots
                        else max(weights[slot], key=weights[slot].get)
                    )
                    num_correct += prediction == value
            realised = ceilings[split][inputs]["realised"]["total"]
            assert realised == pytest.approx(num_correct / len(scenes) / 8, abs=1e-6)


def test_captions_have_the_ceiling_of_the_image_alone():
    """The references are the best captions, so the ceiling is the accuracy of their slots."""
    items = list(synthetic.read(Path("unused"), "captions", SYNTHETIC_CONFIG))
    ceilings = find_extra(items, "ceilings.json")
    for split in ("train", "validation", "test"):
        scores = [
            score_slots(
                caption, {fact.slot: fact.value for fact in item.facts}, SceneSlots({}, IMAGE_SLOTS)
            )
            for item in items
            if isinstance(item, CaptionRecord) and item.split == split
            for caption in item.captions
        ]
        by_slot = {slot: sum(r[slot] for r in scores) / len(scores) for slot in IMAGE_SLOTS}
        total = sum(by_slot.values()) / len(IMAGE_SLOTS)
        accuracies = {"total": total} | by_slot
        assert ceilings[split] == {"picture": {"expected": accuracies, "realised": accuracies}}


def test_expected_ceilings_match_sampled_frequencies():
    sampler, random = synthetic.ArticleSampler("test", SYNTHETIC_CONFIG), Random(7)
    counts_by_slot: dict[str, Counter] = {slot: Counter() for slot in SLOTS}
    for _ in range(20_000):
        topic, scenes, _ = sampler.sample_article(random)
        for scene in scenes:
            for slot, value in (topic | scene).items():
                counts_by_slot[slot][value] += 1
    weights = sampler.compute_slot_weights()
    for slot, counts in counts_by_slot.items():
        for value in SLOTS[slot]:
            share = weights[slot][value] / sum(weights[slot].values())
            assert counts[value] / sum(counts.values()) == pytest.approx(share, abs=0.01)


def test_captions_state_every_slot_of_their_image():
    items = [
        i
        for i in synthetic.read(Path("x"), "captions", SYNTHETIC_CONFIG)
        if isinstance(i, CaptionRecord)
    ]
    assert len(items) == 60 + 30 + 60
    for item in items:
        truth = {fact.slot: fact.value for fact in item.facts}
        for caption in item.captions:
            assert score_slots(caption, truth, SceneSlots({}, IMAGE_SLOTS)) == dict.fromkeys(
                IMAGE_SLOTS, 1
            )
        assert Image.open(BytesIO(item.image.content)).size == (32, 32)


SCENE = {"place": "beach", "weather": "rain", "actor": "cat", "activity": "running"}


@pytest.mark.parametrize(
    ("object_name", "digest"),
    [
        ("ball", "a9e40d11e6b07673"),
        ("bicycle", "8aca844cce2f6baa"),
        ("lantern", "875bcb528d5e535a"),
        ("ladder", "1981396309fcb2fe"),
        ("basket", "42ef4f1a50e37182"),
        ("kite", "27524004493d77ae"),
    ],
)
def test_the_pixels_of_a_scene_do_not_change(object_name, digest):
    rendered = scene_renderer.render_scene(SCENE | {"object": object_name}, Random(object_name), 32)
    assert sha256(rendered.image.tobytes()).hexdigest()[:16] == digest


def test_a_box_encloses_the_object(monkeypatch):
    """At 64 x 64, pixels 8 to 23 by 16 to 47 are the fractions 8/64 to 24/64 by 16/64 to 48/64."""
    monkeypatch.setitem(
        scene_renderer.OBJECT_DRAWERS,
        "ball",
        lambda pen, *_: pen.rectangle([8, 16, 23, 47], fill=(255, 0, 255)),
    )
    rendered = scene_renderer.render_scene(SCENE | {"object": "ball"}, Random(0), 32)
    assert rendered.box == (0.125, 0.25, 0.375, 0.75)


def test_every_image_has_the_box_of_its_object(items):
    for article in select_articles(items):
        assert [(box.position, box.slot) for box in article.boxes] == [
            (position, "object") for position in range(len(article.blocks) // 2)
        ]
        for box in article.boxes:
            assert 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1
            assert 0.01 < (box.right - box.left) * (box.bottom - box.top) < 0.4


def test_no_phrase_of_a_value_contains_a_phrase_of_another_value():
    for values in SLOTS.values():
        for value, other_value in combinations(values, 2):
            for phrase in values[value]:
                assert not find_stated_values(phrase, {other_value: values[other_value]})
