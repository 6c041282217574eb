"""Format `synthetic`: the synthetic corpus, generated scenes and texts with known ceilings.

An article has a topic (name, goal, style) that only its title states, and 3 to 5 images (place,
weather, actor, activity, object), each with a text that states all eight slots. In
`single_slot_fraction` of the articles the images differ in one slot only. The test split shows
combinations of image slots, and of topic slots, that the other splits never show.

The ceilings are those of the best predictor: it states every slot that its inputs show, and for any
other slot the most probable value under the process that generates the split. The inputs are the
title (`topic`), the image (`picture`) or `both`. `expected` is the expected share of correct slots,
by enumeration of the process; `realised` is the share on the generated records of the split. A
captioned image has no topic, and its captions state what the image shows, so `picture` is its only
input.

one_text_articles.py generates articles of the style `one_text`; tweets.py, posts.py and memes.py
generate the other kinds; caption_matching.py generates memes of the style `captioned`.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from stages.datasets.synthetic import article_lexicon, caption_matching, one_text_articles
from stages.datasets.synthetic import memes as synthetic_memes
from stages.datasets.synthetic import posts as synthetic_posts
from stages.datasets.synthetic import tweets as synthetic_tweets
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS, SLOTS, TOPIC_SLOTS
from stages.datasets.synthetic.config import (
    SlotValues,
    SyntheticConfig,
    build_facts,
    enumerate_combinations,
    render_image,
)
from stages.shared.data.records import (
    SPLITS,
    ArticleRecord,
    CaptionRecord,
    DatasetItem,
    ExtraFile,
    Fact,
    Foil,
    ImageBytes,
)

KINDS = ("articles", "captions", "tweets", "posts", "memes")
CONFIG = SyntheticConfig
MIN_IMAGES, MAX_IMAGES = 3, 5  # images of an article
SlotWeights = dict[str, defaultdict[str, float]]  # slot -> {value: weight}
CEILING_RULE = "states what it sees, and of each other slot the value most probable in the split"
VISIBLE_SLOTS = {  # by kind of corpus: inputs -> slots that they show
    "articles": {"topic": set(TOPIC_SLOTS), "picture": set(IMAGE_SLOTS), "both": set(SLOTS)},
    "captions": {"picture": set(IMAGE_SLOTS)},
}


@dataclass(frozen=True)
class OneSlotSceneGroup:
    """At least MIN_IMAGES scenes that differ in `slot` only."""

    slot: str
    scenes: list[SlotValues]


class ArticleSampler:
    """Samples the articles of one split: from its topics, scenes and one-slot groups of scenes."""

    def __init__(self, split: str, config: SyntheticConfig):
        held_out = split == "test"
        self.topics = enumerate_combinations(TOPIC_SLOTS, config.held_out_titles_fraction, held_out)
        self.scenes = enumerate_combinations(IMAGE_SLOTS, config.held_out_images_fraction, held_out)
        self.scene_groups = _group_one_slot_scenes(self.scenes)
        self.single_slot_fraction = config.single_slot_fraction

    def sample_article(self, random: Random) -> tuple[SlotValues, list[SlotValues], bool]:
        """Sample a topic, 3 to 5 different scenes, and whether they differ in one slot only."""
        topic = random.choice(self.topics)
        count = random.randint(MIN_IMAGES, MAX_IMAGES)
        one_slot = random.random() < self.single_slot_fraction
        if one_slot:
            group = random.choice(self.scene_groups[random.choice(sorted(self.scene_groups))])
            return topic, random.sample(group.scenes, min(count, len(group.scenes))), True
        return topic, random.sample(self.scenes, count), False

    def compute_slot_weights(self) -> SlotWeights:
        """The weight of each slot value in an image of this split, by enumeration."""
        counts = range(MIN_IMAGES, MAX_IMAGES + 1)
        weights: SlotWeights = {slot: defaultdict(float) for slot in SLOTS}
        for topic in self.topics:
            _add_weight(weights, topic, 1.0)
        weight = (1 - self.single_slot_fraction) * sum(counts) / len(counts) / len(self.scenes)
        for scene in self.scenes:
            _add_weight(weights, scene, weight)
        for groups in self.scene_groups.values():
            for group in groups:
                num_images = sum(min(n, len(group.scenes)) for n in counts) / len(counts)
                probability = self.single_slot_fraction / len(self.scene_groups) / len(groups)
                for scene in group.scenes:
                    _add_weight(weights, scene, probability * num_images / len(group.scenes))
        return weights


def read(source: Path, kind: str, config: SyntheticConfig) -> Iterator[DatasetItem]:
    """Generate the corpus; `source` is not read. The same config gives the same bytes.

    Raises InputError if the held-out fraction leaves a split of memes without suitable scenes.
    """
    yield from GENERATORS_BY_KIND[kind](config)


def _generate_articles(config: SyntheticConfig) -> Iterator[DatasetItem]:
    has_one_text = config.article_style == "one_text"
    generate = one_text_articles.generate_articles if has_one_text else _generate_chunked_articles
    yield from generate(config)


def _generate_chunked_articles(config: SyntheticConfig) -> Iterator[DatasetItem]:
    yield ExtraFile("slots.json", {"topic": TOPIC_SLOTS, "picture": IMAGE_SLOTS})
    ceilings: dict[str, Any] = {"rule": CEILING_RULE}
    for split in SPLITS:
        sampler, random = ArticleSampler(split, config), Random(f"{config.seed} articles {split}")
        num_images, number = getattr(config, split), 0
        counts: SlotWeights = {slot: defaultdict(float) for slot in SLOTS}
        while sum(counts["name"].values()) < num_images:
            topic, scenes, one_slot = sampler.sample_article(random)
            for scene in scenes:
                _add_weight(counts, topic | scene, 1.0)
            with_foils = one_slot and split != "train"
            yield _build_article(
                f"{split}-{number}", split, topic, scenes, with_foils, config, random
            )
            number += 1
        ceilings[split] = _compute_ceilings(
            VISIBLE_SLOTS["articles"], sampler.compute_slot_weights(), counts
        )
    yield ExtraFile("ceilings.json", ceilings)


def _build_article(
    source: str,
    split: str,
    topic: SlotValues,
    scenes: list[SlotValues],
    with_foils: bool,
    config: SyntheticConfig,
    random: Random,
) -> ArticleRecord:
    blocks: list[ImageBytes | str] = []
    facts, boxes, foils = [], [], []
    for position, scene in enumerate(scenes):
        text_seed = random.getrandbits(32)
        image, box = render_image(scene, position, config.image_size, random)
        blocks.append(image)
        blocks.append(article_lexicon.compose_chunk(topic, scene, Random(text_seed)))
        facts += [Fact(position, slot, value) for slot, value in (topic | scene).items()]
        boxes.append(box)
        for slot, values in IMAGE_SLOTS.items() if with_foils else ():
            wrong_value = random.choice([value for value in values if value != scene[slot]])
            wrong_scene = scene | {slot: wrong_value}
            text = article_lexicon.compose_chunk(topic, wrong_scene, Random(text_seed))
            foils.append(Foil(position, slot, text))
    return ArticleRecord(
        source=source,
        title=article_lexicon.compose_title(topic, random),
        blocks=blocks,
        language="en",
        split=split,
        facts=facts,
        boxes=boxes,
        foils=foils,
    )


def _generate_captions(config: SyntheticConfig) -> Iterator[DatasetItem]:
    yield ExtraFile("slots.json", {"topic": {}, "picture": IMAGE_SLOTS})
    ceilings: dict[str, Any] = {"rule": CEILING_RULE}
    for split in SPLITS:
        sampler, random = ArticleSampler(split, config), Random(f"{config.seed} captions {split}")
        weights: SlotWeights = {slot: defaultdict(float) for slot in IMAGE_SLOTS}
        counts: SlotWeights = {slot: defaultdict(float) for slot in IMAGE_SLOTS}
        for scene in sampler.scenes:
            _add_weight(weights, scene, 1.0)
        for number in range(round(getattr(config, split) * config.caption_ratio)):
            scene = random.choice(sampler.scenes)
            _add_weight(counts, scene, 1.0)
            image, box = render_image(scene, 0, config.image_size, random)
            yield CaptionRecord(
                source=f"{split}-{number}",
                image=image,
                captions=[
                    article_lexicon.compose_caption(scene, random)
                    for _ in range(config.captions_per_image)
                ],
                language="en",
                split=split,
                facts=build_facts(scene),
                boxes=[box],
            )
        ceilings[split] = _compute_ceilings(VISIBLE_SLOTS["captions"], weights, counts)
    yield ExtraFile("ceilings.json", ceilings)


def _group_one_slot_scenes(scenes: list[SlotValues]) -> dict[str, list[OneSlotSceneGroup]]:
    """The groups of scenes that differ in one slot only, by slot."""
    groups_by_slot: dict[str, list[OneSlotSceneGroup]] = {}
    for slot in IMAGE_SLOTS:
        scenes_by_other_values: dict[tuple, list[SlotValues]] = {}
        for scene in scenes:
            other_values = tuple(value for name, value in scene.items() if name != slot)
            scenes_by_other_values.setdefault(other_values, []).append(scene)
        groups = [
            OneSlotSceneGroup(slot, group)
            for group in scenes_by_other_values.values()
            if len(group) >= MIN_IMAGES
        ]
        if groups:
            groups_by_slot[slot] = groups
    return groups_by_slot


def _add_weight(weights: SlotWeights, values: SlotValues, weight: float) -> None:
    for slot, value in values.items():
        weights[slot][value] += weight


def _compute_ceilings(
    visible_slots: dict[str, set[str]], weights: SlotWeights, counts: SlotWeights
) -> dict[str, dict[str, dict[str, float]]]:
    """{inputs: {expected | realised: {slot or total: share of correct slots}}}

    weights: weights of the values under the process
    counts: counts of the values in the generated records
    """
    return {
        inputs: {
            "expected": _compute_accuracies(slots, weights, weights),
            "realised": _compute_accuracies(slots, weights, counts),
        }
        for inputs, slots in visible_slots.items()
    }


def _compute_accuracies(
    visible_slots: set[str], weights: SlotWeights, counts: SlotWeights
) -> dict[str, float]:
    accuracies = {}
    for slot in counts:
        # Ties go to the first value in the order of the word lists.
        prediction = max(SLOTS[slot], key=lambda value, weights=weights[slot]: weights[value])
        total = sum(counts[slot].values())
        accuracy = 1.0 if slot in visible_slots else counts[slot][prediction] / total
        accuracies[slot] = round(accuracy, 6)
    return {"total": round(sum(accuracies.values()) / len(accuracies), 6)} | accuracies


def _generate_memes(config: SyntheticConfig) -> Iterator[DatasetItem]:
    module = synthetic_memes if config.meme_style == "overlaid" else caption_matching
    yield from module.generate_memes(config)


GENERATORS_BY_KIND = {
    "articles": _generate_articles,
    "captions": _generate_captions,
    "tweets": synthetic_tweets.generate_tweets,
    "posts": synthetic_posts.generate_posts,
    "memes": _generate_memes,
}
