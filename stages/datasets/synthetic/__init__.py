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
from stages.datasets.synthetic.article_lexicon import PICTURE, SLOTS, TOPIC
from stages.datasets.synthetic.config import Params, Values, combinations, facts_of, picture_of
from stages.shared.data.records import SPLITS, Article, Captioned, Extra, Fact, Foil, Item, Picture

KINDS = ("articles", "captions", "tweets", "posts", "memes")
FEWEST, MOST = 3, 5  # pictures of an article
Chances = dict[str, Counter]  # slot -> {value: weight}
RULE = "states what it sees, and of each other slot the value most probable in the split"
VISIBLE = {  # by kind of corpus: inputs -> the slots that they show
    "articles": {"topic": set(TOPIC), "picture": set(PICTURE), "both": set(SLOTS)},
    "captions": {"picture": set(PICTURE)},
}


@dataclass(frozen=True)
class Line:
    """Scenes that differ in `slot` only, at least FEWEST of them."""

    slot: str
    scenes: list[Values]


class Process:
    """What one split is drawn from: its topics, its scenes, and its lines of scenes by slot."""

    def __init__(self, split: str, params: Params):
        held_out = split == "test"
        self.topics = combinations(TOPIC, params.held_out_titles, held_out)
        self.scenes = combinations(PICTURE, params.held_out_pictures, held_out)
        self.lines = _lines(self.scenes)
        self.one_slot_share = params.one_slot_share

    def article(self, random: Random) -> tuple[Values, list[Values], bool]:
        """A topic, 3 to 5 different scenes, and whether they differ in one slot only."""
        topic = random.choice(self.topics)
        count = random.randint(FEWEST, MOST)
        one_slot = random.random() < self.one_slot_share
        if one_slot:
            line = random.choice(self.lines[random.choice(sorted(self.lines))])
            return topic, random.sample(line.scenes, min(count, len(line.scenes))), True
        return topic, random.sample(self.scenes, count), False

    def chances(self) -> Chances:
        """The weight of every value in a picture of this process, enumerated (not drawn)."""
        counts = range(FEWEST, MOST + 1)
        weights: Chances = {slot: Counter() for slot in SLOTS}
        for topic in self.topics:
            _add(weights, topic, 1.0)
        free = (1 - self.one_slot_share) * sum(counts) / len(counts) / len(self.scenes)
        for scene in self.scenes:
            _add(weights, scene, free)
        for lines in self.lines.values():
            for line in lines:
                pictures = sum(min(n, len(line.scenes)) for n in counts) / len(counts)
                share = self.one_slot_share / len(self.lines) / len(lines)
                for scene in line.scenes:
                    _add(weights, scene, share * pictures / len(line.scenes))
        return weights


def read(source: Path, kind: str, params: Params) -> Iterator[Item]:
    """Draw the corpus; `source` is not read. The same params give the same bytes."""
    yield from BY_KIND[kind](params)


def _articles(params: Params) -> Iterator[Item]:
    yield Extra("slots.json", {"topic": TOPIC, "picture": PICTURE})
    ceilings: dict[str, Any] = {"rule": RULE}
    for split in SPLITS:
        process, random = Process(split, params), Random(f"{params.seed} articles {split}")
        wanted, number = getattr(params, split), 0
        seen: Chances = {slot: Counter() for slot in SLOTS}
        while sum(seen["name"].values()) < wanted:
            topic, shown, one_slot = process.article(random)
            for scene in shown:
                _add(seen, topic | scene, 1.0)
            with_foils = one_slot and split != "train"
            yield _article(f"{split}-{number}", split, topic, shown, with_foils, params, random)
            number += 1
        ceilings[split] = _ceilings(VISIBLE["articles"], process.chances(), seen)
    yield Extra("ceilings.json", ceilings)


def _article(
    source: str,
    split: str,
    topic: Values,
    shown: list[Values],
    with_foils: bool,
    params: Params,
    random: Random,
) -> Article:
    blocks: list[Picture | str] = []
    facts, boxes, foils = [], [], []
    for position, scene in enumerate(shown):
        wording = random.getrandbits(32)
        picture, box = picture_of(scene, position, params.size, random)
        blocks.append(picture)
        blocks.append(article_lexicon.chunk(topic, scene, Random(wording)))
        facts += [Fact(position, slot, value) for slot, value in (topic | scene).items()]
        boxes.append(box)
        for slot, values in PICTURE.items() if with_foils else ():
            other = random.choice([value for value in values if value != scene[slot]])
            text = article_lexicon.chunk(topic, scene | {slot: other}, Random(wording))
            foils.append(Foil(position, slot, text))
    return Article(
        source=source,
        title=article_lexicon.title(topic, random),
        blocks=blocks,
        language="en",
        split=split,
        facts=facts,
        boxes=boxes,
        foils=foils,
    )


def _captions(params: Params) -> Iterator[Item]:
    yield Extra("slots.json", {"topic": {}, "picture": PICTURE})
    ceilings: dict[str, Any] = {"rule": RULE}
    for split in SPLITS:
        process, random = Process(split, params), Random(f"{params.seed} captions {split}")
        count = round(getattr(params, split) * params.caption_share)
        chances: Chances = {slot: Counter() for slot in PICTURE}
        seen: Chances = {slot: Counter() for slot in PICTURE}
        for scene in process.scenes:
            _add(chances, scene, 1.0)
        for number in range(count):
            scene = random.choice(process.scenes)
            _add(seen, scene, 1.0)
            picture, box = picture_of(scene, 0, params.size, random)
            yield Captioned(
                source=f"{split}-{number}",
                picture=picture,
                captions=[article_lexicon.caption(scene, random) for _ in range(params.captions)],
                language="en",
                split=split,
                facts=facts_of(scene),
                boxes=[box],
            )
        ceilings[split] = _ceilings(VISIBLE["captions"], chances, seen)
    yield Extra("ceilings.json", ceilings)


def _lines(shown: list[Values]) -> dict[str, list[Line]]:
    lines: dict[str, list[Line]] = {}
    for slot in PICTURE:
        groups: dict[tuple, list[Values]] = {}
        for scene in shown:
            rest = tuple(value for name, value in scene.items() if name != slot)
            groups.setdefault(rest, []).append(scene)
        found = [Line(slot, group) for group in groups.values() if len(group) >= FEWEST]
        if found:
            lines[slot] = found
    return lines


def _add(weights: Chances, values: Values, weight: float) -> None:
    for slot, value in values.items():
        weights[slot][value] += weight


def _ceilings(
    visible: dict[str, set[str]], chances: Chances, seen: Chances
) -> dict[str, dict[str, dict[str, float]]]:
    """{inputs: {expected | realised: {slot or total: share of correct slots}}}"""
    return {
        inputs: {
            name: _shares(slots, chances, counted)
            for name, counted in (("expected", chances), ("realised", seen))
        }
        for inputs, slots in visible.items()
    }


def _shares(visible: set[str], chances: Chances, counted: Chances) -> dict[str, float]:
    shares = {}
    for slot in counted:
        # Ties go to the first value in the order of the word lists, not of the counting.
        guess = max(SLOTS[slot], key=lambda value, of=chances[slot]: of[value])
        total = sum(counted[slot].values())
        share = 1.0 if slot in visible else counted[slot][guess] / total
        shares[slot] = round(share, 6)
    return {"total": round(sum(shares.values()) / len(shares), 6)} | shares


def _memes(params: Params) -> Iterator[Item]:
    yield from (synthetic_memes if params.memes == "overlaid" else caption_matching).read(params)


BY_KIND = {
    "articles": _articles,
    "captions": _captions,
    "tweets": synthetic_tweets.read,
    "posts": synthetic_posts.read,
    "memes": _memes,
}
