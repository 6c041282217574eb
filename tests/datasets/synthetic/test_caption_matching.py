from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from stages.datasets import synthetic
from stages.datasets.synthetic import article_lexicon
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.shared.data.records import MemeRecord
from tests.support.synthetic_corpus import SYNTHETIC_CONFIG, find_extra, get_scene

CONFIG = replace(SYNTHETIC_CONFIG, meme_style="captioned", train=200, meme_ratio=1.0, image_size=16)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "memes", CONFIG))


def select_memes(items, split: str) -> list[MemeRecord]:
    return [item for item in items if isinstance(item, MemeRecord) and item.split == split]


def find_slot_values(text: str, slot: str) -> set[str]:
    """The values of a slot whose phrases occur in a caption."""
    return {
        value
        for value, words in IMAGE_SLOTS[slot].items()
        if any(f" {w}" in f" {text}" for w in words)
    }


def test_a_label_says_whether_the_caption_matches_the_image(items):
    for meme in select_memes(items, "train"):
        scene = get_scene(meme)
        for slot, label in meme.labels.items():
            values = find_slot_values(meme.text, slot)
            if len(values) == 1:  # some phrases contain those of other values
                assert (values == {scene[slot]}) == (label == "right")


def test_every_slot_is_a_task_with_balanced_labels(items):
    assert find_extra(items, "tasks.json") == {key: ["wrong", "right"] for key in IMAGE_SLOTS}
    for slot in IMAGE_SLOTS:
        share = Counter(meme.labels[slot] for meme in select_memes(items, "train"))["right"] / 200
        assert share == pytest.approx(0.5, abs=0.12)


def test_the_test_split_shows_held_out_scenes_only(items):
    held_out = [
        article_lexicon.is_held_out(
            get_scene(meme), list(IMAGE_SLOTS), CONFIG.held_out_images_fraction
        )
        for split in ("train", "validation")
        for meme in select_memes(items, split)
    ]
    assert not any(held_out)
    assert all(
        article_lexicon.is_held_out(
            get_scene(meme), list(IMAGE_SLOTS), CONFIG.held_out_images_fraction
        )
        for meme in select_memes(items, "test")
    )


def test_the_ceiling_of_a_single_input_is_the_majority_label(items):
    ceilings, records = find_extra(items, "ceilings.json")["test"], select_memes(items, "test")
    for slot in IMAGE_SLOTS:
        counts = Counter(meme.labels[slot] for meme in records)
        majority = pytest.approx(max(counts.values()) / len(records), abs=1e-6)
        assert (
            ceilings[slot]["text"]["realised"] == ceilings[slot]["picture"]["realised"] == majority
        )
        assert ceilings[slot]["both"]["realised"] == 1
