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

ALL = SceneSlots(TOPIC_SLOTS, IMAGE_SLOTS)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "articles", SYNTHETIC_CONFIG))


def articles(items) -> list[ArticleRecord]:
    return [item for item in items if isinstance(item, ArticleRecord)]


def scenes_of(article: ArticleRecord, slots=SLOTS) -> list[dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for fact in article.facts:
        if fact.slot in slots:
            found.setdefault(fact.position, {})[fact.slot] = fact.value
    return list(found.values())


def test_the_same_params_give_the_same_bytes_and_another_seed_others(items):
    assert items == list(synthetic.read(Path("unused"), "articles", SYNTHETIC_CONFIG))
    assert items != list(
        synthetic.read(Path("unused"), "articles", replace(SYNTHETIC_CONFIG, seed=1))
    )


def test_every_text_states_all_its_slots_and_nothing_else(items):
    for article in articles(items):
        texts = [block for block in article.blocks if isinstance(block, str)]
        for text, truth in zip(texts, scenes_of(article), strict=True):
            assert score_slots(text, truth, ALL) == dict.fromkeys(SLOTS, 1), text


def test_no_title_tells_a_slot_of_the_picture_and_each_tells_its_topic(items):
    for article in articles(items):
        assert not any(find_stated_values(article.title, values) for values in IMAGE_SLOTS.values())
        truth = scenes_of(article)[0]
        assert find_stated_values(article.title, TOPIC_SLOTS["name"]) == {truth["name"]}
        assert find_stated_values(article.title, TOPIC_SLOTS["goal"]) == {truth["goal"]}
        assert any(words in article.title for words in article_lexicon.TITLE_STYLES[truth["style"]])


def test_no_combination_of_the_test_split_is_ever_seen_in_another(items):
    for slots in (TOPIC_SLOTS, IMAGE_SLOTS):
        seen = {True: set(), False: set()}
        for article in articles(items):
            for scene in scenes_of(article, slots):
                seen[article.split == "test"].add(tuple(scene.values()))
        assert seen[True] and seen[False]
        assert not seen[True] & seen[False]


def test_the_stated_share_of_articles_differs_in_one_slot_only(items):
    kinds = Counter()
    for article in articles(items):
        shown = scenes_of(article, IMAGE_SLOTS)
        assert 3 <= len(shown) <= 5
        assert len({tuple(scene.values()) for scene in shown}) == len(shown)
        changed = {slot for slot in IMAGE_SLOTS if len({scene[slot] for scene in shown}) > 1}
        kinds[len(changed) == 1] += 1
        assert bool(article.foils) == (len(changed) == 1 and article.split != "train")
    assert kinds[True] / sum(kinds.values()) == pytest.approx(0.5, abs=0.15)


def test_a_foil_is_the_reference_with_one_picture_slot_changed(items):
    checked = 0
    for article in articles(items):
        texts, truths = article.blocks[1::2], scenes_of(article)
        for foil in article.foils:
            right = score_slots(foil.text, truths[foil.position], ALL)
            assert right == dict.fromkeys(SLOTS, 1) | {foil.slot: 0}
            (wrong,) = find_stated_values(foil.text, SLOTS[foil.slot])
            values = SLOTS[foil.slot]
            said = values[truths[foil.position][foil.slot]]
            undone = [
                foil.text.replace(new, old)
                for new in values[wrong]
                if new in foil.text
                for old in said
            ]
            assert texts[foil.position] in undone  # the same phrasing
            checked += 1
    assert checked > 50


def test_realised_ceilings_are_those_of_the_rule_applied_to_the_items(items):
    """Each unseen slot is answered with one value; the share of items that have it is the score."""
    ceilings = find_extra(items, "ceilings.json")
    for split in ("validation", "test"):
        rows = [s for a in articles(items) if a.split == split for s in scenes_of(a)]
        chances = synthetic.ArticleSampler(split, SYNTHETIC_CONFIG).compute_slot_weights()
        for inputs, seen in (("topic", TOPIC_SLOTS), ("picture", IMAGE_SLOTS), ("both", SLOTS)):
            right = 0
            for row in rows:
                for slot, value in row.items():
                    guess = value if slot in seen else max(chances[slot], key=chances[slot].get)
                    right += guess == value
            realised = ceilings[split][inputs]["realised"]["total"]
            assert realised == pytest.approx(right / len(rows) / 8, abs=1e-6)


def test_captions_have_the_ceiling_of_the_picture_alone_which_tells_all_that_they_say():
    """The best captions are the references: of each slot the share that they state correctly."""
    items = list(synthetic.read(Path("unused"), "captions", SYNTHETIC_CONFIG))
    ceilings = find_extra(items, "ceilings.json")
    for split in ("train", "validation", "test"):
        rights = [
            score_slots(
                caption, {fact.slot: fact.value for fact in item.facts}, SceneSlots({}, IMAGE_SLOTS)
            )
            for item in items
            if isinstance(item, CaptionRecord) and item.split == split
            for caption in item.captions
        ]
        by_slot = {slot: sum(r[slot] for r in rights) / len(rights) for slot in IMAGE_SLOTS}
        total = sum(by_slot.values()) / len(IMAGE_SLOTS)
        shares = {"total": total} | by_slot
        assert ceilings[split] == {"picture": {"expected": shares, "realised": shares}}


def test_expected_ceilings_agree_with_many_draws():
    process, random = synthetic.ArticleSampler("test", SYNTHETIC_CONFIG), Random(7)
    drawn: dict[str, Counter] = {slot: Counter() for slot in SLOTS}
    for _ in range(20_000):
        topic, shown, _ = process.sample_article(random)
        for scene in shown:
            for slot, value in (topic | scene).items():
                drawn[slot][value] += 1
    chances = process.compute_slot_weights()
    for slot, counts in drawn.items():
        for value in SLOTS[slot]:
            share = chances[slot][value] / sum(chances[slot].values())
            assert counts[value] / sum(counts.values()) == pytest.approx(share, abs=0.01)


def test_captioned_pictures_show_what_their_captions_say():
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
    ("thing", "digest"),
    [
        ("ball", "a9e40d11e6b07673"),
        ("bicycle", "8aca844cce2f6baa"),
        ("lantern", "875bcb528d5e535a"),
        ("ladder", "1981396309fcb2fe"),
        ("basket", "42ef4f1a50e37182"),
        ("kite", "27524004493d77ae"),
    ],
)
def test_the_pixels_of_a_scene_stay_what_they_were(thing, digest):
    drawn = scene_renderer.render_scene(SCENE | {"object": thing}, Random(thing), 32)
    assert sha256(drawn.image.tobytes()).hexdigest()[:16] == digest


def test_a_box_is_where_the_object_was_drawn(monkeypatch):
    """Drawn at 64 x 64: pixels 8 to 23 by 16 to 47, so shares 8/64 to 24/64 and 16/64 to 48/64."""
    monkeypatch.setitem(
        scene_renderer.OBJECT_DRAWERS,
        "ball",
        lambda pen, *_: pen.rectangle([8, 16, 23, 47], fill=(255, 0, 255)),
    )
    drawn = scene_renderer.render_scene(SCENE | {"object": "ball"}, Random(0), 32)
    assert drawn.box == (0.125, 0.25, 0.375, 0.75)


def test_every_picture_has_the_box_of_its_object_within_it(items):
    for article in articles(items):
        assert [(box.position, box.slot) for box in article.boxes] == [
            (position, "object") for position in range(len(article.blocks) // 2)
        ]
        for box in article.boxes:
            assert 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1
            assert 0.01 < (box.right - box.left) * (box.bottom - box.top) < 0.4


def test_no_phrase_of_one_value_stands_inside_a_phrase_of_another():
    for values in SLOTS.values():
        for one, other in combinations(values, 2):
            for phrase in values[one]:
                assert not find_stated_values(phrase, {other: values[other]})
