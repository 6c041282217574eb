"""Tweets of the sample corpus: invented names whose types the words or the picture decide.

A tweet has no, one or two names, each in a sentence of its own. The words tell where the names are
and in which family of sentences each stands. A family is a type (the text decides: about a third of
the names) or a slot of the picture (the text leaves the type open). Params' `tweet_rule` says what
decides the open types: `weather`, one fact for all of them, or `phrase`, the slot that the name's
own family stands for. The test split has scenes and words of names that no other split has.

Ceilings of entity F1, of the decision rule of a tagger that learns likelihoods and is read out by
Viterbi: the most probable tag sequence of the process, given the inputs.
  text     the names and their families are known: of the open types the most probable ones
  picture  the number of words and the scene are known: the most probable of all tag sequences of
           that length, over all sentences, lengths of names and fillers
  both     the types follow from what is known: 1
`expected` is 2 E[right] / (E[named] + E[true]) by enumeration of the process, `realised` the F1 of
the rule on the very tweets of the split.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random

import numpy as np

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
from stages.datasets.synthetic.tweet_lexicon import TYPES
from stages.shared.data.records import SPLITS, Extra, Item, Tweet

RULE = (
    "the most probable tag sequence given the inputs: the text gives names and families, the "
    "picture the scene and the number of words"
)
FAMILIES = list(tweet_lexicon.NAMED)
# The sun shines more often: one type is the best guess without the picture. With equal shares all
# would be equally good, and leaving the open names out better for F1.
WEATHER = ["sun"] * 4 + ["rain"] * 3 + ["snow"] * 3 + ["storm"] * 3
COUNTS = {0: 4, 1: 6, 2: 10}  # names of a tweet: weight
WEIGHTS = [7 if family in TYPES else 13 for family in FAMILIES]  # 35 % are decided by the text
SHARES = np.array(WEIGHTS) / sum(WEIGHTS)
PLAIN_COUNTS = (1, 1, 2, 2, 3)  # sentences of a tweet without names, each as probable
FILLED = 0.5  # chance of a filler before the sentences, and of one after them

Span = tuple[int, int]  # places of a name's first word, and of the one after its last
Spans = tuple[Span, ...]
Reading = tuple[str, ...]  # the type of a name of each of FAMILIES, given a scene
Entities = frozenset[tuple[Span, str]]
# Chances of what k names can be, by family or by type: (F,) * k or (T,) * k
Layouts = dict[tuple[int, Spans], np.ndarray]  # by number of words and places of the names


@dataclass(frozen=True)
class Message:
    """The words of a tweet, where its names are, and the family of each."""

    words: list[str]
    spans: Spans
    families: list[str]

    def entities(self, reading: Reading) -> Entities:
        types = [reading[FAMILIES.index(family)] for family in self.families]
        return frozenset(zip(self.spans, types, strict=True))

    def tags(self, reading: Reading) -> list[str]:
        tags = ["O"] * len(self.words)
        for (start, end), kind in self.entities(reading):
            tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
        return tags


class Process:
    """What the tweets of one split are drawn from."""

    def __init__(self, split: str, params: Params):
        self.held_out = split == "test"
        self.share_of_names = params.held_out_names
        self.rule = params.tweet_rule
        shown = combinations(PICTURE, params.held_out_pictures, self.held_out)
        self.scenes = {
            weather: [scene for scene in shown if scene["weather"] == weather]
            for weather in PICTURE["weather"]
        }

    def message(self, random: Random) -> Message:
        (count,) = random.choices(list(COUNTS), list(COUNTS.values()))
        families = random.choices(FAMILIES, WEIGHTS, k=count)
        sentences = [random.choice(tweet_lexicon.NAMED[family]) for family in families]
        sentences = sentences or random.choices(tweet_lexicon.PLAIN, k=random.choice(PLAIN_COUNTS))
        words, spans = self._filler(random), []
        for sentence in sentences:
            for word in sentence.split():
                name = self._name(random) if word == "X" else [word]
                spans += [(len(words), len(words) + len(name))] if word == "X" else []
                words += name
            words.append(random.choice(tweet_lexicon.MARKS))
        return Message(words + self._filler(random), tuple(spans), families)

    def _filler(self, random: Random) -> list[str]:
        return random.choice(tweet_lexicon.FILLERS).split() if random.random() < FILLED else []

    def _name(self, random: Random) -> list[str]:
        return tweet_lexicon.name(self.held_out, self.share_of_names, random)

    def reading(self, scene: Values) -> Reading:
        return tuple(self._type(family, scene) for family in FAMILIES)

    def _type(self, family: str, scene: Values) -> str:
        if family in TYPES:
            return family
        slot = family if self.rule == "phrase" else "weather"
        return tweet_lexicon.READ[slot][scene[slot]]

    def readings(self) -> dict[Reading, float]:
        """The chance of every reading, over the scenes of the split."""
        chances: dict[Reading, float] = defaultdict(float)
        for weather in WEATHER:
            for scene in self.scenes[weather]:
                chance = 1 / len(WEATHER) / len(self.scenes[weather])
                chances[self.reading(scene)] += chance
        return chances


def read(params: Params) -> Iterator[Item]:
    ceilings: dict = {"rule": RULE, "metric": "f1"}
    for split in SPLITS:
        process, random = Process(split, params), Random(f"{params.seed} tweets {split}")
        weathers, drawn = dealt(WEATHER, random), []
        for number in range(round(getattr(params, split) * params.tweet_share)):
            scene = random.choice(process.scenes[next(weathers)])
            message, reading = process.message(random), process.reading(scene)
            picture, _ = picture_of(scene, 0, params.size, random)
            drawn.append((message, reading))
            yield Tweet(
                source=f"{split}-{number}",
                words=message.words,
                tags=message.tags(reading),
                picture=picture,
                language="en",
                split=split,
                facts=facts_of(scene),
            )
        if split != "train":
            ceilings[split] = ceilings_of(process.readings(), drawn)
    yield Extra("ceilings.json", ceilings)


# ----------------------------------------------------------------------------------------- ceilings
def ceilings_of(
    readings: dict[Reading, float], drawn: list[tuple[Message, Reading]]
) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: F1}} of a process with these readings, and of its tweets."""
    found = {
        "text": (_text_expected(readings), _text_realised(readings, drawn)),
        "picture": (_picture_expected(readings), _picture_realised(drawn)),
        "both": (1.0, 1.0),
    }
    return {
        inputs: {"expected": round(expected, 6), "realised": round(realised, 6)}
        for inputs, (expected, realised) in found.items()
    }


def f1(right: float, named: float, true: float) -> float:
    """Of the entities with the right words and type; 0 where nothing is named."""
    return float(2 * right / (named + true)) if named + true else 0.0


def best_types(families: tuple[str, ...], readings: dict[Reading, float]) -> tuple[str, ...]:
    """The most probable types of a tweet's names together, from their families alone."""
    chances: dict[tuple[str, ...], float] = defaultdict(float)
    for reading, chance in readings.items():
        chances[tuple(reading[FAMILIES.index(family)] for family in families)] += chance
    return max(sorted(chances), key=chances.__getitem__)


def _text_expected(readings: dict[Reading, float]) -> float:
    right = true = 0.0
    for count, weight in COUNTS.items():
        for places in product(range(len(FAMILIES)), repeat=count):
            chance = weight / sum(COUNTS.values()) * SHARES[list(places)].prod()
            guess = best_types(tuple(FAMILIES[place] for place in places), readings)
            for reading, of_reading in readings.items():
                hits = sum(reading[p] == kind for p, kind in zip(places, guess, strict=True))
                right += chance * of_reading * hits
            true += chance * count
    return f1(right, true, true)


def _text_realised(readings: dict[Reading, float], drawn: list[tuple[Message, Reading]]) -> float:
    right = true = 0
    for message, reading in drawn:
        guess = best_types(tuple(message.families), readings)
        entities = message.entities(reading)
        right += len(entities & set(zip(message.spans, guess, strict=True)))
        true += len(entities)
    return f1(right, true, true)


def _picture_expected(readings: dict[Reading, float]) -> float:
    right = named = 0.0
    for length, layouts in by_length().items():
        words = sum(chances.sum() for chances in layouts.values())
        for reading, chance in readings.items():
            guess = best_sequence(length, reading)
            named += chance * words * len(guess)
            right += chance * _right(guess, layouts, reading)
    true = sum(count * weight for count, weight in COUNTS.items()) / sum(COUNTS.values())
    return f1(right, named, true)


def _picture_realised(drawn: list[tuple[Message, Reading]]) -> float:
    right = named = true = 0
    for message, reading in drawn:
        entities = message.entities(reading)
        guess = best_sequence(len(message.words), reading)
        right, named = right + len(entities & guess), named + len(guess)
        true += len(entities)
    return f1(right, named, true)


@cache
def best_sequence(length: int, reading: Reading) -> Entities:
    """The entities of the most probable tag sequence of so many words; a tie names the fewest."""
    best, most = frozenset(), 0.0
    for spans, chances in sorted(by_length()[length].items(), key=lambda item: len(item[0])):
        if chances.sum() <= most:  # saves nearly all of the work: no single value is larger
            continue
        typed = by_type(chances, reading)
        if typed.max() > most:
            places = np.unravel_index(typed.argmax(), typed.shape)
            types = [TYPES[place] for place in places]
            best, most = frozenset(zip(spans, types, strict=True)), typed.max()
    return best


def by_type(chances: np.ndarray, reading: Reading) -> np.ndarray:
    """(F,) * k to (T,) * k: the families of a type added up."""
    is_type = np.array([[kind == one for one in TYPES] for kind in reading], float)  # (F, T)
    for _ in range(chances.ndim):
        chances = np.tensordot(chances, is_type, axes=(0, 0))  # the first axis becomes the last
    return chances


def _right(guess: Entities, layouts: dict[Spans, np.ndarray], reading: Reading) -> float:
    """Expected number of entities of the guess that are true."""
    right = 0.0
    for spans, chances in layouts.items() if guess else ():
        typed = by_type(chances, reading)
        for axis, span in enumerate(spans):
            for place, kind in enumerate(TYPES):
                right += typed.take(place, axis).sum() if (span, kind) in guess else 0.0
    return right


@cache
def by_length() -> dict[int, dict[Spans, np.ndarray]]:
    """Number of words -> places of the names -> chances by family; all chances sum to 1."""
    found: dict[int, dict[Spans, np.ndarray]] = defaultdict(dict)
    for (length, spans), chances in _tweets().items():
        found[length][spans] = chances
    return found


def _tweets() -> Layouts:
    lengths = Counter(len(filler.split()) for filler in tweet_lexicon.FILLERS)
    filler = _plain(lengths, FILLED) | {(0, ()): np.array(1 - FILLED)}
    plain = _plain(Counter(len(sentence.split()) + 1 for sentence in tweet_lexicon.PLAIN), 1.0)
    named = _named()
    several = {1: plain, 2: _joined(plain, plain), 3: _joined(plain, _joined(plain, plain))}
    sentences = {
        0: _weighted([(1 / len(PLAIN_COUNTS), several[count]) for count in PLAIN_COUNTS]),
        1: named,
        2: _joined(named, named),
    }
    total = sum(COUNTS.values())
    body = _weighted([(weight / total, sentences[count]) for count, weight in COUNTS.items()])
    return _joined(_joined(filler, body), filler)


def _plain(lengths: Counter, chance: float) -> Layouts:
    total = sum(lengths.values())
    return {(length, ()): np.array(chance * n / total) for length, n in lengths.items()}


def _named() -> Layouts:
    """A sentence with a name and its mark."""
    found: Layouts = defaultdict(lambda: np.zeros(len(FAMILIES)))
    for place, family in enumerate(FAMILIES):
        for sentence, words in product(tweet_lexicon.NAMED[family], tweet_lexicon.NAME_LENGTHS):
            start, around = sentence.split().index("X"), len(sentence.split())
            chance = (
                SHARES[place] / len(tweet_lexicon.NAMED[family]) / len(tweet_lexicon.NAME_LENGTHS)
            )
            found[around + words, ((start, start + words),)][place] += chance
    return found


def _weighted(parts: list[tuple[float, Layouts]]) -> Layouts:
    found: Layouts = {}
    for weight, layouts in parts:
        for key, chances in layouts.items():
            found[key] = found.get(key, 0) + weight * chances
    return found


def _joined(first: Layouts, then: Layouts) -> Layouts:
    """One after the other."""
    found: Layouts = {}
    for (length, spans), chances in first.items():
        for (more, later), others in then.items():
            moved = tuple((start + length, end + length) for start, end in later)
            key = length + more, spans + moved
            found[key] = found.get(key, 0) + np.multiply.outer(chances, others)
    return found
