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

DECK = len(memes.FACTOR_COMBINATIONS)
# A whole deck of cards in test; the pictures small and quickly drawn.
DECKS = replace(
    SYNTHETIC_CONFIG,
    train=60,
    validation=40,
    test=DECK,
    meme_ratio=1.0,
    image_size=16,
    meme_scale=4,
)


@pytest.fixture(scope="module")
def items():
    return list(synthetic.read(Path("unused"), "memes", DECKS))


@pytest.fixture(scope="module")
def clean():
    return list(synthetic.read(Path("unused"), "memes", replace(DECKS, meme_label_noise=0.0)))


def drawn(items, *splits: str) -> list[MemeRecord]:
    wanted = splits or SPLITS
    return [item for item in items if isinstance(item, MemeRecord) and item.split in wanted]


def as_regex(pattern: str) -> re.Pattern:
    """What a pattern of quips can become, read independently of how it is composed."""
    text = re.escape(pattern)
    for word, choices in meme_lexicon.PATTERN_WORDS.items():
        choice = "|".join(map(re.escape, sorted(choices, key=len, reverse=True)))
        text = text.replace(re.escape(f"{{{word}}}"), f"(?:{choice})")
    return re.compile(text.replace(r"\ (?:", r"\ ?(?:"))


READ = {
    (attribute, value): [as_regex(pattern) for pattern in patterns]
    for attribute, values in meme_lexicon.PHRASE_PATTERNS.items()
    for value, patterns in values.items()
}


def read_as(text: str) -> dict[str, str]:
    """The meanings from the words alone: four quips, each of one meaning only."""
    meanings = {}
    for said in text.split(", "):
        ((attribute, value),) = [
            meaning for meaning, known in READ.items() if any(one.fullmatch(said) for one in known)
        ]
        assert attribute not in meanings
        meanings[attribute] = value
    return meanings


# What the picture shows, slot by slot: sides as the labels below need them.
MOOD = {"sun": 1, "snow": 0, "rain": -1, "storm": -1}
STEEP, ODD, SHAKY = ("mountain", "forest", "city"), ("robot", "frog", "penguin"), ("ladder", "kite")
SENTIMENT = {  # tone: labels where the weather is bad, snowy, sunny
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


def by_hand(text: dict[str, str], scene: dict[str, str]) -> dict[str, str]:
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


def test_the_same_params_give_the_same_bytes_and_another_seed_others():
    small = replace(SYNTHETIC_CONFIG, meme_ratio=0.1)
    first = list(synthetic.read(Path("unused"), "memes", small))
    assert first == list(synthetic.read(Path("unused"), "memes", small))
    assert first != list(synthetic.read(Path("unused"), "memes", replace(small, seed=1)))
    assert [len(drawn(first, split)) for split in SPLITS] == [12, 6, 12]


def test_every_meme_has_a_picture_a_text_of_its_own_and_all_five_labels(items):
    rows = drawn(items)
    assert len({row.image.content for row in rows}) == len(rows)
    assert len({row.text for row in rows}) > 0.99 * len(rows)
    tasks = find_extra(items, "tasks.json")
    assert list(tasks) == ["sentiment", "humour", "sarcasm", "offensive", "motivational"]
    for row in rows:
        assert list(row.labels) == list(tasks)
        assert all(label in tasks[task] for task, label in row.labels.items())


def test_words_and_facts_alone_give_the_labels_but_for_the_noise(clean):
    for row in drawn(clean):
        assert row.labels == by_hand(read_as(row.text), get_scene(row)), row.text


def test_noise_gives_the_stated_share_of_labels_another_value_and_changes_nothing_else(
    items, clean
):
    pairs = list(zip(drawn(items), drawn(clean), strict=True))
    assert all(replace(a, labels={}) == replace(b, labels={}) for a, b in pairs)
    for task, labels in memes.TASK_LABELS.items():
        changed = Counter(a.labels[task] != b.labels[task] for a, b in pairs)
        assert changed[True] / changed.total() == pytest.approx(0.1, abs=0.04)
        assert {a.labels[task] for a, _ in pairs} == set(labels)


def test_a_noise_that_hides_the_truth_is_wrong_input():
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
def test_numbers_that_draw_no_memes_are_wrong_input(key, value, bound):
    with pytest.raises(InputError) as wrong:
        build_synthetic_config(**{key: value})
    said = f"params.yaml: formats.synthetic.{key} is {value}: give {bound}"
    assert str(wrong.value) == said


@pytest.mark.parametrize(("share", "split"), [(0.0, "test"), (0.01, "test"), (1.0, "train")])
def test_a_split_without_scenes_for_every_side_is_wrong_input(share, split):
    said = rf"held_out_images_fraction is {share}, .* the memes of {split}:"
    with pytest.raises(InputError, match=said):
        next(memes.iter_memes(split, replace(SYNTHETIC_CONFIG, held_out_images_fraction=share)))


def test_a_deck_holds_every_meaning_of_the_words_with_every_side_of_the_picture_once(items):
    rows = [(read_as(row.text), get_scene(row)) for row in drawn(items, "test")]
    seen = Counter(
        (
            *text.values(),
            MOOD[scene["weather"]],
            *(scene[slot] in side for slot, side in zip(SLOTS, (STEEP, ODD, SHAKY), strict=True)),
        )
        for text, scene in ((dict(sorted(text.items())), scene) for text, scene in rows)
    )
    assert DECK == 3 * 2 * 2 * 2 * 3 * 2 * 2 * 2 == len(seen)
    assert set(seen.values()) == {1}


SLOTS = ("place", "actor", "object")


def test_no_scene_of_the_test_split_is_seen_in_another_and_none_looks_like_letters(items):
    seen = {True: set(), False: set()}
    for row in drawn(items):
        scene = get_scene(row)
        assert scene["object"] != "bicycle" and scene["activity"] != "sleeping"
        assert list(scene) == list(IMAGE_SLOTS)
        seen[row.split == "test"].add(tuple(scene.values()))
    assert seen[True] and seen[False] and not seen[True] & seen[False]


def test_ceilings_by_hand(items):
    """Shares of true labels that are guessed, and of these 0.9 are kept; of the others every
    label but the true one has 0.1 / (labels - 1).

    Sentiment: a tone that is not plain decides 2 of 3 moods, a plain one 1: 5/9; the weather too.
    Humour: the sum of the two others is 1 in half of the cases, and the third is a coin. Sarcasm:
    of each tone the weather that is not bad, 2 of 3; of each weather 2 of 3 tones. Offensive: the
    other side is a coin. Motivational: a coin in half of the cases.
    """
    alone = {
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
        for task, (share, others) in alone.items():
            single = share * 0.9 + (1 - share) * 0.1 / others
            for inputs, figure in (("text", single), ("picture", single), ("both", 0.9)):
                expected = ceilings[split][task][inputs]["expected"]
                assert expected == pytest.approx(figure, abs=1e-6)


@pytest.mark.parametrize("inputs", ["text", "picture", "both"])
def test_realised_ceilings_are_those_of_the_best_guess_on_the_very_labels(items, inputs):
    """The rule read off all combinations anew: what is seen -> the most frequent true label."""
    rows = drawn(items, "test")
    for task, labels in memes.TASK_LABELS.items():
        counts: dict[tuple, Counter] = defaultdict(Counter)
        seen_by = []
        for row in rows:  # a whole deck: every combination once
            text, scene = read_as(row.text), get_scene(row)
            words = tuple(text[name] for name in meme_lexicon.PHRASE_PATTERNS)
            shown = (MOOD[scene["weather"]], scene["place"] in STEEP)
            shown += (scene["actor"] in ODD, scene["object"] in SHAKY)
            key = {"text": words, "picture": shown, "both": words + shown}[inputs]
            counts[key][by_hand(text, scene)[task]] += 1
            seen_by.append(key)
        best = {key: max(labels, key=lambda x, of=found: of[x]) for key, found in counts.items()}
        right = sum(best[key] == row.labels[task] for key, row in zip(seen_by, rows, strict=True))
        realised = find_extra(items, "ceilings.json")["test"][task][inputs]["realised"]
        assert realised == pytest.approx(right / len(rows), abs=1e-6)


def test_no_quip_has_two_meanings_and_wordings_are_many():
    said = Counter(
        p for values in meme_lexicon.PHRASE_PATTERNS.values() for ps in values.values() for p in ps
    )
    assert set(said.values()) == {1}
    for attribute, values in meme_lexicon.PHRASE_PATTERNS.items():
        for value in values:
            texts = {
                meme_lexicon.compose_phrase(attribute, value, Random(seed)) for seed in range(500)
            }
            assert len(texts) >= 40, value
            assert all({value} == {read_as(text)[attribute]} for text in texts)


def test_the_params_give_the_drawings_again_and_they_are_those_of_the_corpus(items):
    again = list(islice(memes.iter_memes("test", DECKS), 8))
    for meme, row in zip(again, drawn(items, "test"), strict=False):
        with Image.open(BytesIO(row.image.content)) as file:
            difference = np.asarray(file, int) - np.asarray(meme.overlaid.image, int)
        assert meme.text == row.text and abs(difference).mean() < 15  # JPEG's


@pytest.mark.parametrize("style", sorted(set(TEXT_STYLES)))
def test_text_is_where_the_mask_says_and_inside_its_boxes(style):
    picture = Image.new("RGB", (192, 192), (90, 120, 160))
    words = "so this is my picnic, you silly goose", "never give up today, plot twist lol"
    for seed in range(6):
        drawn = overlay_text(picture, words, style, Random(seed))
        image, clean = np.asarray(drawn.image, int), np.asarray(drawn.clean_image, int)
        assert image.shape[1] == 192 and drawn.text_mask.shape == image.shape[:2]
        assert not (image != clean).any(-1)[~drawn.text_mask].any()  # no text beyond the mask
        assert (image != clean).any(-1)[drawn.text_mask].mean() > 0.95
        boxes = np.zeros_like(drawn.text_mask)
        for left, top, right, bottom in drawn.line_bounds:
            boxes[top:bottom, left:right] = True
        assert not (drawn.text_mask & ~boxes).any()
        assert boxes.mean() < 0.45  # the scene stays in view
        assert (image.shape[0] > 192) == (style == "bar")


def test_boxes_of_the_records_are_those_of_the_lines_as_shares(items):
    meme, row = next(memes.iter_memes("test", DECKS)), drawn(items, "test")[0]
    width, height = meme.overlaid.image.size
    assert len(row.boxes) == len(meme.overlaid.line_bounds)
    for box, line in zip(row.boxes, meme.overlaid.line_bounds, strict=True):
        edges = box.left * width, box.top * height, box.right * width, box.bottom * height
        assert (box.position, box.slot) == (0, "text")
        assert edges == pytest.approx(line)
