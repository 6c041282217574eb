"""Tweets of the synthetic corpus: invented names whose types depend on the text or the image.

A tweet has zero, one or two names, each in a sentence of its own. The text determines where the
names are and the family of each name's sentence. A family is either an entity type, which the text
decides (about a third of the names), or an image slot, if the text leaves the type open. Open types
are decided by `entity_type_rule`: by the weather for all of them (`weather`), or by the slot of the
name's own family (`phrase`). The test split has scenes and name words that no other split has.

The ceilings are entity F1 scores of the rule of a likelihood-trained tagger with Viterbi decoding:
the most probable tag sequence of the generating process, given the inputs.
  text     names and families are known: the most probable types of the open names
  picture  the number of words and the scene are known: the most probable tag sequence of that
           length, over all sentences, name lengths and fillers
  both     the types follow from the inputs: 1
`expected` is 2 E[true positives] / (E[predicted] + E[true]) by enumeration of the process,
`realised` the F1 of the rule on the generated tweets of the split.
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
# Sun is more frequent, so that one type is the best guess without the image. If all were equally
# frequent, predicting no open name at all would give a higher F1.
WEIGHTED_WEATHER = ["sun"] * 4 + ["rain"] * 3 + ["snow"] * 3 + ["storm"] * 3
NAME_COUNT_WEIGHTS = {0: 4, 1: 6, 2: 10}  # number of names in a tweet: weight
# The text decides the type of 35 % of the names.
FAMILY_WEIGHTS = [7 if family in ENTITY_TYPES else 13 for family in FAMILIES]
FAMILY_PROBABILITIES = np.array(FAMILY_WEIGHTS) / sum(FAMILY_WEIGHTS)
PLAIN_SENTENCE_COUNTS = (1, 1, 2, 2, 3)  # of a tweet without names, all equally probable
FILLER_PROBABILITY = 0.5  # before the sentences, and again after them

Span = tuple[int, int]  # index of a name's first word, and of the word after the name
Spans = tuple[Span, ...]
FamilyTypes = tuple[str, ...]  # entity type of each of FAMILIES, given a scene
EntitySet = frozenset[tuple[Span, str]]
# By number of words and spans of the k names: the probabilities of the names' families, (F,) * k
LayoutProbabilities = dict[tuple[int, Spans], np.ndarray]


@dataclass(frozen=True)
class TweetText:
    """The words of a tweet, the spans of its names, and the family of each name."""

    words: list[str]
    spans: Spans
    families: list[str]

    def get_entities(self, family_types: FamilyTypes) -> EntitySet:
        types = [family_types[FAMILIES.index(family)] for family in self.families]
        return frozenset(zip(self.spans, types, strict=True))

    def get_tags(self, family_types: FamilyTypes) -> list[str]:
        tags = ["O"] * len(self.words)
        for (start, end), entity_type in self.get_entities(family_types):
            tags[start:end] = [f"B-{entity_type}"] + [f"I-{entity_type}"] * (end - start - 1)
        return tags


class TweetSampler:
    """Samples the texts of one split, and knows its scenes by weather."""

    def __init__(self, split: str, config: SyntheticConfig):
        self.held_out = split == "test"
        self.held_out_fraction = config.held_out_names_fraction
        self.rule = config.entity_type_rule
        scenes = enumerate_combinations(IMAGE_SLOTS, config.held_out_images_fraction, self.held_out)
        self.scenes = {
            weather: [scene for scene in scenes if scene["weather"] == weather]
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
        return tweet_lexicon.compose_name(self.held_out, self.held_out_fraction, random)

    def get_family_types(self, scene: SlotValues) -> FamilyTypes:
        return tuple(self._get_family_type(family, scene) for family in FAMILIES)

    def _get_family_type(self, family: str, scene: SlotValues) -> str:
        if family in ENTITY_TYPES:
            return family
        slot = family if self.rule == "phrase" else "weather"
        return tweet_lexicon.ENTITY_TYPE_BY_SLOT_VALUE[slot][scene[slot]]

    def compute_family_types_probabilities(self) -> dict[FamilyTypes, float]:
        """The probability of each assignment of types to families, over the scenes of the split."""
        probabilities: dict[FamilyTypes, float] = defaultdict(float)
        for weather in WEIGHTED_WEATHER:
            for scene in self.scenes[weather]:
                probability = 1 / len(WEIGHTED_WEATHER) / len(self.scenes[weather])
                probabilities[self.get_family_types(scene)] += probability
        return probabilities


def generate_tweets(config: SyntheticConfig) -> Iterator[DatasetItem]:
    """Yield the records of all splits, then ceilings.json."""
    ceilings: dict = {"rule": CEILING_RULE, "metric": "f1"}
    for split in SPLITS:
        sampler, random = TweetSampler(split, config), Random(f"{config.seed} tweets {split}")
        weathers, tweets = cycle_shuffled(WEIGHTED_WEATHER, random), []
        for number in range(round(getattr(config, split) * config.tweet_ratio)):
            scene = random.choice(sampler.scenes[next(weathers)])
            text, family_types = sampler.sample_text(random), sampler.get_family_types(scene)
            image, _ = render_image(scene, 0, config.image_size, random)
            tweets.append((text, family_types))
            yield TweetRecord(
                source=f"{split}-{number}",
                words=text.words,
                tags=text.get_tags(family_types),
                image=image,
                language="en",
                split=split,
                facts=build_facts(scene),
            )
        if split != "train":
            ceilings[split] = compute_ceilings(sampler.compute_family_types_probabilities(), tweets)
    yield ExtraFile("ceilings.json", ceilings)


# ----------------------------------------------------------------------------------------- ceilings
def compute_ceilings(
    probabilities: dict[FamilyTypes, float], tweets: list[tuple[TweetText, FamilyTypes]]
) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: F1}}

    probabilities: `TweetSampler.compute_family_types_probabilities`, for the expected F1
    tweets: the generated texts with the types of their scenes, for the realised F1
    """
    ceilings = {
        "text": (
            _compute_expected_text_f1(probabilities),
            _compute_realised_text_f1(probabilities, tweets),
        ),
        "picture": (_compute_expected_image_f1(probabilities), _compute_realised_image_f1(tweets)),
        "both": (1.0, 1.0),
    }
    return {
        inputs: {"expected": round(expected, 6), "realised": round(realised, 6)}
        for inputs, (expected, realised) in ceilings.items()
    }


def compute_f1(true_positives: float, num_predicted: float, num_true: float) -> float:
    """F1 of entities with the right words and type; 0 if none is predicted or true."""
    total = num_predicted + num_true
    return float(2 * true_positives / total) if total else 0.0


def compute_bayes_optimal_types(
    families: tuple[str, ...], probabilities: dict[FamilyTypes, float]
) -> tuple[str, ...]:
    """The most probable joint types of a tweet's names, given their families only."""
    by_types: dict[tuple[str, ...], float] = defaultdict(float)
    for family_types, probability in probabilities.items():
        by_types[tuple(family_types[FAMILIES.index(family)] for family in families)] += probability
    return max(sorted(by_types), key=by_types.__getitem__)


def _compute_expected_text_f1(probabilities: dict[FamilyTypes, float]) -> float:
    true_positives = num_true = 0.0
    for count, weight in NAME_COUNT_WEIGHTS.items():
        for indices in product(range(len(FAMILIES)), repeat=count):
            families_probability = (
                weight
                / sum(NAME_COUNT_WEIGHTS.values())
                * FAMILY_PROBABILITIES[list(indices)].prod()
            )
            prediction = compute_bayes_optimal_types(
                tuple(FAMILIES[index] for index in indices), probabilities
            )
            for family_types, probability in probabilities.items():
                num_correct = sum(
                    family_types[index] == entity_type
                    for index, entity_type in zip(indices, prediction, strict=True)
                )
                true_positives += families_probability * probability * num_correct
            num_true += families_probability * count
    return compute_f1(true_positives, num_true, num_true)


def _compute_realised_text_f1(
    probabilities: dict[FamilyTypes, float], tweets: list[tuple[TweetText, FamilyTypes]]
) -> float:
    true_positives = num_true = 0
    for text, family_types in tweets:
        types = compute_bayes_optimal_types(tuple(text.families), probabilities)
        entities = text.get_entities(family_types)
        true_positives += len(entities & set(zip(text.spans, types, strict=True)))
        num_true += len(entities)
    return compute_f1(true_positives, num_true, num_true)


def _compute_expected_image_f1(probabilities: dict[FamilyTypes, float]) -> float:
    true_positives = num_predicted = 0.0
    for length, layouts in group_layouts_by_length().items():
        length_probability = sum(layout.sum() for layout in layouts.values())
        for family_types, probability in probabilities.items():
            prediction = compute_bayes_optimal_entities(length, family_types)
            num_predicted += probability * length_probability * len(prediction)
            true_positives += probability * _compute_expected_true_positives(
                prediction, layouts, family_types
            )
    num_true = sum(count * weight for count, weight in NAME_COUNT_WEIGHTS.items()) / sum(
        NAME_COUNT_WEIGHTS.values()
    )
    return compute_f1(true_positives, num_predicted, num_true)


def _compute_realised_image_f1(tweets: list[tuple[TweetText, FamilyTypes]]) -> float:
    true_positives = num_predicted = num_true = 0
    for text, family_types in tweets:
        entities = text.get_entities(family_types)
        prediction = compute_bayes_optimal_entities(len(text.words), family_types)
        true_positives += len(entities & prediction)
        num_predicted += len(prediction)
        num_true += len(entities)
    return compute_f1(true_positives, num_predicted, num_true)


@cache
def compute_bayes_optimal_entities(length: int, family_types: FamilyTypes) -> EntitySet:
    """The entities of the most probable tag sequence with `length` words.

    Among equally probable sequences, the one with the fewest entities wins.
    """
    best, max_probability = frozenset(), 0.0
    for spans, probabilities in sorted(
        group_layouts_by_length()[length].items(), key=lambda item: len(item[0])
    ):
        # Skips nearly all of the work: no single value is larger than the sum.
        if probabilities.sum() <= max_probability:
            continue
        by_type = sum_by_type(probabilities, family_types)
        if by_type.max() > max_probability:
            indices = np.unravel_index(by_type.argmax(), by_type.shape)
            types = [ENTITY_TYPES[index] for index in indices]
            best = frozenset(zip(spans, types, strict=True))
            max_probability = by_type.max()
    return best


def sum_by_type(probabilities: np.ndarray, family_types: FamilyTypes) -> np.ndarray:
    """Sum the probabilities of the families of each type: (F,) * k to (T,) * k."""
    is_type = np.array(
        [
            [family_type == entity_type for entity_type in ENTITY_TYPES]
            for family_type in family_types
        ],
        float,
    )  # (F, T)
    for _ in range(probabilities.ndim):
        # The first axis becomes the last.
        probabilities = np.tensordot(probabilities, is_type, axes=(0, 0))
    return probabilities


def _compute_expected_true_positives(
    prediction: EntitySet, layouts: dict[Spans, np.ndarray], family_types: FamilyTypes
) -> float:
    """Expected number of predicted entities that are true."""
    true_positives = 0.0
    for spans, probabilities in layouts.items() if prediction else ():
        by_type = sum_by_type(probabilities, family_types)
        for axis, span in enumerate(spans):
            for index, entity_type in enumerate(ENTITY_TYPES):
                if (span, entity_type) in prediction:
                    true_positives += by_type.take(index, axis).sum()
    return true_positives


@cache
def group_layouts_by_length() -> dict[int, dict[Spans, np.ndarray]]:
    """Number of words -> spans of the names -> probabilities by family; they sum to 1."""
    layouts_by_length: dict[int, dict[Spans, np.ndarray]] = defaultdict(dict)
    for (length, spans), probabilities in _compute_tweet_layouts().items():
        layouts_by_length[length][spans] = probabilities
    return layouts_by_length


def _compute_tweet_layouts() -> LayoutProbabilities:
    filler_lengths = Counter(len(filler.split()) for filler in tweet_lexicon.FILLERS)
    filler = _compute_plain_layouts(filler_lengths, FILLER_PROBABILITY) | {
        (0, ()): np.array(1 - FILLER_PROBABILITY)
    }
    plain = _compute_plain_layouts(
        Counter(len(sentence.split()) + 1 for sentence in tweet_lexicon.PLAIN_SENTENCES), 1.0
    )
    named = _compute_named_layouts()
    plain_sentences = {
        1: plain,
        2: _concatenate_layouts(plain, plain),
        3: _concatenate_layouts(plain, _concatenate_layouts(plain, plain)),
    }
    sentences = {
        0: _mix_layouts(
            [
                (1 / len(PLAIN_SENTENCE_COUNTS), plain_sentences[count])
                for count in PLAIN_SENTENCE_COUNTS
            ]
        ),
        1: named,
        2: _concatenate_layouts(named, named),
    }
    total = sum(NAME_COUNT_WEIGHTS.values())
    body = _mix_layouts(
        [(weight / total, sentences[count]) for count, weight in NAME_COUNT_WEIGHTS.items()]
    )
    return _concatenate_layouts(_concatenate_layouts(filler, body), filler)


def _compute_plain_layouts(length_counts: Counter, probability: float) -> LayoutProbabilities:
    """Layouts without names, by the number of word sequences of each length."""
    total = sum(length_counts.values())
    return {
        (length, ()): np.array(probability * count / total)
        for length, count in length_counts.items()
    }


def _compute_named_layouts() -> LayoutProbabilities:
    """Layouts of one sentence with a name and its end mark."""
    layouts: LayoutProbabilities = defaultdict(lambda: np.zeros(len(FAMILIES)))
    for index, family in enumerate(FAMILIES):
        for sentence, name_length in product(
            tweet_lexicon.ENTITY_SENTENCES[family], tweet_lexicon.NAME_LENGTHS
        ):
            # The placeholder X counts as one word, which makes up for the end mark.
            start, length = sentence.split().index("X"), len(sentence.split())
            probability = (
                FAMILY_PROBABILITIES[index]
                / len(tweet_lexicon.ENTITY_SENTENCES[family])
                / len(tweet_lexicon.NAME_LENGTHS)
            )
            layouts[length + name_length, ((start, start + name_length),)][index] += probability
    return layouts


def _mix_layouts(parts: list[tuple[float, LayoutProbabilities]]) -> LayoutProbabilities:
    """The weighted sum of several layouts."""
    mixture: LayoutProbabilities = {}
    for weight, layouts in parts:
        for key, probabilities in layouts.items():
            mixture[key] = mixture.get(key, 0) + weight * probabilities
    return mixture


def _concatenate_layouts(
    first: LayoutProbabilities, second: LayoutProbabilities
) -> LayoutProbabilities:
    """The layouts of two independent word sequences, one after the other."""
    layouts: LayoutProbabilities = {}
    for (length, spans), probabilities in first.items():
        for (second_length, second_spans), second_probabilities in second.items():
            shifted = tuple((start + length, end + length) for start, end in second_spans)
            key = length + second_length, spans + shifted
            joint = np.multiply.outer(probabilities, second_probabilities)
            layouts[key] = layouts.get(key, 0) + joint
    return layouts
