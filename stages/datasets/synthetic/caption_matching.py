"""Captioned pictures as memes: which slots of its picture does a caption tell rightly?

MM-ORIENT on pairs that are no memes: no words over the picture, sentences instead of quips. A task
is a slot of the picture; in half of the captions it is told wrongly. Text or picture alone say
nothing of it: the ceiling of either is a coin's, that of both 1. The test split shows scenes that
no other split shows.
"""

from collections import Counter
from collections.abc import Iterator
from random import Random

from stages.datasets.synthetic import article_lexicon
from stages.datasets.synthetic.article_lexicon import PICTURE
from stages.datasets.synthetic.config import Params, Values, combinations, facts_of, picture_of
from stages.shared.data.records import SPLITS, Extra, Item, Meme

RULE = "the caption and the picture compared slot by slot; from one of them alone a coin's guess"
LABELS = ["wrong", "right"]


def read(params: Params) -> Iterator[Item]:
    yield Extra("tasks.json", dict.fromkeys(PICTURE, LABELS))
    ceilings: dict = {"rule": RULE, "metric": "accuracy"}
    for split in SPLITS:
        random, judged = Random(f"{params.seed} checks {split}"), []
        scenes = combinations(PICTURE, params.held_out_pictures, split == "test")
        for number in range(round(getattr(params, split) * params.meme_share)):
            scene = random.choice(scenes)
            told, labels = tell(scene, random)
            judged.append(labels)
            picture, _ = picture_of(scene, 0, params.size, random)
            yield Meme(
                source=f"{split}-{number}",
                text=article_lexicon.caption(told, random),
                labels=labels,
                picture=picture,
                language="en",
                split=split,
                facts=facts_of(scene),
            )
        if split != "train":
            ceilings[split] = {slot: ceilings_of([one[slot] for one in judged]) for slot in PICTURE}
    yield Extra("ceilings.json", ceilings)


def tell(scene: Values, random: Random) -> tuple[Values, dict[str, str]]:
    """What a caption says of a scene, and whether each slot of it is right."""
    told, labels = {}, {}
    for slot, value in scene.items():
        labels[slot] = random.choice(LABELS)
        others = [other for other in PICTURE[slot] if other != value]
        told[slot] = value if labels[slot] == "right" else random.choice(others)
    return told, labels


def ceilings_of(labels: list[str]) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: accuracy}} of a slot; a coin has the better side realised."""
    coin = max(Counter(labels).values(), default=0) / max(1, len(labels))
    alone = {"expected": 0.5, "realised": round(coin, 6)}
    return {"text": alone, "picture": alone, "both": {"expected": 1.0, "realised": 1.0}}
