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
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.datasets.synthetic.config import (
    SlotValues,
    SyntheticConfig,
    build_facts,
    cycle_shuffled,
    enumerate_combinations,
    render_image,
)
from stages.datasets.synthetic.tweet_lexicon import ENTITY_TYPES
from stages.shared.data.records import SPLITS, DatasetItem, ExtraFile, TweetRecord

CEILING_RULE = (
    "the most probable tag sequence given the inputs: the text gives names and families, the "
    "picture the scene and the number of words"
)
FAMILIES = list(tweet_lexicon.ENTITY_SENTENCES)
# The sun shines more often: one type is the best guess without the picture. With equal shares all
# would be equally good, and leaving the open names out better for F1.
WEIGHTED_WEATHER = ["sun"] * 4 + ["rain"] * 3 + ["snow"] * 3 + ["storm"] * 3
NAME_COUNT_WEIGHTS = {0: 4, 1: 6, 2: 10}  # names of a tweet: weight
FAMILY_WEIGHTS = [
    7 if family in ENTITY_TYPES else 13 for family in FAMILIES
]  # 35 % are decided by the text
FAMILY_PROBABILITIES = np.array(FAMILY_WEIGHTS) / sum(FAMILY_WEIGHTS)
PLAIN_SENTENCE_COUNTS = (1, 1, 2, 2, 3)  # sentences of a tweet without names, each as probable
FILLER_PROBABILITY = 0.5  # chance of a filler before the sentences, and of one after them

Span = tuple[int, int]  # places of a name's first word, and of the one after its last
Spans = tuple[Span, ...]
FamilyTypes = tuple[str, ...]  # the type of a name of each of FAMILIES, given a scene
EntitySet = frozenset[tuple[Span, str]]
# Chances of what k names can be, by family or by type: (F,) * k or (T,) * k
LayoutProbabilities = dict[
    tuple[int, Spans], np.ndarray
]  # by number of words and places of the names


@dataclass(frozen=True)
class TweetText:
    """The words of a tweet, where its names are, and the family of each."""

    words: list[str]
    spans: Spans
    families: list[str]

    def get_entities(self, reading: FamilyTypes) -> EntitySet:
        types = [reading[FAMILIES.index(family)] for family in self.families]
        return frozenset(zip(self.spans, types, strict=True))

    def get_tags(self, reading: FamilyTypes) -> list[str]:
        tags = ["O"] * len(self.words)
        for (start, end), kind in self.get_entities(reading):
            tags[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
        return tags


class TweetSampler:
    """What the tweets of one split are drawn from."""

    def __init__(self, split: str, params: SyntheticConfig):
        self.held_out = split == "test"
        self.held_out_share = params.held_out_names_fraction
        self.rule = params.entity_type_rule
        shown = enumerate_combinations(IMAGE_SLOTS, params.held_out_images_fraction, self.held_out)
        self.scenes = {
            weather: [scene for scene in shown if scene["weather"] == weather]
            for weather in IMAGE_SLOTS["weather"]
        }

    def sample_text(self, random: Random) -> TweetText:
        (count,) = random.choices(list(NAME_COUNT_WEIGHTS), list(NAME_COUNT_WEIGHTS.values()))
        families = random.choices(FAMILIES, FAMILY_WEIGHTS, k=count)
        sentences = [random.choice(tweet_lexicon.ENTITY_SENTENCES[family]) for family in families]
        sentences = sentences or random.choices(
            tweet_lexicon.PLAIN_SENTENCES, k=random.choice(PLAIN_SENTENCE_COUNTS)
        )
        words, spans = self._sample_filler(random), []
        for sentence in sentences:
            for word in sentence.split():
                name = self._sample_name(random) if word == "X" else [word]
                spans += [(len(words), len(words) + len(name))] if word == "X" else []
                words += name
            words.append(random.choice(tweet_lexicon.SENTENCE_MARKS))
        return TweetText(words + self._sample_filler(random), tuple(spans), families)

    def _sample_filler(self, random: Random) -> list[str]:
        return (
            random.choice(tweet_lexicon.FILLERS).split()
            if random.random() < FILLER_PROBABILITY
            else []
        )

    def _sample_name(self, random: Random) -> list[str]:
        return tweet_lexicon.compose_name(self.held_out, self.held_out_share, random)

    def get_family_types(self, scene: SlotValues) -> FamilyTypes:
        return tuple(self._get_family_type(family, scene) for family in FAMILIES)

    def _get_family_type(self, family: str, scene: SlotValues) -> str:
        if family in ENTITY_TYPES:
            return family
        slot = family if self.rule == "phrase" else "weather"
        return tweet_lexicon.ENTITY_TYPE_BY_SLOT_VALUE[slot][scene[slot]]

    def compute_family_types_probabilities(self) -> dict[FamilyTypes, float]:
        """The chance of every reading, over the scenes of the split."""
        chances: dict[FamilyTypes, float] = defaultdict(float)
        for weather in WEIGHTED_WEATHER:
            for scene in self.scenes[weather]:
                chance = 1 / len(WEIGHTED_WEATHER) / len(self.scenes[weather])
                chances[self.get_family_types(scene)] += chance
        return chances


def generate_tweets(params: SyntheticConfig) -> Iterator[DatasetItem]:
    ceilings: dict = {"rule": CEILING_RULE, "metric": "f1"}
    for split in SPLITS:
        process, random = TweetSampler(split, params), Random(f"{params.seed} tweets {split}")
        weathers, drawn = cycle_shuffled(WEIGHTED_WEATHER, random), []
        for number in range(round(getattr(params, split) * params.tweet_ratio)):
            scene = random.choice(process.scenes[next(weathers)])
            message, reading = process.sample_text(random), process.get_family_types(scene)
            picture, _ = render_image(scene, 0, params.image_size, random)
            drawn.append((message, reading))
            yield TweetRecord(
                source=f"{split}-{number}",
                words=message.words,
                tags=message.get_tags(reading),
                image=picture,
                language="en",
                split=split,
                facts=build_facts(scene),
            )
        if split != "train":
            ceilings[split] = compute_ceilings(process.compute_family_types_probabilities(), drawn)
    yield ExtraFile("ceilings.json", ceilings)


# ----------------------------------------------------------------------------------------- ceilings
def compute_ceilings(
    readings: dict[FamilyTypes, float], drawn: list[tuple[TweetText, FamilyTypes]]
) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: F1}} of a process with these readings, and of its tweets."""
    found = {
        "text": (_compute_expected_text_f1(readings), _compute_realised_text_f1(readings, drawn)),
        "picture": (_compute_expected_image_f1(readings), _compute_realised_image_f1(drawn)),
        "both": (1.0, 1.0),
    }
    return {
        inputs: {"expected": round(expected, 6), "realised": round(realised, 6)}
        for inputs, (expected, realised) in found.items()
    }


def compute_f1(right: float, named: float, true: float) -> float:
    """Of the entities with the right words and type; 0 where nothing is named."""
    return float(2 * right / (named + true)) if named + true else 0.0


def compute_bayes_optimal_types(
    families: tuple[str, ...], readings: dict[FamilyTypes, float]
) -> tuple[str, ...]:
    """The most probable types of a tweet's names together, from their families alone."""
    chances: dict[tuple[str, ...], float] = defaultdict(float)
    for reading, chance in readings.items():
        chances[tuple(reading[FAMILIES.index(family)] for family in families)] += chance
    return max(sorted(chances), key=chances.__getitem__)


def _compute_expected_text_f1(readings: dict[FamilyTypes, float]) -> float:
    right = true = 0.0
    for count, weight in NAME_COUNT_WEIGHTS.items():
        for places in product(range(len(FAMILIES)), repeat=count):
            chance = (
                weight
                / sum(NAME_COUNT_WEIGHTS.values())
                * FAMILY_PROBABILITIES[list(places)].prod()
            )
            guess = compute_bayes_optimal_types(
                tuple(FAMILIES[place] for place in places), readings
            )
            for reading, of_reading in readings.items():
                hits = sum(reading[p] == kind for p, kind in zip(places, guess, strict=True))
                right += chance * of_reading * hits
            true += chance * count
    return compute_f1(right, true, true)


def _compute_realised_text_f1(
    readings: dict[FamilyTypes, float], drawn: list[tuple[TweetText, FamilyTypes]]
) -> float:
    right = true = 0
    for message, reading in drawn:
        guess = compute_bayes_optimal_types(tuple(message.families), readings)
        entities = message.get_entities(reading)
        right += len(entities & set(zip(message.spans, guess, strict=True)))
        true += len(entities)
    return compute_f1(right, true, true)


def _compute_expected_image_f1(readings: dict[FamilyTypes, float]) -> float:
    right = named = 0.0
    for length, layouts in group_layouts_by_length().items():
        words = sum(chances.sum() for chances in layouts.values())
        for reading, chance in readings.items():
            guess = compute_bayes_optimal_entities(length, reading)
            named += chance * words * len(guess)
            right += chance * _compute_expected_true_positives(guess, layouts, reading)
    true = sum(count * weight for count, weight in NAME_COUNT_WEIGHTS.items()) / sum(
        NAME_COUNT_WEIGHTS.values()
    )
    return compute_f1(right, named, true)


def _compute_realised_image_f1(drawn: list[tuple[TweetText, FamilyTypes]]) -> float:
    right = named = true = 0
    for message, reading in drawn:
        entities = message.get_entities(reading)
        guess = compute_bayes_optimal_entities(len(message.words), reading)
        right, named = right + len(entities & guess), named + len(guess)
        true += len(entities)
    return compute_f1(right, named, true)


@cache
def compute_bayes_optimal_entities(length: int, reading: FamilyTypes) -> EntitySet:
    """The entities of the most probable tag sequence of so many words; a tie names the fewest."""
    best, most = frozenset(), 0.0
    for spans, chances in sorted(
        group_layouts_by_length()[length].items(), key=lambda item: len(item[0])
    ):
        if chances.sum() <= most:  # saves nearly all of the work: no single value is larger
            continue
        typed = sum_by_type(chances, reading)
        if typed.max() > most:
            places = np.unravel_index(typed.argmax(), typed.shape)
            types = [ENTITY_TYPES[place] for place in places]
            best, most = frozenset(zip(spans, types, strict=True)), typed.max()
    return best


def sum_by_type(chances: np.ndarray, reading: FamilyTypes) -> np.ndarray:
    """(F,) * k to (T,) * k: the families of a type added up."""
    is_type = np.array([[kind == one for one in ENTITY_TYPES] for kind in reading], float)  # (F, T)
    for _ in range(chances.ndim):
        chances = np.tensordot(chances, is_type, axes=(0, 0))  # the first axis becomes the last
    return chances


def _compute_expected_true_positives(
    guess: EntitySet, layouts: dict[Spans, np.ndarray], reading: FamilyTypes
) -> float:
    """Expected number of entities of the guess that are true."""
    right = 0.0
    for spans, chances in layouts.items() if guess else ():
        typed = sum_by_type(chances, reading)
        for axis, span in enumerate(spans):
            for place, kind in enumerate(ENTITY_TYPES):
                right += typed.take(place, axis).sum() if (span, kind) in guess else 0.0
    return right


@cache
def group_layouts_by_length() -> dict[int, dict[Spans, np.ndarray]]:
    """Number of words -> places of the names -> chances by family; all chances sum to 1."""
    found: dict[int, dict[Spans, np.ndarray]] = defaultdict(dict)
    for (length, spans), chances in _compute_tweet_layouts().items():
        found[length][spans] = chances
    return found


def _compute_tweet_layouts() -> LayoutProbabilities:
    lengths = Counter(len(filler.split()) for filler in tweet_lexicon.FILLERS)
    filler = _compute_plain_layouts(lengths, FILLER_PROBABILITY) | {
        (0, ()): np.array(1 - FILLER_PROBABILITY)
    }
    plain = _compute_plain_layouts(
        Counter(len(sentence.split()) + 1 for sentence in tweet_lexicon.PLAIN_SENTENCES), 1.0
    )
    named = _compute_named_layouts()
    several = {
        1: plain,
        2: _concatenate_layouts(plain, plain),
        3: _concatenate_layouts(plain, _concatenate_layouts(plain, plain)),
    }
    sentences = {
        0: _mix_layouts(
            [(1 / len(PLAIN_SENTENCE_COUNTS), several[count]) for count in PLAIN_SENTENCE_COUNTS]
        ),
        1: named,
        2: _concatenate_layouts(named, named),
    }
    total = sum(NAME_COUNT_WEIGHTS.values())
    body = _mix_layouts(
        [(weight / total, sentences[count]) for count, weight in NAME_COUNT_WEIGHTS.items()]
    )
    return _concatenate_layouts(_concatenate_layouts(filler, body), filler)


def _compute_plain_layouts(lengths: Counter, chance: float) -> LayoutProbabilities:
    total = sum(lengths.values())
    return {(length, ()): np.array(chance * n / total) for length, n in lengths.items()}


def _compute_named_layouts() -> LayoutProbabilities:
    """A sentence with a name and its mark."""
    found: LayoutProbabilities = defaultdict(lambda: np.zeros(len(FAMILIES)))
    for place, family in enumerate(FAMILIES):
        for sentence, words in product(
            tweet_lexicon.ENTITY_SENTENCES[family], tweet_lexicon.NAME_LENGTHS
        ):
            start, around = sentence.split().index("X"), len(sentence.split())
            chance = (
                FAMILY_PROBABILITIES[place]
                / len(tweet_lexicon.ENTITY_SENTENCES[family])
                / len(tweet_lexicon.NAME_LENGTHS)
            )
            found[around + words, ((start, start + words),)][place] += chance
    return found


def _mix_layouts(parts: list[tuple[float, LayoutProbabilities]]) -> LayoutProbabilities:
    found: LayoutProbabilities = {}
    for weight, layouts in parts:
        for key, chances in layouts.items():
            found[key] = found.get(key, 0) + weight * chances
    return found


def _concatenate_layouts(
    first: LayoutProbabilities, then: LayoutProbabilities
) -> LayoutProbabilities:
    """One after the other."""
    found: LayoutProbabilities = {}
    for (length, spans), chances in first.items():
        for (more, later), others in then.items():
            moved = tuple((start + length, end + length) for start, end in later)
            key = length + more, spans + moved
            found[key] = found.get(key, 0) + np.multiply.outer(chances, others)
    return found
