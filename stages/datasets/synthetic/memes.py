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
from stages.datasets.synthetic.article_lexicon import PICTURE
from stages.datasets.synthetic.config import Params, Values, combinations, dealt, facts_of
from stages.datasets.synthetic.meme_lexicon import ATTRIBUTES, quip
from stages.datasets.synthetic.text_overlay import STYLES, Overlaid, overlay
from stages.shared.data.records import SPLITS, Box, Extra, Item, Meme, Picture
from stages.shared.runtime.stage import WrongInput

RULE = (
    "the label most probable in the process given tone, joke, target and call of the text, or "
    "weather, place, actor and object of the picture"
)
TASKS = {
    "sentiment": ["negative", "neutral", "positive"],
    "humour": ["not_funny", "funny", "very_funny", "hilarious"],
    "sarcasm": ["not_sarcastic", "general", "twisted_meaning", "very_twisted"],
    "offensive": ["not_offensive", "slight", "very_offensive", "hateful_offensive"],
    "motivational": ["not_motivational", "motivational"],
}
TONE = {"complaint": -1, "plain": 0, "praise": 1}
SARCASM = {"complaint": (1, 2), "plain": (1, 0), "praise": (3, 0)}  # in bad, in other weather
# What a value of a slot counts as. Bicycles and sleepers are left out.
SIDES: dict[str, dict[str, str | int]] = {
    "weather": tweet_lexicon.WEATHER_MOOD,
    "place": {"mountain": "steep", "forest": "steep", "city": "steep"}
    | {"beach": "flat", "meadow": "flat", "desert": "flat"},
    "actor": {"robot": "odd", "frog": "odd", "penguin": "odd"}
    | {"cat": "cuddly", "bear": "cuddly", "rabbit": "cuddly"},
    "object": {"ladder": "shaky", "kite": "shaky"}
    | {"ball": "steady", "lantern": "steady", "basket": "steady"},
}
LEFT_OUT = {"object": "bicycle", "activity": "sleeping"}
Card = tuple  # tone, joke, target, call of the text; sides of weather, place, actor, object
CARDS: list[Card] = list(
    product(*ATTRIBUTES.values(), *(sorted(set(sides.values())) for sides in SIDES.values()))
)
OF_TEXT = len(ATTRIBUTES)
SEEN: dict[str, Callable[[Card], tuple]] = {
    "text": lambda card: card[:OF_TEXT],
    "picture": lambda card: card[OF_TEXT:],
    "both": lambda card: card,
}


@dataclass(frozen=True)
class Drawn:
    card: Card
    scene: Values
    text: str
    overlaid: Overlaid  # the picture with its text and without, and where the text is


def read(params: Params) -> Iterator[Item]:
    yield Extra("tasks.json", TASKS)
    ceilings: dict = {"rule": RULE, "metric": "accuracy"}
    for split in SPLITS:
        random, judged = Random(f"{params.seed} memes {split} labels"), []
        for number, meme in enumerate(memes(split, params)):
            labels = noisy(truth(meme.card), params.meme_noise, random)
            judged.append((meme.card, labels))
            yield Meme(
                source=f"{split}-{number}",
                text=meme.text,
                labels=labels,
                picture=_file(meme, params.meme_quality),
                language="en",
                split=split,
                facts=facts_of(meme.scene),
                boxes=[Box(0, "text", *line) for line in meme.overlaid.shares()],
            )
        if split != "train":
            ceilings[split] = ceilings_of(judged, params.meme_noise)
    yield Extra("ceilings.json", ceilings)


def memes(split: str, params: Params) -> Iterator[Drawn]:
    """The memes of a split in their order, before they become files."""
    random, shown = Random(f"{params.seed} memes {split}"), scenes_by_sides(split, params)
    cards, styles = dealt(CARDS, random), dealt(STYLES, random)
    for _ in range(round(getattr(params, split) * params.meme_share)):
        card = next(cards)
        scene = random.choice(shown[card[OF_TEXT:]])
        yield draw_meme(card, scene, next(styles), params, random)


def draw_meme(card: Card, scene: Values, style: str, params: Params, random: Random) -> Drawn:
    """A scene with the words of a card over it."""
    said = [quip(name, value, random) for name, value in zip(ATTRIBUTES, card, strict=False)]
    random.shuffle(said)
    halves = ", ".join(said[:2]), ", ".join(said[2:])
    picture = scene_renderer.draw(scene, random, params.size, params.meme_zoom).image
    return Drawn(card, scene, ", ".join(said), overlay(picture, halves, style, random))


def _file(meme: Drawn, quality: int) -> Picture:
    file = BytesIO()
    meme.overlaid.image.save(file, "JPEG", quality=quality)
    return Picture(file.getvalue())


def scenes_by_sides(split: str, params: Params) -> dict[tuple, list[Values]]:
    """The scenes of a split. Raises WrongInput if it has none for some sides."""
    found = defaultdict(list)
    for scene in combinations(PICTURE, params.held_out_pictures, split == "test"):
        if not any(scene[slot] == value for slot, value in LEFT_OUT.items()):
            found[tuple(SIDES[slot][scene[slot]] for slot in SIDES)].append(scene)
    if {card[OF_TEXT:] for card in CARDS} - found.keys():
        raise WrongInput(
            f"params.yaml: formats.synthetic.held_out_pictures is {params.held_out_pictures}, which "
            f"leaves too few scenes for the memes of {split}: give a share from 0.05 to 0.9"
        )
    return found


def truth(card: Card) -> dict[str, str]:
    """The label of every task, before noise."""
    tone, joke, target, call, weather, place, actor, thing = card
    mood = TONE[tone] + weather
    in_bad_weather, in_good = SARCASM[tone]
    degrees = {
        "sentiment": 1 + (mood > 0) - (mood < 0),
        "humour": (joke == "told") + (actor == "odd") + (thing == "shaky"),
        "sarcasm": in_bad_weather if weather < 0 else in_good,
        "offensive": (
            (3 if actor == "cuddly" else 2) if target == "you" else (1 if actor == "odd" else 0)
        ),
        "motivational": int(call == "effort" and place == "steep"),
    }
    return {task: TASKS[task][degree] for task, degree in degrees.items()}


def noisy(labels: dict[str, str], share: float, random: Random) -> dict[str, str]:
    return {
        task: random.choice([other for other in TASKS[task] if other != label])
        if random.random() < share
        else label
        for task, label in labels.items()
    }


def ceilings_of(judged: list[tuple[Card, dict[str, str]]], noise: float) -> dict:
    """{task: {inputs: {expected | realised: accuracy}}} of the process, and of a split's labels."""
    return {
        task: {
            inputs: {
                "expected": round(_expected(task, inputs, noise), 6),
                "realised": round(_realised(task, inputs, judged), 6),
            }
            for inputs in SEEN
        }
        for task in TASKS
    }


def _expected(task: str, inputs: str, noise: float) -> float:
    best = best_labels(task, inputs)
    right = sum(best[SEEN[inputs](card)] == truth(card)[task] for card in CARDS) / len(CARDS)
    others = len(TASKS[task]) - 1
    return right * (1 - noise) + (1 - right) * noise / others


def _realised(task: str, inputs: str, judged: list[tuple[Card, dict[str, str]]]) -> float:
    best = best_labels(task, inputs)
    right = sum(best[SEEN[inputs](card)] == labels[task] for card, labels in judged)
    return right / max(1, len(judged))


@cache
def best_labels(task: str, inputs: str) -> dict[tuple, str]:
    """What is seen of a card -> its most probable label; of equals the first of the task.

    Noise changes nothing, as long as the true label is more probable than any other.
    """
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for card in CARDS:
        counts[SEEN[inputs](card)][truth(card)[task]] += 1
    return {
        key: max(TASKS[task], key=lambda label, of=found: of[label])
        for key, found in counts.items()
    }
