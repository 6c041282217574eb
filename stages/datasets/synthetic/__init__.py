"""The sample corpus: drawn scenes and composed texts whose best possible scores are known.

An article has a topic (name, goal, style: only its title tells) and 3 to 5 pictures (place,
weather, actor, activity, object: only the picture tells), each with a text that states all eight
slots. In a stated share of the articles the pictures differ in one slot only. The test split shows
combinations of picture slots, and of topic slots, that the other splits never show.

Ceilings: `topic` sees the title alone, `picture` the picture alone, `both` sees all. The rule of
the best predictor: a slot it can see, it states; of a slot it cannot see, it states the value that
is most probable under the process that draws the split. `expected` is that rule's expected share of
correct slots, by enumeration of the process; `realised` its share on the very items of the split.
A captioned picture has no topic, and its captions state what the picture shows: `picture` alone.
Tweets, posts and memes stand in sample_tweets.py, sample_posts.py and sample_memes.py;
sample_checks.py has captioned pictures in the place of memes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from stages.datasets.synthetic import article_lexicon, caption_matching
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
MIN_IMAGES, MAX_IMAGES = 3, 5  # pictures of an article
SlotWeights = dict[str, Counter]  # slot -> {value: weight}
CEILING_RULE = "states what it sees, and of each other slot the value most probable in the split"
VISIBLE_SLOTS = {  # by kind of corpus: inputs -> the slots that they show
    "articles": {"topic": set(TOPIC_SLOTS), "picture": set(IMAGE_SLOTS), "both": set(SLOTS)},
    "captions": {"picture": set(IMAGE_SLOTS)},
}


@dataclass(frozen=True)
class OneSlotSceneGroup:
    """Scenes that differ in `slot` only, at least FEWEST of them."""

    slot: str
    scenes: list[SlotValues]


class ArticleSampler:
    """What one split is drawn from: its topics, its scenes, and its lines of scenes by slot."""

    def __init__(self, split: str, params: SyntheticConfig):
        held_out = split == "test"
        self.topics = enumerate_combinations(TOPIC_SLOTS, params.held_out_titles_fraction, held_out)
        self.scenes = enumerate_combinations(IMAGE_SLOTS, params.held_out_images_fraction, held_out)
        self.scene_groups = _group_one_slot_scenes(self.scenes)
        self.one_slot_share = params.single_slot_fraction

    def sample_article(self, random: Random) -> tuple[SlotValues, list[SlotValues], bool]:
        """A topic, 3 to 5 different scenes, and whether they differ in one slot only."""
        topic = random.choice(self.topics)
        count = random.randint(MIN_IMAGES, MAX_IMAGES)
        one_slot = random.random() < self.one_slot_share
        if one_slot:
            line = random.choice(self.scene_groups[random.choice(sorted(self.scene_groups))])
            return topic, random.sample(line.scenes, min(count, len(line.scenes))), True
        return topic, random.sample(self.scenes, count), False

    def compute_slot_weights(self) -> SlotWeights:
        """The weight of every value in a picture of this process, enumerated (not drawn)."""
        counts = range(MIN_IMAGES, MAX_IMAGES + 1)
        weights: SlotWeights = {slot: Counter() for slot in SLOTS}
        for topic in self.topics:
            _add_weight(weights, topic, 1.0)
        free = (1 - self.one_slot_share) * sum(counts) / len(counts) / len(self.scenes)
        for scene in self.scenes:
            _add_weight(weights, scene, free)
        for lines in self.scene_groups.values():
            for line in lines:
                pictures = sum(min(n, len(line.scenes)) for n in counts) / len(counts)
                share = self.one_slot_share / len(self.scene_groups) / len(lines)
                for scene in line.scenes:
                    _add_weight(weights, scene, share * pictures / len(line.scenes))
        return weights


def read(source: Path, kind: str, params: SyntheticConfig) -> Iterator[DatasetItem]:
    """Draw the corpus; `source` is not read. The same params give the same bytes."""
    yield from GENERATORS_BY_KIND[kind](params)


def _generate_articles(params: SyntheticConfig) -> Iterator[DatasetItem]:
    yield ExtraFile("slots.json", {"topic": TOPIC_SLOTS, "picture": IMAGE_SLOTS})
    ceilings: dict[str, Any] = {"rule": CEILING_RULE}
    for split in SPLITS:
        process, random = ArticleSampler(split, params), Random(f"{params.seed} articles {split}")
        wanted, number = getattr(params, split), 0
        seen: SlotWeights = {slot: Counter() for slot in SLOTS}
        while sum(seen["name"].values()) < wanted:
            topic, shown, one_slot = process.sample_article(random)
            for scene in shown:
                _add_weight(seen, topic | scene, 1.0)
            with_foils = one_slot and split != "train"
            yield _build_article(
                f"{split}-{number}", split, topic, shown, with_foils, params, random
            )
            number += 1
        ceilings[split] = _compute_ceilings(
            VISIBLE_SLOTS["articles"], process.compute_slot_weights(), seen
        )
    yield ExtraFile("ceilings.json", ceilings)


def _build_article(
    source: str,
    split: str,
    topic: SlotValues,
    shown: list[SlotValues],
    with_foils: bool,
    params: SyntheticConfig,
    random: Random,
) -> ArticleRecord:
    blocks: list[ImageBytes | str] = []
    facts, boxes, foils = [], [], []
    for position, scene in enumerate(shown):
        wording = random.getrandbits(32)
        picture, box = render_image(scene, position, params.image_size, random)
        blocks.append(picture)
        blocks.append(article_lexicon.compose_chunk(topic, scene, Random(wording)))
        facts += [Fact(position, slot, value) for slot, value in (topic | scene).items()]
        boxes.append(box)
        for slot, values in IMAGE_SLOTS.items() if with_foils else ():
            other = random.choice([value for value in values if value != scene[slot]])
            text = article_lexicon.compose_chunk(topic, scene | {slot: other}, Random(wording))
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


def _generate_captions(params: SyntheticConfig) -> Iterator[DatasetItem]:
    yield ExtraFile("slots.json", {"topic": {}, "picture": IMAGE_SLOTS})
    ceilings: dict[str, Any] = {"rule": CEILING_RULE}
    for split in SPLITS:
        process, random = ArticleSampler(split, params), Random(f"{params.seed} captions {split}")
        count = round(getattr(params, split) * params.caption_ratio)
        chances: SlotWeights = {slot: Counter() for slot in IMAGE_SLOTS}
        seen: SlotWeights = {slot: Counter() for slot in IMAGE_SLOTS}
        for scene in process.scenes:
            _add_weight(chances, scene, 1.0)
        for number in range(count):
            scene = random.choice(process.scenes)
            _add_weight(seen, scene, 1.0)
            picture, box = render_image(scene, 0, params.image_size, random)
            yield CaptionRecord(
                source=f"{split}-{number}",
                image=picture,
                captions=[
                    article_lexicon.compose_caption(scene, random)
                    for _ in range(params.captions_per_image)
                ],
                language="en",
                split=split,
                facts=build_facts(scene),
                boxes=[box],
            )
        ceilings[split] = _compute_ceilings(VISIBLE_SLOTS["captions"], chances, seen)
    yield ExtraFile("ceilings.json", ceilings)


def _group_one_slot_scenes(shown: list[SlotValues]) -> dict[str, list[OneSlotSceneGroup]]:
    lines: dict[str, list[OneSlotSceneGroup]] = {}
    for slot in IMAGE_SLOTS:
        groups: dict[tuple, list[SlotValues]] = {}
        for scene in shown:
            rest = tuple(value for name, value in scene.items() if name != slot)
            groups.setdefault(rest, []).append(scene)
        found = [
            OneSlotSceneGroup(slot, group) for group in groups.values() if len(group) >= MIN_IMAGES
        ]
        if found:
            lines[slot] = found
    return lines


def _add_weight(weights: SlotWeights, values: SlotValues, weight: float) -> None:
    for slot, value in values.items():
        weights[slot][value] += weight


def _compute_ceilings(
    visible: dict[str, set[str]], chances: SlotWeights, seen: SlotWeights
) -> dict[str, dict[str, dict[str, float]]]:
    """{inputs: {expected | realised: {slot or total: share of correct slots}}}"""
    return {
        inputs: {
            name: _compute_accuracies(slots, chances, counted)
            for name, counted in (("expected", chances), ("realised", seen))
        }
        for inputs, slots in visible.items()
    }


def _compute_accuracies(
    visible: set[str], chances: SlotWeights, counted: SlotWeights
) -> dict[str, float]:
    shares = {}
    for slot in counted:
        # Ties go to the first value in the order of the word lists, not of the counting.
        guess = max(SLOTS[slot], key=lambda value, of=chances[slot]: of[value])
        total = sum(counted[slot].values())
        share = 1.0 if slot in visible else counted[slot][guess] / total
        shares[slot] = round(share, 6)
    return {"total": round(sum(shares.values()) / len(shares), 6)} | shares


def _generate_memes(params: SyntheticConfig) -> Iterator[DatasetItem]:
    yield from (
        synthetic_memes if params.meme_style == "overlaid" else caption_matching
    ).generate_memes(params)


GENERATORS_BY_KIND = {
    "articles": _generate_articles,
    "captions": _generate_captions,
    "tweets": synthetic_tweets.generate_tweets,
    "posts": synthetic_posts.generate_posts,
    "memes": _generate_memes,
}
