from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from stages.datasets import synthetic
from stages.datasets.synthetic import article_lexicon
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.shared.data.records import MemeRecord
from tests.support.synthetic_corpus import SYNTHETIC_CONFIG, find_extra, get_scene

CHECKS = replace(SYNTHETIC_CONFIG, meme_style="captioned", train=200, meme_ratio=1.0, image_size=16)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "memes", CHECKS))


def memes(items, split: str) -> list[MemeRecord]:
    return [item for item in items if isinstance(item, MemeRecord) and item.split == split]


def told(text: str, slot: str) -> set[str]:
    """The values of a slot that a caption names, read by their words."""
    return {
        value
        for value, words in IMAGE_SLOTS[slot].items()
        if any(f" {w}" in f" {text}" for w in words)
    }


def test_a_label_says_whether_the_caption_tells_the_slot_as_the_picture_shows_it(items):
    for meme in memes(items, "train"):
        scene = get_scene(meme)
        for slot, label in meme.labels.items():
            if len(found := told(meme.text, slot)) == 1:  # some words stand within others
                assert (found == {scene[slot]}) == (label == "right")


def test_every_slot_is_a_task_told_rightly_in_half_of_the_captions(items):
    assert find_extra(items, "tasks.json") == {key: ["wrong", "right"] for key in IMAGE_SLOTS}
    for slot in IMAGE_SLOTS:
        share = Counter(meme.labels[slot] for meme in memes(items, "train"))["right"] / 200
        assert share == pytest.approx(0.5, abs=0.12)


def test_test_shows_scenes_that_no_other_split_shows(items):
    held_out = [
        article_lexicon.is_held_out(
            get_scene(meme), list(IMAGE_SLOTS), CHECKS.held_out_images_fraction
        )
        for split in ("train", "validation")
        for meme in memes(items, split)
    ]
    assert not any(held_out)
    assert all(
        article_lexicon.is_held_out(
            get_scene(meme), list(IMAGE_SLOTS), CHECKS.held_out_images_fraction
        )
        for meme in memes(items, "test")
    )


def test_a_single_input_reaches_no_more_than_the_more_frequent_label(items):
    ceilings, shown = find_extra(items, "ceilings.json")["test"], memes(items, "test")
    for slot in IMAGE_SLOTS:
        counts = Counter(meme.labels[slot] for meme in shown)
        coin = pytest.approx(max(counts.values()) / len(shown), abs=1e-6)
        assert ceilings[slot]["text"]["realised"] == ceilings[slot]["picture"]["realised"] == coin
        assert ceilings[slot]["both"]["realised"] == 1
