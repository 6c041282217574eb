import re
from collections import Counter, defaultdict
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from stages.datasets import synthetic
from stages.datasets.synthetic import meme_lexicon, memes
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.datasets.synthetic.text_overlay import TEXT_STYLES, overlay_text
from stages.shared.data.records import SPLITS, MemeRecord
from stages.shared.runtime.stage import InputError
from tests.support.synthetic_corpus import (
    SYNTHETIC_CONFIG,
    build_synthetic_config,
    find_extra,
    get_scene,
)

CYCLE_LENGTH = len(memes.FACTOR_COMBINATIONS)
# A whole cycle of combinations in test; small images are rendered quickly.
CONFIG = replace(
    SYNTHETIC_CONFIG,
    train=60,
    validation=40,
    test=CYCLE_LENGTH,
    meme_ratio=1.0,
    image_size=16,
    meme_scale=4,
)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "memes", CONFIG))


@pytest.fixture(scope="module")
def clean():
    return list(synthetic.read(Path("unused"), "memes", replace(CONFIG, meme_label_noise=0.0)))


def select_memes(items, *splits: str) -> list[MemeRecord]:
    wanted = splits or SPLITS
    return [item for item in items if isinstance(item, MemeRecord) and item.split in wanted]


def as_regex(pattern: str) -> re.Pattern:
    """A regex for everything that a phrase pattern can become, independent of compose_phrase."""
    text = re.escape(pattern)
    for word, choices in meme_lexicon.PATTERN_WORDS.items():
        choice = "|".join(map(re.escape, sorted(choices, key=len, reverse=True)))
        text = text.replace(re.escape(f"{{{word}}}"), f"(?:{choice})")
    return re.compile(text.replace(r"\ (?:", r"\ ?(?:"))


PATTERNS = {
    (attribute, value): [as_regex(pattern) for pattern in patterns]
    for attribute, values in meme_lexicon.PHRASE_PATTERNS.items()
    for value, patterns in values.items()
}


def read_factors(text: str) -> dict[str, str]:
    """The text factors from the text alone: four phrases, each with a single meaning."""
    meanings = {}
    for phrase in text.split(", "):
        ((attribute, value),) = [
            meaning
            for meaning, patterns in PATTERNS.items()
            if any(pattern.fullmatch(phrase) for pattern in patterns)
        ]
        assert attribute not in meanings
        meanings[attribute] = value
    return meanings


# The categories of the image slots that the labels below depend on.
MOOD = {"sun": 1, "snow": 0, "rain": -1, "storm": -1}
STEEP, ODD, SHAKY = ("mountain", "forest", "city"), ("robot", "frog", "penguin"), ("ladder", "kite")
SENTIMENT = {  # tone: labels in bad weather, snow and sun
    "complaint": ("negative", "negative", "neutral"),
    "plain": ("negative", "neutral", "positive"),
    "praise": ("neutral", "positive", "positive"),
}
SARCASM = {
    "complaint": ("general", "twisted_meaning", "twisted_meaning"),
    "plain": ("general", "not_sarcastic", "not_sarcastic"),
    "praise": ("very_twisted", "not_sarcastic", "not_sarcastic"),
}
OFFENSIVE = {  # target, whether the actor is odd
    ("nobody", False): "not_offensive",
    ("nobody", True): "slight",
    ("you", True): "very_offensive",
    ("you", False): "hateful_offensive",
}


def derive_labels(text: dict[str, str], scene: dict[str, str]) -> dict[str, str]:
    mood = 1 + MOOD[scene["weather"]]
    odd = scene["actor"] in ODD
    funny = (text["joke"] == "told") + odd + (scene["object"] in SHAKY)
    uphill = scene["place"] in STEEP
    motivates = uphill and text["call"] == "effort"
    return {
        "sentiment": SENTIMENT[text["tone"]][mood],
        "humour": ("not_funny", "funny", "very_funny", "hilarious")[funny],
        "sarcasm": SARCASM[text["tone"]][mood],
        "offensive": OFFENSIVE[text["target"], odd],
        "motivational": "motivational" if motivates else "not_motivational",
    }


def test_a_config_determines_the_corpus_and_another_seed_changes_it():
    small = replace(SYNTHETIC_CONFIG, meme_ratio=0.1)
    first = list(synthetic.read(Path("unused"), "memes", small))
    assert first == list(synthetic.read(Path("unused"), "memes", small))
    assert first != list(synthetic.read(Path("unused"), "memes", replace(small, seed=1)))
    assert [len(select_memes(first, split)) for split in SPLITS] == [12, 6, 12]


def test_every_meme_has_its_own_image_and_text_and_five_labels(items):
    rows = select_memes(items)
    assert len({row.image.content for row in rows}) == len(rows)
    assert len({row.text for row in rows}) > 0.99 * len(rows)
    tasks = find_extra(items, "tasks.json")
    assert list(tasks) == ["sentiment", "humour", "sarcasm", "offensive", "motivational"]
    for row in rows:
        assert list(row.labels) == list(tasks)
        assert all(label in tasks[task] for task, label in row.labels.items())


def test_labels_without_noise_follow_from_text_and_facts(clean):
    for row in select_memes(clean):
        assert row.labels == derive_labels(read_factors(row.text), get_scene(row)), row.text


def test_noise_changes_the_configured_fraction_of_labels_and_nothing_else(items, clean):
    pairs = list(zip(select_memes(items), select_memes(clean), strict=True))
    assert all(replace(a, labels={}) == replace(b, labels={}) for a, b in pairs)
    for task, labels in memes.TASK_LABELS.items():
        changed = Counter(a.labels[task] != b.labels[task] for a, b in pairs)
        assert changed[True] / changed.total() == pytest.approx(0.1, abs=0.04)
        assert {a.labels[task] for a, _ in pairs} == set(labels)


def test_label_noise_of_one_half_is_rejected():
    with pytest.raises(InputError, match=r"meme_label_noise is 0\.5: give less than 0\.5"):
        build_synthetic_config(meme_label_noise=0.5)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("meme_ratio", -0.1, "0 or more"),
        ("meme_scale", 0, "1 or more"),
        ("meme_jpeg_quality", 0, "1 or more"),
        ("meme_jpeg_quality", 96, "95 or less"),
    ],
)
def test_out_of_range_meme_settings_are_rejected(key, value, bound):
    with pytest.raises(InputError) as error:
        build_synthetic_config(**{key: value})
    message = f"config/formats.yaml: formats.synthetic.{key} is {value}: give {bound}"
    assert str(error.value) == message


@pytest.mark.parametrize(("fraction", "split"), [(0.0, "test"), (0.01, "test"), (1.0, "train")])
def test_a_split_without_scenes_for_every_category_is_rejected(fraction, split):
    message = rf"held_out_images_fraction is {fraction}, .* the memes of {split}:"
    with pytest.raises(InputError, match=message):
        next(memes.iter_memes(split, replace(SYNTHETIC_CONFIG, held_out_images_fraction=fraction)))


def test_a_cycle_contains_every_combination_of_text_and_image_factors_once(items):
    rows = [(read_factors(row.text), get_scene(row)) for row in select_memes(items, "test")]
    counts = Counter(
        (
            *text.values(),
            MOOD[scene["weather"]],
            *(scene[slot] in side for slot, side in zip(SLOTS, (STEEP, ODD, SHAKY), strict=True)),
        )
        for text, scene in ((dict(sorted(text.items())), scene) for text, scene in rows)
    )
    assert CYCLE_LENGTH == 3 * 2 * 2 * 2 * 3 * 2 * 2 * 2 == len(counts)
    assert set(counts.values()) == {1}


SLOTS = ("place", "actor", "object")


def test_test_scenes_are_held_out_and_memes_show_no_shapes_like_letters(items):
    scenes = {True: set(), False: set()}
    for row in select_memes(items):
        scene = get_scene(row)
        assert scene["object"] != "bicycle" and scene["activity"] != "sleeping"
        assert list(scene) == list(IMAGE_SLOTS)
        scenes[row.split == "test"].add(tuple(scene.values()))
    assert scenes[True] and scenes[False] and not scenes[True] & scenes[False]


def test_ceilings_match_a_derivation_by_hand(items):
    """The accuracy without noise, a; with noise 0.1 it is 0.9 a + 0.1 (1 - a) / (labels - 1).

    Sentiment: a tone other than plain gives the most frequent mood in 2 of 3 weathers, plain in 1
    of 3, so a = 5/9; the same holds for the weather. Humour: given the joke, actor and object
    add 1 in half of the cases; given these, the joke adds 1 in half of the cases. Sarcasm: given a
    tone, 2 of 3 weathers have the same level; given a weather, 2 of 3 tones. Offensive: the other
    modality has two equally probable values. Motivational: the same in half of the cases, and
    certain in the other half.
    """
    single_input = {
        "sentiment": (5 / 9, 2),
        "humour": (1 / 2, 3),
        "sarcasm": (2 / 3, 3),
        "offensive": (1 / 2, 3),
        "motivational": (3 / 4, 1),
    }
    ceilings = find_extra(items, "ceilings.json")
    assert ceilings["metric"] == "accuracy" and set(ceilings) == {
        *("rule", "metric", "validation", "test")
    }
    for split in ("validation", "test"):
        for task, (accuracy, num_other_labels) in single_input.items():
            ceiling = accuracy * 0.9 + (1 - accuracy) * 0.1 / num_other_labels
            for inputs, value in (("text", ceiling), ("picture", ceiling), ("both", 0.9)):
                expected = ceilings[split][task][inputs]["expected"]
                assert expected == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("inputs", ["text", "picture", "both"])
def test_realised_ceilings_equal_the_accuracy_of_the_best_guess_on_the_noisy_labels(items, inputs):
    """Derives the rule from all combinations again: visible factors -> most frequent label."""
    rows = select_memes(items, "test")
    for task, labels in memes.TASK_LABELS.items():
        counts: dict[tuple, Counter] = defaultdict(Counter)
        keys = []
        for row in rows:  # a whole cycle: every combination once
            text, scene = read_factors(row.text), get_scene(row)
            text_factors = tuple(text[name] for name in meme_lexicon.PHRASE_PATTERNS)
            image_factors = (MOOD[scene["weather"]], scene["place"] in STEEP)
            image_factors += (scene["actor"] in ODD, scene["object"] in SHAKY)
            key = {
                "text": text_factors,
                "picture": image_factors,
                "both": text_factors + image_factors,
            }[inputs]
            counts[key][derive_labels(text, scene)[task]] += 1
            keys.append(key)
        best = {
            key: max(labels, key=lambda x, of=label_counts: of[x])
            for key, label_counts in counts.items()
        }
        num_correct = sum(
            best[key] == row.labels[task] for key, row in zip(keys, rows, strict=True)
        )
        realised = find_extra(items, "ceilings.json")["test"][task][inputs]["realised"]
        assert realised == pytest.approx(num_correct / len(rows), abs=1e-6)


def test_every_phrase_has_one_meaning_and_many_wordings():
    counts = Counter(
        p for values in meme_lexicon.PHRASE_PATTERNS.values() for ps in values.values() for p in ps
    )
    assert set(counts.values()) == {1}
    for attribute, values in meme_lexicon.PHRASE_PATTERNS.items():
        for value in values:
            texts = {
                meme_lexicon.compose_phrase(attribute, value, Random(seed)) for seed in range(500)
            }
            assert len(texts) >= 40, value
            assert all({value} == {read_factors(text)[attribute]} for text in texts)


def test_memes_can_be_rendered_again_from_the_config(items):
    again = list(islice(memes.iter_memes("test", CONFIG), 8))
    for meme, row in zip(again, select_memes(items, "test"), strict=False):
        with Image.open(BytesIO(row.image.content)) as file:
            difference = np.asarray(file, int) - np.asarray(meme.overlaid.image, int)
        assert meme.text == row.text and abs(difference).mean() < 15  # JPEG artifacts


@pytest.mark.parametrize("style", sorted(set(TEXT_STYLES)))
def test_text_lies_within_its_mask_and_boxes(style):
    image = Image.new("RGB", (192, 192), (90, 120, 160))
    words = "so this is my picnic, you silly goose", "never give up today, plot twist lol"
    for seed in range(6):
        overlaid = overlay_text(image, words, style, Random(seed))
        rendered = np.asarray(overlaid.image, int)
        clean = np.asarray(overlaid.clean_image, int)
        assert rendered.shape[1] == 192 and overlaid.text_mask.shape == rendered.shape[:2]
        assert not (rendered != clean).any(-1)[~overlaid.text_mask].any()
        assert (rendered != clean).any(-1)[overlaid.text_mask].mean() > 0.95
        boxes = np.zeros_like(overlaid.text_mask)
        for left, top, right, bottom in overlaid.line_bounds:
            boxes[top:bottom, left:right] = True
        assert not (overlaid.text_mask & ~boxes).any()
        assert boxes.mean() < 0.45  # the scene stays visible
        assert (rendered.shape[0] > 192) == (style == "bar")


def test_record_boxes_are_the_relative_bounds_of_the_lines(items):
    meme, row = next(memes.iter_memes("test", CONFIG)), select_memes(items, "test")[0]
    width, height = meme.overlaid.image.size
    assert len(row.boxes) == len(meme.overlaid.line_bounds)
    for box, line in zip(row.boxes, meme.overlaid.line_bounds, strict=True):
        edges = box.left * width, box.top * height, box.right * width, box.bottom * height
        assert (box.position, box.slot) == (0, "text")
        assert edges == pytest.approx(line)
