"""Synthetic articles with one text about all their images, which no single image determines.

An article has a topic (name, goal, style), which only its title states, and 3 to 5 images of one
place, actor, activity and object. The weather of one image differs from that of the others. The
text states the topic, what the images share, the usual weather, the odd weather, and which image is
the odd one: the last three can only be read from a comparison of the images.

An article is drawn uniformly: its topic, a group of scenes that differ in the weather only, an
ordered pair of their weathers, the number of images, the place of the odd one. The test split shows
combinations that the other splits never show. The facts of the text stand at position 0.

Ceilings are those of the best predictor of each slot from the title (`topic`), from all images
(`picture`), from the first image alone (`first_picture`), or from `both` title and images. From the
first image, the shared slots are certain; of the others, the value that is most probable given that
image is predicted.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import permutations
from random import Random
from statistics import fmean
from typing import Any

from stages.datasets.synthetic import article_lexicon
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS, TOPIC_SLOTS
from stages.datasets.synthetic.config import (
    SlotValues,
    SyntheticConfig,
    enumerate_combinations,
    render_image,
)
from stages.shared.data.records import (
    SPLITS,
    ArticleRecord,
    DatasetItem,
    ExtraFile,
    Fact,
    Foil,
    ImageBytes,
)

IMAGE_COUNTS = (3, 4, 5)  # equally probable
VARIED_SLOT = "weather"
SHARED_SLOTS = {slot: values for slot, values in IMAGE_SLOTS.items() if slot != VARIED_SLOT}
ORDINALS = ["first", "second", "third", "fourth", "fifth"]
# Slots that a comparison of the images shows. The words before a phrase tell which of the two
# weathers it states.
COMPARED_SLOTS: dict[str, dict[str, list[str]]] = {
    "usual_weather": {
        value: [f"mostly {phrase}" for phrase in phrases]
        for value, phrases in IMAGE_SLOTS[VARIED_SLOT].items()
    },
    "odd_weather": {
        value: [f"but once {phrase}" for phrase in phrases]
        for value, phrases in IMAGE_SLOTS[VARIED_SLOT].items()
    },
    "odd_image": {name: [f"in the {name} image"] for name in ORDINALS},
}
PICTURE_SLOTS = SHARED_SLOTS | COMPARED_SLOTS
SLOTS = TOPIC_SLOTS | PICTURE_SLOTS
CEILING_RULE = (
    "states what it sees, and of each other slot the value most probable in the split, given the "
    "first image if it sees only that"
)
PATTERNS = {
    "diary": [
        "dear diary, the {actor} was {activity} next to {object} {place}. {usual_weather}, "
        "{odd_weather} {odd_image}. yours, {name}, still dreaming of {goal}.",
        "my journal knows: {place}, near {object}, the {actor} was {activity}. {usual_weather}, "
        "{odd_weather} {odd_image}. I, {name}, still hope for {goal}.",
    ],
    "news": [
        "breaking news: {name} met a {actor} {activity} {place} beside {object}. {usual_weather}, "
        "{odd_weather} {odd_image}. the search for {goal} continues.",
        "our reporters confirm: {usual_weather}, {odd_weather} {odd_image}. a {actor} is "
        "{activity} {place} close to {object} while {name} wants {goal}.",
    ],
    "tale": [
        "once upon a time {name} came upon a {actor} {activity} {place}, {object} stood near and "
        "{goal} was far. {usual_weather}, {odd_weather} {odd_image}.",
        "the legend says: {usual_weather}, {odd_weather} {odd_image}, when a {actor}, {activity} "
        "beside {object}, told {name} {place} about {goal}.",
    ],
    "log": [
        "log entry: {place}. subject: {actor}, {activity}. equipment: {object}. {usual_weather}, "
        "{odd_weather} {odd_image}. observer {name}, target {goal}.",
        "field notes by {name}: {actor} {activity}. equipment: {object}. location: {place}. "
        "{usual_weather}, {odd_weather} {odd_image}. target {goal}.",
    ],
}


@dataclass(frozen=True)
class Comparison:
    """What a comparison of the images of an article shows."""

    usual: str
    odd: str
    odd_place: int  # from 0
    num_images: int

    @property
    def weathers(self) -> list[str]:
        """The weather of each image."""
        weathers = [self.usual] * self.num_images
        weathers[self.odd_place] = self.odd
        return weathers

    @property
    def facts(self) -> SlotValues:
        odd_image = ORDINALS[self.odd_place]
        return {"usual_weather": self.usual, "odd_weather": self.odd, "odd_image": odd_image}


@dataclass(frozen=True)
class ImageSet:
    """The images of an article: what they share, and how they compare."""

    shared: SlotValues
    comparison: Comparison

    @property
    def scenes(self) -> list[SlotValues]:
        """The slot values of each image."""
        return [self.shared | {VARIED_SLOT: weather} for weather in self.comparison.weathers]

    @property
    def facts(self) -> SlotValues:
        """What the images show together."""
        return self.shared | self.comparison.facts


class ImageSetSampler:
    """Samples topics and image sets of one split."""

    def __init__(self, split: str, config: SyntheticConfig):
        held_out = split == "test"
        self.topics = enumerate_combinations(TOPIC_SLOTS, config.held_out_titles_fraction, held_out)
        scenes = enumerate_combinations(IMAGE_SLOTS, config.held_out_images_fraction, held_out)
        weathers: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for scene in scenes:
            weathers[tuple(scene[slot] for slot in SHARED_SLOTS)].append(scene[VARIED_SLOT])
        # By the values of the shared slots, the weathers to choose from.
        self.groups = {key: tuple(known) for key, known in weathers.items() if len(known) > 1}

    def sample(self, random: Random) -> tuple[SlotValues, ImageSet]:
        """A topic and an image set."""
        topic = random.choice(self.topics)
        key = random.choice(list(self.groups))
        usual, odd = random.sample(self.groups[key], 2)
        count = random.choice(IMAGE_COUNTS)
        shared = dict(zip(SHARED_SLOTS, key, strict=True))
        return topic, ImageSet(shared, Comparison(usual, odd, random.randrange(count), count))

    def get_weathers(self, images: ImageSet) -> tuple[str, ...]:
        """The weathers that an image set was drawn from."""
        return self.groups[tuple(images.shared.values())]

    def compute_slot_weights(self) -> dict[str, dict[str, Fraction]]:
        """The probability of each slot value in an article of this split, by enumeration."""
        weights: dict[str, dict[str, Fraction]] = {slot: defaultdict(Fraction) for slot in SLOTS}
        for topic in self.topics:
            for slot, value in topic.items():
                weights[slot][value] += Fraction(1, len(self.topics))
        for key in self.groups:
            for slot, value in zip(SHARED_SLOTS, key, strict=True):
                weights[slot][value] += Fraction(1, len(self.groups))
        for weathers, share in self.weather_shares():
            for comparison, probability in enumerate_comparisons(weathers):
                for slot, value in comparison.facts.items():
                    weights[slot][value] += probability * share
        return weights

    def compute_first_image_accuracies(self) -> dict[str, Fraction]:
        """The expected accuracy of `predict_from_first_image` by slot, by enumeration."""
        accuracies = dict.fromkeys(COMPARED_SLOTS, Fraction(0))
        for weathers, share in self.weather_shares():
            for comparison, probability in enumerate_comparisons(weathers):
                prediction = predict_from_first_image(weathers, comparison.weathers[0])
                for slot, value in comparison.facts.items():
                    accuracies[slot] += (prediction[slot] == value) * probability * share
        return accuracies

    def weather_shares(self) -> list[tuple[tuple[str, ...], Fraction]]:
        """Each set of weathers to choose from, with the share of the groups that have it."""
        counts = Counter(self.groups.values())
        return [(key, Fraction(count, len(self.groups))) for key, count in counts.items()]


def enumerate_comparisons(weathers: tuple[str, ...]) -> Iterator[tuple[Comparison, Fraction]]:
    """Every comparison that can be drawn from these weathers, with its probability."""
    pairs = list(permutations(weathers, 2))
    for usual, odd in pairs:
        for count in IMAGE_COUNTS:
            for place in range(count):
                probability = Fraction(1, len(pairs) * len(IMAGE_COUNTS) * count)
                yield Comparison(usual, odd, place, count), probability


@cache
def predict_from_first_image(weathers: tuple[str, ...], first: str) -> SlotValues:
    """The most probable value of each compared slot, given the weather of the first image.

    weathers: those to choose from
    """
    weights: dict[str, dict[str, Fraction]] = {
        slot: defaultdict(Fraction) for slot in COMPARED_SLOTS
    }
    for comparison, probability in enumerate_comparisons(weathers):
        if comparison.weathers[0] == first:
            for slot, value in comparison.facts.items():
                weights[slot][value] += probability
    return {slot: find_most_probable(slot, weights[slot]) for slot in COMPARED_SLOTS}


def find_most_probable(slot: str, weights: dict[str, Fraction]) -> str:
    """The value of a slot with the highest weight; the first of equals in the lexicon."""
    return max(SLOTS[slot], key=lambda value: weights.get(value, Fraction(0)))


def compute_ceilings(
    sampler: ImageSetSampler, articles: list[tuple[SlotValues, ImageSet]]
) -> dict[str, dict[str, dict[str, float]]]:
    """{inputs: {expected | realised: {slot or total: share of correct slots}}}

    expected: under the process; realised: on the generated articles of a split
    """
    weights = sampler.compute_slot_weights()
    prior = {slot: find_most_probable(slot, weights[slot]) for slot in SLOTS}
    expected = {slot: weights[slot][prior[slot]] for slot in SLOTS}
    expected_first = sampler.compute_first_image_accuracies()
    facts = [topic | images.facts for topic, images in articles]
    first_predictions = [
        predict_from_first_image(sampler.get_weathers(images), images.comparison.weathers[0])
        for _, images in articles
    ]
    realised = {slot: fmean(row[slot] == prior[slot] for row in facts) for slot in SLOTS}
    realised_first = {
        slot: fmean(
            row[slot] == prediction[slot]
            for row, prediction in zip(facts, first_predictions, strict=True)
        )
        for slot in COMPARED_SLOTS
    }
    by_inputs = {  # inputs: slots that they show, accuracies of others that they help with
        "topic": (TOPIC_SLOTS, {}, {}),
        "picture": (PICTURE_SLOTS, {}, {}),
        "first_picture": (SHARED_SLOTS, expected_first, realised_first),
        "both": (SLOTS, {}, {}),
    }
    return {
        inputs: {
            "expected": _average(expected | expected_part | dict.fromkeys(visible, 1.0)),
            "realised": _average(realised | realised_part | dict.fromkeys(visible, 1.0)),
        }
        for inputs, (visible, expected_part, realised_part) in by_inputs.items()
    }


def _average(accuracies: dict[str, Any]) -> dict[str, float]:
    by_slot = {slot: round(float(accuracies[slot]), 6) for slot in SLOTS}
    return {"total": round(sum(by_slot.values()) / len(by_slot), 6)} | by_slot


def compose_text(facts: SlotValues, random: Random) -> str:
    """The text of an article. The same seed gives the same phrasing for other facts."""
    pattern = random.choice(PATTERNS[facts["style"]])
    return pattern.format(
        **{slot: random.choice(phrases[facts[slot]]) for slot, phrases in SLOTS.items()}
    )


def generate_articles(config: SyntheticConfig) -> Iterator[DatasetItem]:
    """The corpus; the same config gives the same bytes."""
    yield ExtraFile("slots.json", {"topic": TOPIC_SLOTS, "picture": PICTURE_SLOTS})
    ceilings: dict[str, Any] = {"rule": CEILING_RULE}
    for split in SPLITS:
        sampler = ImageSetSampler(split, config)
        random = Random(f"{config.seed} one_text_articles {split}")
        articles: list[tuple[SlotValues, ImageSet]] = []
        num_images = 0
        while num_images < getattr(config, split):
            topic, images = sampler.sample(random)
            source = f"{split}-{len(articles)}"
            yield build_article(source, split, topic, images, config, random)
            articles.append((topic, images))
            num_images += images.comparison.num_images
        ceilings[split] = compute_ceilings(sampler, articles)
    yield ExtraFile("ceilings.json", ceilings)


def build_article(
    source: str,
    split: str,
    topic: SlotValues,
    images: ImageSet,
    config: SyntheticConfig,
    random: Random,
) -> ArticleRecord:
    """The record of an article; outside train its text has a foil for each slot of the images."""
    blocks: list[ImageBytes | str] = []
    boxes, foils = [], []
    for position, scene in enumerate(images.scenes):
        image, box = render_image(scene, position, config.image_size, random)
        blocks.append(image)
        boxes.append(box)
    facts, text_seed = topic | images.facts, random.getrandbits(32)
    for slot, values in PICTURE_SLOTS.items() if split != "train" else ():
        wrong_value = random.choice([value for value in values if value != facts[slot]])
        foil = compose_text(facts | {slot: wrong_value}, Random(text_seed))
        foils.append(Foil(0, slot, foil))
    return ArticleRecord(
        source=source,
        title=article_lexicon.compose_title(topic, random),
        blocks=[*blocks, compose_text(facts, Random(text_seed))],
        language="en",
        split=split,
        facts=[Fact(0, slot, value) for slot, value in facts.items()],
        boxes=boxes,
        foils=foils,
    )
