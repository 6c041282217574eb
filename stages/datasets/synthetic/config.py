"""What all kinds of the sample corpus share: its numbers, which scenes a split shows, pictures."""

from collections.abc import Iterator
from io import BytesIO
from itertools import product
from random import Random
from typing import Literal, TypeVar

from stages.datasets.synthetic import article_lexicon, scene_renderer
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import Fact, ImageBytes, SlotBox

SlotValues = dict[str, str]  # slot -> value
T = TypeVar("Card")


@config_class
class SyntheticConfig:
    seed: int = Field(description="seed of all random draws")
    image_size: int = Field(description="side of an image, pixels")
    train: int = Field(description="approximate number of article images in train")
    validation: int = Field(description="approximate number of article images in validation")
    test: int = Field(description="approximate number of article images in test")
    captions_per_image: int = Field(description="captions of a captioned image")
    caption_ratio: float = Field(description="captioned images per article image")
    tweet_ratio: float = Field(description="tweets per article image")
    post_ratio: float = Field(description="posts per article image")
    single_slot_fraction: float = Field(description="articles whose images differ in one slot only")
    held_out_images_fraction: float = Field(description="image combinations reserved for test")
    held_out_titles_fraction: float = Field(description="title combinations reserved for test")
    held_out_names_fraction: float = Field(gt=0, lt=1, description="name words reserved for test")
    entity_type_rule: Literal["weather", "phrase"] = Field(
        description="image slot that decides open entity types"
    )
    meme_style: Literal["overlaid", "captioned"] = Field(
        description="text over the image, or a caption to check against it"
    )
    meme_ratio: float = Field(ge=0, description="memes per article image")
    meme_scale: int = Field(ge=1, description="side of a meme's scene, in units of image_size")
    meme_jpeg_quality: int = Field(ge=1, le=95, description="JPEG quality of a meme, 1 to 95")
    # Below 0.5 the true label stays the most probable one.
    meme_label_noise: float = Field(ge=0, lt=0.5, description="share of labels replaced at random")


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
