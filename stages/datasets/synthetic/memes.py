"""Memes of the synthetic corpus: five labels that depend on text and image together.

The text consists of four phrases (meme_lexicon.py) in any order: a tone (complaint, plain, praise),
a joke or none, an insult of the audience or none, a call to effort or to rest. The relevant factors
of the image are the mood of its weather, and the categories of its place, actor and object
(SLOT_CATEGORIES). Each task depends on both modalities; `compute_true_labels` is the rule. With
probability `meme_label_noise` a label is replaced by another one of its task, all with the same
probability. Every cycle contains all combinations of text and image factors, so that the two
modalities are independent. The test split shows scenes that no other split shows.

Memes show no bicycle and no sleeping actor: a text detector mistakes wheels and the Z of a snore
for text, and inpainting would remove them.

The accuracy ceilings by task are those of the rule that predicts the most probable label given the
inputs. `expected` is computed by enumeration of the generating process, `realised` on the labels of
the generated memes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import product
from random import Random

from stages.datasets.synthetic import scene_renderer, tweet_lexicon
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.datasets.synthetic.config import (
    SlotValues,
    SyntheticConfig,
    build_facts,
    cycle_shuffled,
    enumerate_combinations,
)
from stages.datasets.synthetic.meme_lexicon import TEXT_ATTRIBUTES, compose_phrase
from stages.datasets.synthetic.text_overlay import TEXT_STYLES, OverlaidImage, overlay_text
from stages.shared.data.records import (
    SPLITS,
    DatasetItem,
    ExtraFile,
    ImageBytes,
    MemeRecord,
    SlotBox,
)
from stages.shared.runtime.stage import InputError

CEILING_RULE = (
    "the label most probable in the process given tone, joke, target and call of the text, or "
    "weather, place, actor and object of the picture"
)
TASK_LABELS = {
    "sentiment": ["negative", "neutral", "positive"],
    "humour": ["not_funny", "funny", "very_funny", "hilarious"],
    "sarcasm": ["not_sarcastic", "general", "twisted_meaning", "very_twisted"],
    "offensive": ["not_offensive", "slight", "very_offensive", "hateful_offensive"],
    "motivational": ["not_motivational", "motivational"],
}
TONE_SENTIMENT = {"complaint": -1, "plain": 0, "praise": 1}
# By tone: the level in bad weather, and in any other weather.
SARCASM_LEVELS = {"complaint": (1, 2), "plain": (1, 0), "praise": (3, 0)}
# The category of each slot value. Bicycles and sleeping actors are excluded.
SLOT_CATEGORIES: dict[str, Mapping[str, str | int]] = {
    "weather": tweet_lexicon.WEATHER_SENTIMENT,
    "place": {"mountain": "steep", "forest": "steep", "city": "steep"}
    | {"beach": "flat", "meadow": "flat", "desert": "flat"},
    "actor": {"robot": "odd", "frog": "odd", "penguin": "odd"}
    | {"cat": "cuddly", "bear": "cuddly", "rabbit": "cuddly"},
    "object": {"ladder": "shaky", "kite": "shaky"}
    | {"ball": "steady", "lantern": "steady", "basket": "steady"},
}
EXCLUDED_VALUES = {"object": "bicycle", "activity": "sleeping"}
# tone, joke, target and call of the text; categories of weather, place, actor and object
MemeFactors = tuple
FACTOR_COMBINATIONS: list[MemeFactors] = list(
    product(
        *TEXT_ATTRIBUTES.values(),
        *(sorted(set(categories.values())) for categories in SLOT_CATEGORIES.values()),
    )
)
NUM_TEXT_FACTORS = len(TEXT_ATTRIBUTES)
VISIBLE_FACTORS: dict[str, Callable[[MemeFactors], tuple]] = {
    "text": lambda factors: factors[:NUM_TEXT_FACTORS],
    "picture": lambda factors: factors[NUM_TEXT_FACTORS:],
    "both": lambda factors: factors,
}


@dataclass(frozen=True)
class SyntheticMeme:
    factors: MemeFactors
    scene: SlotValues
    text: str
    overlaid: OverlaidImage  # the image with and without its text, and where the text is


def generate_memes(config: SyntheticConfig) -> Iterator[DatasetItem]:
    """Yield tasks.json, the records of all splits, and ceilings.json.

    Raises InputError if a split has no scene for some combination of categories.
    """
    yield ExtraFile("tasks.json", TASK_LABELS)
    ceilings: dict = {"rule": CEILING_RULE, "metric": "accuracy"}
    for split in SPLITS:
        random, labeled = Random(f"{config.seed} memes {split} labels"), []
        for number, meme in enumerate(iter_memes(split, config)):
            labels = add_label_noise(
                compute_true_labels(meme.factors), config.meme_label_noise, random
            )
            labeled.append((meme.factors, labels))
            yield MemeRecord(
                source=f"{split}-{number}",
                text=meme.text,
                labels=labels,
                image=_encode_jpeg(meme, config.meme_jpeg_quality),
                language="en",
                split=split,
                facts=build_facts(meme.scene),
                boxes=[
                    SlotBox(0, "text", *line) for line in meme.overlaid.compute_relative_bounds()
                ],
            )
        if split != "train":
            ceilings[split] = compute_ceilings(labeled, config.meme_label_noise)
    yield ExtraFile("ceilings.json", ceilings)


def iter_memes(split: str, config: SyntheticConfig) -> Iterator[SyntheticMeme]:
    """Yield the memes of a split in order, before encoding."""
    random = Random(f"{config.seed} memes {split}")
    scenes = group_scenes_by_category(split, config)
    combinations = cycle_shuffled(FACTOR_COMBINATIONS, random)
    styles = cycle_shuffled(TEXT_STYLES, random)
    for _ in range(round(getattr(config, split) * config.meme_ratio)):
        factors = next(combinations)
        scene = random.choice(scenes[factors[NUM_TEXT_FACTORS:]])
        yield render_meme(factors, scene, next(styles), config, random)


def render_meme(
    factors: MemeFactors, scene: SlotValues, style: str, config: SyntheticConfig, random: Random
) -> SyntheticMeme:
    """A scene with four phrases over it that express the text factors."""
    phrases = [
        compose_phrase(attribute, value, random)
        for attribute, value in zip(TEXT_ATTRIBUTES, factors, strict=False)
    ]
    random.shuffle(phrases)
    halves = ", ".join(phrases[:2]), ", ".join(phrases[2:])
    image = scene_renderer.render_scene(scene, random, config.image_size, config.meme_scale).image
    overlaid = overlay_text(image, halves, style, random)
    return SyntheticMeme(factors, scene, ", ".join(phrases), overlaid)


def _encode_jpeg(meme: SyntheticMeme, quality: int) -> ImageBytes:
    file = BytesIO()
    meme.overlaid.image.save(file, "JPEG", quality=quality)
    return ImageBytes(file.getvalue())


def group_scenes_by_category(split: str, config: SyntheticConfig) -> dict[tuple, list[SlotValues]]:
    """The scenes that a split may show, by the categories of their slots.

    Raises InputError if there is none for some combination of categories.
    """
    scenes = defaultdict(list)
    for scene in enumerate_combinations(
        IMAGE_SLOTS, config.held_out_images_fraction, split == "test"
    ):
        if not any(scene[slot] == value for slot, value in EXCLUDED_VALUES.items()):
            categories = tuple(SLOT_CATEGORIES[slot][scene[slot]] for slot in SLOT_CATEGORIES)
            scenes[categories].append(scene)
    if {factors[NUM_TEXT_FACTORS:] for factors in FACTOR_COMBINATIONS} - scenes.keys():
        raise InputError(
            "config/formats.yaml: formats.synthetic.held_out_images_fraction is "
            f"{config.held_out_images_fraction}, which leaves too few scenes for the memes of "
            f"{split}: give a share from 0.05 to 0.9"
        )
    return scenes


def compute_true_labels(factors: MemeFactors) -> dict[str, str]:
    """The label of every task, before noise."""
    tone, joke, target, call, weather, place, actor, object_category = factors
    mood = TONE_SENTIMENT[tone] + weather
    in_bad_weather, in_other_weather = SARCASM_LEVELS[tone]
    levels = {
        "sentiment": 1 + (mood > 0) - (mood < 0),
        "humour": (joke == "told") + (actor == "odd") + (object_category == "shaky"),
        "sarcasm": in_bad_weather if weather < 0 else in_other_weather,
        "offensive": (
            (3 if actor == "cuddly" else 2) if target == "you" else (1 if actor == "odd" else 0)
        ),
        "motivational": int(call == "effort" and place == "steep"),
    }
    return {task: TASK_LABELS[task][level] for task, level in levels.items()}


def add_label_noise(labels: dict[str, str], probability: float, random: Random) -> dict[str, str]:
    """Replace each label with this probability by another label of its task."""
    return {
        task: random.choice([other for other in TASK_LABELS[task] if other != label])
        if random.random() < probability
        else label
        for task, label in labels.items()
    }


def compute_ceilings(labeled: list[tuple[MemeFactors, dict[str, str]]], noise: float) -> dict:
    """{task: {inputs: {expected | realised: accuracy}}}

    The expected accuracy is that of the process, the realised one that on `labeled`, the factors
    and noisy labels of a split.
    """
    return {
        task: {
            inputs: {
                "expected": round(_compute_expected_accuracy(task, inputs, noise), 6),
                "realised": round(_compute_realised_accuracy(task, inputs, labeled), 6),
            }
            for inputs in VISIBLE_FACTORS
        }
        for task in TASK_LABELS
    }


def _compute_expected_accuracy(task: str, inputs: str, noise: float) -> float:
    predictions = compute_bayes_optimal_labels(task, inputs)
    noiseless_accuracy = sum(
        predictions[VISIBLE_FACTORS[inputs](factors)] == compute_true_labels(factors)[task]
        for factors in FACTOR_COMBINATIONS
    ) / len(FACTOR_COMBINATIONS)
    num_other_labels = len(TASK_LABELS[task]) - 1
    return noiseless_accuracy * (1 - noise) + (1 - noiseless_accuracy) * noise / num_other_labels


def _compute_realised_accuracy(
    task: str, inputs: str, labeled: list[tuple[MemeFactors, dict[str, str]]]
) -> float:
    predictions = compute_bayes_optimal_labels(task, inputs)
    num_correct = sum(
        predictions[VISIBLE_FACTORS[inputs](factors)] == labels[task] for factors, labels in labeled
    )
    return num_correct / max(1, len(labeled))


@cache
def compute_bayes_optimal_labels(task: str, inputs: str) -> dict[tuple, str]:
    """Visible factors -> their most probable label; ties go to the first label of the task.

    Noise does not change it, since the true label stays more probable than any other.
    """
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for factors in FACTOR_COMBINATIONS:
        counts[VISIBLE_FACTORS[inputs](factors)][compute_true_labels(factors)[task]] += 1
    return {
        visible: max(TASK_LABELS[task], key=lambda label, counts=label_counts: counts[label])
        for visible, label_counts in counts.items()
    }
