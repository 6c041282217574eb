"""Shared by all kinds of the synthetic corpus: config, held-out combinations, images."""

from collections.abc import Iterator
from io import BytesIO
from itertools import product
from random import Random
from typing import Literal, TypeVar

from stages.datasets.synthetic import article_lexicon, scene_renderer
from stages.shared.core.config import Field, config_class
from stages.shared.data.records import Fact, ImageBytes, SlotBox

SlotValues = dict[str, str]  # slot -> value
T = TypeVar("T")


@config_class
class SyntheticConfig:
    seed: int = Field(description="seed of all random draws")
    image_size: int = Field(description="side of an image, pixels")
    train: int = Field(description="approximate number of article images in train")
    validation: int = Field(description="approximate number of article images in validation")
    test: int = Field(description="approximate number of article images in test")
    article_style: Literal["chunks", "one_text"] = Field(
        description="a text per image, or one text about all images of an article"
    )
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
    slots: dict[str, dict], held_out_fraction: float, held_out: bool
) -> list[SlotValues]:
    """All combinations of values that are held out for test, or all that are not."""
    combinations = (dict(zip(slots, values, strict=True)) for values in product(*slots.values()))
    return [
        values
        for values in combinations
        if article_lexicon.is_held_out(values, list(slots), held_out_fraction) == held_out
    ]


def render_image(
    scene: SlotValues, position: int, size: int, random: Random
) -> tuple[ImageBytes, SlotBox]:
    """A JPEG (size x size pixels) of the scene, and the box of its object."""
    file, rendered = BytesIO(), scene_renderer.render_scene(scene, random, size)
    # JPEG, since noise makes PNG three times as large; subsampling would change the colours.
    rendered.image.save(file, "JPEG", quality=95, subsampling=0)
    return ImageBytes(file.getvalue()), SlotBox(position, "object", *rendered.box)


def build_facts(scene: SlotValues) -> list[Fact]:
    """The facts of a record with a single image."""
    return [Fact(0, slot, value) for slot, value in scene.items()]


def cycle_shuffled(items: list[T], random: Random) -> Iterator[T]:
    """Yield the items endlessly, shuffled anew in each cycle.

    At any point, the numbers of times that two items have been yielded differ by at most 1.
    """
    while True:
        yield from random.sample(items, len(items))
