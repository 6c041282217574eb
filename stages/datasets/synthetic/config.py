"""What all kinds of the sample corpus share: its numbers, which scenes a split shows, pictures."""

from collections.abc import Iterator
from io import BytesIO
from itertools import product
from random import Random
from typing import Literal, TypeVar

from stages.datasets.synthetic import article_lexicon, scene_renderer
from stages.shared.core.config import config_class
from stages.shared.data.records import Fact, ImageBytes, SlotBox
from stages.shared.runtime.stage import InputError

SlotValues = dict[str, str]  # slot -> value
TWEET_RULES = ("weather", "phrase")
T = TypeVar("Card")


@config_class
class SyntheticConfig:
    seed: int
    image_size: int
    train: int
    validation: int
    test: int
    captions_per_image: int
    caption_ratio: float
    tweet_ratio: float
    post_ratio: float
    single_slot_fraction: float
    held_out_images_fraction: float
    held_out_titles_fraction: float
    held_out_names_fraction: float
    entity_type_rule: str
    meme_style: Literal["overlaid", "captioned"]
    meme_ratio: float
    meme_scale: int
    meme_jpeg_quality: int
    meme_label_noise: float

    def __post_init__(self) -> None:
        if self.entity_type_rule not in TWEET_RULES:
            raise InputError(
                f"params.yaml: formats.synthetic.tweet_rule is {self.entity_type_rule!r}: choose one of "
                + " | ".join(TWEET_RULES)
            )
        if not 0 < self.held_out_names_fraction < 1:
            raise InputError(
                f"params.yaml: formats.synthetic.held_out_names is {self.held_out_names_fraction}: give a "
                "share above 0, so that test has names of its own, and below 1"
            )
        faults = {
            f"meme_share is {self.meme_ratio}: give 0 or more": not self.meme_ratio >= 0,
            f"meme_zoom is {self.meme_scale}: give 1 or more": self.meme_scale < 1,
            f"meme_quality is {self.meme_jpeg_quality}: give 1 to 95": not 1
            <= self.meme_jpeg_quality
            <= 95,
        }
        if found := [fault for fault, here in faults.items() if here]:
            raise InputError(f"params.yaml: formats.synthetic.{'; '.join(found)}")
        if not 0 <= self.meme_label_noise < 0.5:
            raise InputError(
                f"params.yaml: formats.synthetic.meme_noise is {self.meme_label_noise}: give a share from 0 "
                "to below 0.5, so that the true label is the most probable one"
            )


def enumerate_combinations(
    slots: dict[str, dict], share: float, held_out: bool
) -> list[SlotValues]:
    """All combinations of values that this side of the hold-out may show."""
    every = (dict(zip(slots, values, strict=True)) for values in product(*slots.values()))
    return [
        one for one in every if article_lexicon.is_held_out(one, list(slots), share) == held_out
    ]


def render_image(
    scene: SlotValues, position: int, size: int, random: Random
) -> tuple[ImageBytes, SlotBox]:
    """A picture (size x size) of the scene, and where its object is."""
    file, drawn = BytesIO(), scene_renderer.render_scene(scene, random, size)
    # Noise makes PNG three times as large; without subsampling the colours stay as drawn.
    drawn.image.save(file, "JPEG", quality=95, subsampling=0)
    return ImageBytes(file.getvalue()), SlotBox(position, "object", *drawn.box)


def build_facts(scene: SlotValues) -> list[Fact]:
    """What is true of the only picture of a record."""
    return [Fact(0, slot, value) for slot, value in scene.items()]


def cycle_shuffled(deck: list[T], random: Random) -> Iterator[T]:
    """Cards without end: the deck shuffled, and again once all are dealt.

    Whatever number is taken, each card has come as often as another, or once more or less.
    """
    while True:
        yield from random.sample(deck, len(deck))
