"""Synthetic memes of the style `captioned`: which image slots does a caption state correctly?

They test MM-ORIENT on image-caption pairs without text over the image. Each slot of the image is a
task; half of the captions state it wrongly. Neither text nor image alone contains information about
the label: the accuracy ceiling of one input is 0.5, that of both is 1. The test split shows scenes
that no other split shows.
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


def generate_memes(config: SyntheticConfig) -> Iterator[DatasetItem]:
    """Yield tasks.json, the records of all splits, and ceilings.json."""
    yield ExtraFile("tasks.json", dict.fromkeys(IMAGE_SLOTS, MATCH_LABELS))
    ceilings: dict = {"rule": CEILING_RULE, "metric": "accuracy"}
    for split in SPLITS:
        random, labels_of_split = Random(f"{config.seed} checks {split}"), []
        scenes = enumerate_combinations(
            IMAGE_SLOTS, config.held_out_images_fraction, split == "test"
        )
        for number in range(round(getattr(config, split) * config.meme_ratio)):
            scene = random.choice(scenes)
            caption_slots, labels = sample_caption_slots(scene, random)
            labels_of_split.append(labels)
            image, _ = render_image(scene, 0, config.image_size, random)
            yield MemeRecord(
                source=f"{split}-{number}",
                text=article_lexicon.compose_caption(caption_slots, random),
                labels=labels,
                image=image,
                language="en",
                split=split,
                facts=build_facts(scene),
            )
        if split != "train":
            ceilings[split] = {
                slot: compute_ceilings([labels[slot] for labels in labels_of_split])
                for slot in IMAGE_SLOTS
            }
    yield ExtraFile("ceilings.json", ceilings)


def sample_caption_slots(scene: SlotValues, random: Random) -> tuple[SlotValues, dict[str, str]]:
    """The slot values of a caption, and for each slot whether it matches the scene."""
    caption_slots, labels = {}, {}
    for slot, value in scene.items():
        labels[slot] = random.choice(MATCH_LABELS)
        wrong_values = [other for other in IMAGE_SLOTS[slot] if other != value]
        caption_slots[slot] = value if labels[slot] == "right" else random.choice(wrong_values)
    return caption_slots, labels


def compute_ceilings(labels: list[str]) -> dict[str, dict[str, float]]:
    """{inputs: {expected | realised: accuracy}} of a slot.

    The realised accuracy of a single input is that of always predicting the more frequent label.
    """
    majority = max(Counter(labels).values(), default=0) / max(1, len(labels))
    single_input = {"expected": 0.5, "realised": round(majority, 6)}
    both = {"expected": 1.0, "realised": 1.0}
    return {"text": single_input, "picture": single_input, "both": both}
