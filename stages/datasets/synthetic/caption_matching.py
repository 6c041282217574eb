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
from stages.datasets.synthetic.article_lexicon import IMAGE_SLOTS
from stages.datasets.synthetic.config import (
    SlotValues,
    SyntheticConfig,
    build_facts,
    enumerate_combinations,
    render_image,
)
from stages.shared.data.records import SPLITS, DatasetItem, ExtraFile, MemeRecord

CEILING_RULE = (
    "the caption and the picture compared slot by slot; from one of them alone a coin's guess"
)
MATCH_LABELS = ["wrong", "right"]


def generate_memes(params: SyntheticConfig) -> Iterator[DatasetItem]:
    yield ExtraFile("tasks.json", dict.fromkeys(IMAGE_SLOTS, MATCH_LABELS))
    ceilings: dict = {"rule": CEILING_RULE, "metric": "accuracy"}
    for split in SPLITS:
        random, judged = Random(f"{params.seed} checks {split}"), []
        scenes = enumerate_combinations(
            IMAGE_SLOTS, params.held_out_images_fraction, split == "test"
        )
        for number in range(round(getattr(params, split) * params.meme_ratio)):
            scene = random.choice(scenes)
            told, labels = sample_caption_slots(scene, random)
            judged.append(labels)
            picture, _ = render_image(scene, 0, params.image_size, random)
            yield MemeRecord(
                source=f"{split}-{number}",
                text=article_lexicon.compose_caption(told, random),
                labels=labels,
                image=picture,
                language="en",
                split=split,
                facts=build_facts(scene),
            )
        if split != "train":
            ceilings[split] = {
                slot: compute_ceilings([one[slot] for one in judged]) for slot in IMAGE_SLOTS
            }
    yield ExtraFile("ceilings.json", ceilings)


def sample_caption_slots(scene: SlotValues, random: Random) -> tuple[SlotValues, dict[str, str]]:
    """What a caption says of a scene, and whether each slot of it is right."""
    told, labels = {}, {}
    for slot, value in scene.items():
        labels[slot] = random.choice(MATCH_LABELS)
        others = [other for other in IMAGE_SLOTS[slot] if other != value]
        told[slot] = value if labels[slot] == "right" else random.choice(others)
    return told, labels


def compute_ceilings(labels: list[str]) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: accuracy}} of a slot; a coin has the better side realised."""
    coin = max(Counter(labels).values(), default=0) / max(1, len(labels))
    alone = {"expected": 0.5, "realised": round(coin, 6)}
    return {"text": alone, "picture": alone, "both": {"expected": 1.0, "realised": 1.0}}
