"""Looks of pictures: by hand, beside colorsys, and the same whatever came before."""

import colorsys
from dataclasses import asdict, replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from stages.augment.__main__ import AugmentConfig
from stages.augment.image_augmentation import (
    AugmentationRangesConfig,
    ImageTransform,
    apply_transform,
    augment_image,
    sample_transform,
)
from stages.shared.core.config import build_config, load_config
from stages.shared.runtime.stage import InputError

PLAIN = ImageTransform(flip=False, brightness=0.0, contrast=1.0, hue=0.0, saturation=1.0)
RANGES = AugmentationRangesConfig(
    flip_prob=0.5,
    brightness=0.5,
    contrast_low=0.2,
    contrast_high=1.8,
    hue=0.2,
    saturation_low=5.0,
    saturation_high=10.0,
)
STILL = AugmentationRangesConfig(
    flip_prob=0.0,
    brightness=0.0,
    contrast_low=1.0,
    contrast_high=1.0,
    hue=0.0,
    saturation_low=1.0,
    saturation_high=1.0,
)
NOISE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def row(*pixels: tuple[int, int, int]) -> np.ndarray:
    return np.array([pixels], np.uint8)


def file(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    content = BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def test_a_plain_look_changes_no_pixel():
    assert (apply_transform(NOISE, PLAIN) == NOISE).all()


@pytest.mark.parametrize(
    ("what", "before", "after"),
    [
        ({"flip": True}, row((1, 2, 3), (4, 5, 6)), row((4, 5, 6), (1, 2, 3))),
        # 0.2 of 255 is 51; nothing is brighter than white
        ({"brightness": 0.2}, row((0, 100, 250)), row((51, 151, 255))),
        # means 100, 50, 200: the distances of 100, 0 and 40 are halved
        (
            {"contrast": 0.5},
            row((0, 50, 160), (200, 50, 240)),
            row((50, 50, 180), (150, 50, 220)),
        ),
        # red, a third of the circle on, is green; grey has no hue
        ({"hue": 1 / 3}, row((255, 0, 0), (80, 80, 80)), row((0, 255, 0), (80, 80, 80))),
        ({"saturation": 0.0}, row((200, 100, 50)), row((200, 200, 200))),
        ({"saturation": 0.5}, row((200, 100, 0)), row((200, 150, 100))),
        ({"saturation": 10.0}, row((200, 180, 180)), row((200, 0, 0))),
    ],
)
def test_each_change_by_hand(what, before, after):
    assert apply_transform(before, replace(PLAIN, **what)).tolist() == after.tolist()


def test_hue_and_saturation_are_those_of_colorsys():
    found = apply_transform(NOISE, replace(PLAIN, hue=-0.13, saturation=1.4))
    for before, after in zip(NOISE.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        wanted = colorsys.hsv_to_rgb((hue - 0.13) % 1, min(1, saturation * 1.4), value)
        assert np.abs(np.array(wanted) * 255 - after).max() < 0.51


def test_what_is_drawn_keeps_to_its_ranges_and_fills_them():
    looks = [sample_transform(RANGES, f"0 meme {number}") for number in range(500)]
    for name, low, high in [
        ("brightness", -0.5, 0.5),
        ("contrast", 0.2, 1.8),
        ("hue", -0.2, 0.2),
        ("saturation", 5.0, 10.0),
    ]:
        drawn = [getattr(one, name) for one in looks]
        assert low <= min(drawn) < low + (high - low) / 50
        assert high - (high - low) / 50 < max(drawn) <= high
    assert 200 < sum(one.flip for one in looks) < 300


def test_a_look_follows_from_its_name_alone():
    content = file(NOISE)
    first = augment_image(content, RANGES, "0 a 1", None)
    augment_image(content, RANGES, "0 a 2", None)
    assert augment_image(content, RANGES, "0 a 1", None) == first
    assert augment_image(content, RANGES, "0 a 2", None) != first
    # Less flipping leaves the rest as it was.
    assert (
        sample_transform(replace(RANGES, flip_prob=0.0), "x").hue
        == sample_transform(RANGES, "x").hue
    )


def test_png_is_lossless_and_jpeg_close():
    content = file(NOISE)
    assert (
        np.asarray(Image.open(BytesIO(augment_image(content, STILL, "a", None)))) == NOISE
    ).all()
    jpeg = Image.open(BytesIO(augment_image(content, STILL, "a", 100)))
    assert jpeg.format == "JPEG"
    assert np.abs(np.asarray(jpeg).astype(int) - NOISE).mean() < 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1"])
def test_every_kind_of_picture_becomes_rgb_of_its_size(mode):
    content = BytesIO()
    Image.new(mode, (6, 4)).save(content, "TIFF")
    made = Image.open(BytesIO(augment_image(content.getvalue(), RANGES, "a", None)))
    assert (made.mode, made.size) == ("RGB", (6, 4))


@pytest.mark.parametrize(
    "wrong",
    [{"contrast_low": 2.0}, {"saturation_low": -1.0}, {"flip_prob": 1.5}, {"hue": -0.1}],
)
def test_a_range_that_cannot_be_is_one_sentence(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(InputError, match=rf"^params.yaml: mild[.:] ?{name} is {value}: give"):
        build_config(AugmentationRangesConfig, asdict(RANGES) | wrong, "mild")


def test_the_papers_numbers_are_in_params_and_the_milder_ones_are_milder():
    """The paper: brightness .5, contrast .2 to 1.8, hue .2, saturation 5 to 10."""
    shipped = load_config(AugmentConfig, "augment").image.policies
    assert shipped["paper"] == RANGES
    change = [
        np.abs(
            apply_transform(NOISE, sample_transform(shipped[name], str(n))).astype(int) - NOISE
        ).mean()
        for name in ("mild", "paper")
        for n in range(50)
        if not sample_transform(shipped[name], str(n)).flip
    ]
    half = [sample_transform(shipped["mild"], str(n)).flip for n in range(50)].count(False)
    assert max(change[:half]) < min(change[half:])
