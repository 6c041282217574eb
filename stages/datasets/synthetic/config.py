"""What all kinds of the sample corpus share: its numbers, which scenes a split shows, pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from random import Random
from typing import Literal, TypeVar

from stages.datasets.synthetic import article_lexicon, scene_renderer
from stages.shared.data.records import Box, Fact, Picture
from stages.shared.runtime.stage import WrongInput

Values = dict[str, str]  # slot -> value
TWEET_RULES = ("weather", "phrase")
Card = TypeVar("Card")


@dataclass(frozen=True)
class Params:
    seed: int
    size: int
    train: int
    validation: int
    test: int
    captions: int
    caption_share: float
    tweet_share: float
    post_share: float
    one_slot_share: float
    held_out_pictures: float
    held_out_titles: float
    held_out_names: float
    tweet_rule: str
    memes: Literal["overlaid", "captioned"]
    meme_share: float
    meme_zoom: int
    meme_quality: int
    meme_noise: float

    def __post_init__(self) -> None:
        if self.tweet_rule not in TWEET_RULES:
            raise WrongInput(
                f"params.yaml: formats.synthetic.tweet_rule is {self.tweet_rule!r}: choose one of "
                + " | ".join(TWEET_RULES)
            )
        if not 0 < self.held_out_names < 1:
            raise WrongInput(
                f"params.yaml: formats.synthetic.held_out_names is {self.held_out_names}: give a "
                "share above 0, so that test has names of its own, and below 1"
            )
        faults = {
            f"meme_share is {self.meme_share}: give 0 or more": not self.meme_share >= 0,
            f"meme_zoom is {self.meme_zoom}: give 1 or more": self.meme_zoom < 1,
            f"meme_quality is {self.meme_quality}: give 1 to 95": not 1 <= self.meme_quality <= 95,
        }
        if found := [fault for fault, here in faults.items() if here]:
            raise WrongInput(f"params.yaml: formats.synthetic.{'; '.join(found)}")
        if not 0 <= self.meme_noise < 0.5:
            raise WrongInput(
                f"params.yaml: formats.synthetic.meme_noise is {self.meme_noise}: give a share from 0 "
                "to below 0.5, so that the true label is the most probable one"
            )


def combinations(slots: dict[str, dict], share: float, held_out: bool) -> list[Values]:
    """All combinations of values that this side of the hold-out may show."""
    every = (dict(zip(slots, values, strict=True)) for values in product(*slots.values()))
    return [
        one for one in every if article_lexicon.is_held_out(one, list(slots), share) == held_out
    ]


def picture_of(scene: Values, position: int, size: int, random: Random) -> tuple[Picture, Box]:
    """A picture (size x size) of the scene, and where its object is."""
    file, drawn = BytesIO(), scene_renderer.draw(scene, random, size)
    # Noise makes PNG three times as large; without subsampling the colours stay as drawn.
    drawn.image.save(file, "JPEG", quality=95, subsampling=0)
    return Picture(file.getvalue()), Box(position, "object", *drawn.box)


def facts_of(scene: Values) -> list[Fact]:
    """What is true of the only picture of a record."""
    return [Fact(0, slot, value) for slot, value in scene.items()]


def dealt(deck: list[Card], random: Random) -> Iterator[Card]:
    """Cards without end: the deck shuffled, and again once all are dealt.

    Whatever number is taken, each card has come as often as another, or once more or less.
    """
    while True:
        yield from random.sample(deck, len(deck))
