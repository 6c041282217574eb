"""Memes of the sample corpus: five labels that words and picture make together.

The words are four quips (quips.py), in any order: a tone (complaint, plain, praise), a joke or
none, an insult of the reader or none, a call to effort or to rest. Of the picture count the mood of
its weather, and on which of two sides its place, its actor and its object are (SIDES). Each task
needs both; `truth` is the rule. With the chance params' `meme_noise` a label is another one of its
task, each as probable. All combinations of words and sides are dealt as one deck, so that the one
says nothing about the other. The test split shows scenes that no other split shows.

Memes show no bicycle and no sleeper: to a detector of text, wheels and the letters of a snore are
writing, and it would have them painted over.

Ceilings of accuracy by task, of the rule: the label most probable in the process, given what is
seen. `expected` is by enumeration of the process, `realised` on the very labels of the split.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
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
SARCASM_LEVELS = {
    "complaint": (1, 2),
    "plain": (1, 0),
    "praise": (3, 0),
}  # in bad, in other weather
# What a value of a slot counts as. Bicycles and sleepers are left out.
SLOT_CATEGORIES: dict[str, dict[str, str | int]] = {
    "weather": tweet_lexicon.WEATHER_SENTIMENT,
    "place": {"mountain": "steep", "forest": "steep", "city": "steep"}
    | {"beach": "flat", "meadow": "flat", "desert": "flat"},
    "actor": {"robot": "odd", "frog": "odd", "penguin": "odd"}
    | {"cat": "cuddly", "bear": "cuddly", "rabbit": "cuddly"},
    "object": {"ladder": "shaky", "kite": "shaky"}
    | {"ball": "steady", "lantern": "steady", "basket": "steady"},
}
EXCLUDED_VALUES = {"object": "bicycle", "activity": "sleeping"}
MemeFactors = tuple  # tone, joke, target, call of the text; sides of weather, place, actor, object
FACTOR_COMBINATIONS: list[MemeFactors] = list(
    product(
        *TEXT_ATTRIBUTES.values(),
        *(sorted(set(sides.values())) for sides in SLOT_CATEGORIES.values()),
    )
)
NUM_TEXT_FACTORS = len(TEXT_ATTRIBUTES)
VISIBLE_FACTORS: dict[str, Callable[[MemeFactors], tuple]] = {
    "text": lambda card: card[:NUM_TEXT_FACTORS],
    "picture": lambda card: card[NUM_TEXT_FACTORS:],
    "both": lambda card: card,
}


@dataclass(frozen=True)
class SyntheticMeme:
    factors: MemeFactors
    scene: SlotValues
    text: str
    overlaid: OverlaidImage  # the picture with its text and without, and where the text is


def generate_memes(params: SyntheticConfig) -> Iterator[DatasetItem]:
    yield ExtraFile("tasks.json", TASK_LABELS)
    ceilings: dict = {"rule": CEILING_RULE, "metric": "accuracy"}
    for split in SPLITS:
        random, judged = Random(f"{params.seed} memes {split} labels"), []
        for number, meme in enumerate(iter_memes(split, params)):
            labels = add_label_noise(
                compute_true_labels(meme.factors), params.meme_label_noise, random
            )
            judged.append((meme.factors, labels))
            yield MemeRecord(
                source=f"{split}-{number}",
                text=meme.text,
                labels=labels,
                image=_encode_jpeg(meme, params.meme_jpeg_quality),
                language="en",
                split=split,
                facts=build_facts(meme.scene),
                boxes=[
                    SlotBox(0, "text", *line) for line in meme.overlaid.compute_relative_bounds()
                ],
            )
        if split != "train":
            ceilings[split] = compute_ceilings(judged, params.meme_label_noise)
    yield ExtraFile("ceilings.json", ceilings)


def iter_memes(split: str, params: SyntheticConfig) -> Iterator[SyntheticMeme]:
    """The memes of a split in their order, before they become files."""
    random, shown = Random(f"{params.seed} memes {split}"), group_scenes_by_category(split, params)
    cards, styles = cycle_shuffled(FACTOR_COMBINATIONS, random), cycle_shuffled(TEXT_STYLES, random)
    for _ in range(round(getattr(params, split) * params.meme_ratio)):
        card = next(cards)
        scene = random.choice(shown[card[NUM_TEXT_FACTORS:]])
        yield render_meme(card, scene, next(styles), params, random)


def render_meme(
    card: MemeFactors, scene: SlotValues, style: str, params: SyntheticConfig, random: Random
) -> SyntheticMeme:
    """A scene with the words of a card over it."""
    said = [
        compose_phrase(name, value, random)
        for name, value in zip(TEXT_ATTRIBUTES, card, strict=False)
    ]
    random.shuffle(said)
    halves = ", ".join(said[:2]), ", ".join(said[2:])
    picture = scene_renderer.render_scene(scene, random, params.image_size, params.meme_scale).image
    return SyntheticMeme(card, scene, ", ".join(said), overlay_text(picture, halves, style, random))


def _encode_jpeg(meme: SyntheticMeme, quality: int) -> ImageBytes:
    file = BytesIO()
    meme.overlaid.image.save(file, "JPEG", quality=quality)
    return ImageBytes(file.getvalue())


def group_scenes_by_category(split: str, params: SyntheticConfig) -> dict[tuple, list[SlotValues]]:
    """The scenes of a split. Raises WrongInput if it has none for some sides."""
    found = defaultdict(list)
    for scene in enumerate_combinations(
        IMAGE_SLOTS, params.held_out_images_fraction, split == "test"
    ):
        if not any(scene[slot] == value for slot, value in EXCLUDED_VALUES.items()):
            found[tuple(SLOT_CATEGORIES[slot][scene[slot]] for slot in SLOT_CATEGORIES)].append(
                scene
            )
    if {card[NUM_TEXT_FACTORS:] for card in FACTOR_COMBINATIONS} - found.keys():
        raise InputError(
            "params.yaml: formats.synthetic.held_out_images_fraction is "
            f"{params.held_out_images_fraction}, which leaves too few scenes for the memes of "
            f"{split}: give a share from 0.05 to 0.9"
        )
    return found


def compute_true_labels(card: MemeFactors) -> dict[str, str]:
    """The label of every task, before noise."""
    tone, joke, target, call, weather, place, actor, thing = card
    mood = TONE_SENTIMENT[tone] + weather
    in_bad_weather, in_good = SARCASM_LEVELS[tone]
    degrees = {
        "sentiment": 1 + (mood > 0) - (mood < 0),
        "humour": (joke == "told") + (actor == "odd") + (thing == "shaky"),
        "sarcasm": in_bad_weather if weather < 0 else in_good,
        "offensive": (
            (3 if actor == "cuddly" else 2) if target == "you" else (1 if actor == "odd" else 0)
        ),
        "motivational": int(call == "effort" and place == "steep"),
    }
    return {task: TASK_LABELS[task][degree] for task, degree in degrees.items()}


def add_label_noise(labels: dict[str, str], share: float, random: Random) -> dict[str, str]:
    return {
        task: random.choice([other for other in TASK_LABELS[task] if other != label])
        if random.random() < share
        else label
        for task, label in labels.items()
    }


def compute_ceilings(judged: list[tuple[MemeFactors, dict[str, str]]], noise: float) -> dict:
    """{task: {inputs: {expected | realised: accuracy}}} of the process, and of a split's labels."""
    return {
        task: {
            inputs: {
                "expected": round(_compute_expected_accuracy(task, inputs, noise), 6),
                "realised": round(_compute_realised_accuracy(task, inputs, judged), 6),
            }
            for inputs in VISIBLE_FACTORS
        }
        for task in TASK_LABELS
    }


def _compute_expected_accuracy(task: str, inputs: str, noise: float) -> float:
    best = compute_bayes_optimal_labels(task, inputs)
    right = sum(
        best[VISIBLE_FACTORS[inputs](card)] == compute_true_labels(card)[task]
        for card in FACTOR_COMBINATIONS
    ) / len(FACTOR_COMBINATIONS)
    others = len(TASK_LABELS[task]) - 1
    return right * (1 - noise) + (1 - right) * noise / others


def _compute_realised_accuracy(
    task: str, inputs: str, judged: list[tuple[MemeFactors, dict[str, str]]]
) -> float:
    best = compute_bayes_optimal_labels(task, inputs)
    right = sum(best[VISIBLE_FACTORS[inputs](card)] == labels[task] for card, labels in judged)
    return right / max(1, len(judged))


@cache
def compute_bayes_optimal_labels(task: str, inputs: str) -> dict[tuple, str]:
    """What is seen of a card -> its most probable label; of equals the first of the task.

    Noise changes nothing, as long as the true label is more probable than any other.
    """
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for card in FACTOR_COMBINATIONS:
        counts[VISIBLE_FACTORS[inputs](card)][compute_true_labels(card)[task]] += 1
    return {
        key: max(TASK_LABELS[task], key=lambda label, of=found: of[label])
        for key, found in counts.items()
    }
