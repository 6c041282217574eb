"""Posts of the sample corpus: a sentiment that words and picture make together.

The words have a mood (negative, neutral, positive) and a tone (emphatic or soft); the picture has a
mood, the sign of what its weather and its place add up to. The label is the mood of both: where one
is neutral the other decides, and where they are opposite, the words if they are emphatic, else the
picture. The test split shows scenes that no other split shows.

Ceilings of accuracy, of the rule: the label most probable in the process, given what is seen.
`expected` is by enumeration of the process, `realised` on the very posts of the split.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from random import Random

from stages.datasets.synthetic import tweet_lexicon
from stages.datasets.synthetic.article_lexicon import PICTURE
from stages.datasets.synthetic.config import (
    Params,
    Values,
    combinations,
    dealt,
    facts_of,
    picture_of,
)
from stages.shared.data.records import SPLITS, Extra, Item, Post

RULE = "the label most probable in the process given the mood and tone of the text, or the scene"
MOODS = ("negative", "neutral", "positive")
# Neutral is more frequent: without the other side one label is the best guess.
DECK = ["negative"] * 3 + ["neutral"] * 4 + ["positive"] * 3
Card = tuple[str, str, str]  # mood and tone of the text, mood of the picture
CARDS: list[Card] = list(product(DECK, tweet_lexicon.TONES, DECK))
SEEN: dict[str, Callable[[Card], tuple]] = {
    "text": lambda card: card[:2],
    "picture": lambda card: card[2:],
    "both": lambda card: card,
}


def read(params: Params) -> Iterator[Item]:
    ceilings: dict = {"rule": RULE, "metric": "accuracy"}
    for split in SPLITS:
        random, scenes = Random(f"{params.seed} posts {split}"), scenes_by_mood(split, params)
        cards, drawn = dealt(CARDS, random), []
        for number in range(round(getattr(params, split) * params.post_share)):
            mood, tone, of_picture = card = next(cards)
            scene = random.choice(scenes[of_picture])
            picture, _ = picture_of(scene, 0, params.size, random)
            drawn.append(card)
            yield Post(
                source=f"{split}-{number}",
                text=tweet_lexicon.statement(mood, tone, random),
                label=label(*card),
                picture=picture,
                language="en",
                split=split,
                facts=facts_of(scene),
            )
        if split != "train":
            ceilings[split] = ceilings_of(drawn)
    yield Extra("ceilings.json", ceilings)


def scenes_by_mood(split: str, params: Params) -> dict[str, list[Values]]:
    found: dict[str, list[Values]] = {mood: [] for mood in MOODS}
    for scene in combinations(PICTURE, params.held_out_pictures, split == "test"):
        found[mood_of(scene)].append(scene)
    return found


def mood_of(scene: Values) -> str:
    total = tweet_lexicon.WEATHER_MOOD[scene["weather"]] + tweet_lexicon.PLACE_MOOD[scene["place"]]
    return MOODS[1 + (total > 0) - (total < 0)]


def label(mood: str, tone: str, of_picture: str) -> str:
    if mood == "neutral":
        return of_picture
    return mood if tone == "emphatic" or of_picture == "neutral" else of_picture


def ceilings_of(drawn: list[Card]) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: accuracy}} of the process, and of the posts of a split."""
    return {
        inputs: {
            "expected": round(_accuracy(seen, CARDS), 6),
            "realised": round(_accuracy(seen, drawn), 6),
        }
        for inputs, seen in SEEN.items()
    }


def _accuracy(seen: Callable[[Card], tuple], cards: list[Card]) -> float:
    best = best_labels(seen)
    return sum(best[seen(card)] == label(*card) for card in cards) / len(cards)


def best_labels(seen: Callable[[Card], tuple]) -> dict[tuple, str]:
    """What is seen of a card -> its most probable label."""
    counts: dict[tuple, dict[str, int]] = defaultdict(lambda: dict.fromkeys(MOODS, 0))
    for card in CARDS:
        counts[seen(card)][label(*card)] += 1
    return {key: max(MOODS, key=found.__getitem__) for key, found in counts.items()}
