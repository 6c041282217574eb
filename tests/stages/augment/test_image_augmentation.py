"""Image transforms, with values derived by hand and by colorsys, and their reproducibility."""

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

IDENTITY = ImageTransform(flip=False, brightness=0.0, contrast=1.0, hue=0.0, saturation=1.0)
RANGES = AugmentationRangesConfig(
    flip_prob=0.5,
    brightness=0.5,
    contrast_low=0.2,
    contrast_high=1.8,
    hue=0.2,
    saturation_low=5.0,
    saturation_high=10.0,
)
IDENTITY_RANGES = AugmentationRangesConfig(
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


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    content = BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def test_the_identity_transform_changes_no_pixel():
    assert (apply_transform(NOISE, IDENTITY) == NOISE).all()


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ({"flip": True}, row((1, 2, 3), (4, 5, 6)), row((4, 5, 6), (1, 2, 3))),
        # 0.2 of 255 is 51; values are clipped at 255
        ({"brightness": 0.2}, row((0, 100, 250)), row((51, 151, 255))),
        # channel means 100, 50, 200: the distances 100, 0 and 40 are halved
        (
            {"contrast": 0.5},
            row((0, 50, 160), (200, 50, 240)),
            row((50, 50, 180), (150, 50, 220)),
        ),
        # red rotated by a third of the circle is green; gray has no hue
        ({"hue": 1 / 3}, row((255, 0, 0), (80, 80, 80)), row((0, 255, 0), (80, 80, 80))),
        ({"saturation": 0.0}, row((200, 100, 50)), row((200, 200, 200))),
        ({"saturation": 0.5}, row((200, 100, 0)), row((200, 150, 100))),
        ({"saturation": 10.0}, row((200, 180, 180)), row((200, 0, 0))),
    ],
)
def test_each_change_matches_values_derived_by_hand(change, before, after):
    assert apply_transform(before, replace(IDENTITY, **change)).tolist() == after.tolist()


def test_hue_and_saturation_equal_those_of_colorsys():
    transformed = apply_transform(NOISE, replace(IDENTITY, hue=-0.13, saturation=1.4))
    for before, after in zip(NOISE.reshape(-1, 3), transformed.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb((hue - 0.13) % 1, min(1, saturation * 1.4), value)
        assert np.abs(np.array(expected) * 255 - after).max() < 0.51


def test_samples_are_within_their_ranges_and_cover_them():
    transforms = [sample_transform(RANGES, f"0 meme {number}") for number in range(500)]
    for name, low, high in [
        ("brightness", -0.5, 0.5),
        ("contrast", 0.2, 1.8),
        ("hue", -0.2, 0.2),
        ("saturation", 5.0, 10.0),
    ]:
        values = [getattr(transform, name) for transform in transforms]
        assert low <= min(values) < low + (high - low) / 50
        assert high - (high - low) / 50 < max(values) <= high
    assert 200 < sum(transform.flip for transform in transforms) < 300


def test_a_transform_only_depends_on_its_name():
    content = encode(NOISE)
    first = augment_image(content, RANGES, "0 a 1", None)
    augment_image(content, RANGES, "0 a 2", None)
    assert augment_image(content, RANGES, "0 a 1", None) == first
    assert augment_image(content, RANGES, "0 a 2", None) != first
    # A change of one range does not affect the other values.
    assert (
        sample_transform(replace(RANGES, flip_prob=0.0), "x").hue
        == sample_transform(RANGES, "x").hue
    )


def test_png_is_lossless_and_jpeg_is_close():
    content = encode(NOISE)
    assert (
        np.asarray(Image.open(BytesIO(augment_image(content, IDENTITY_RANGES, "a", None)))) == NOISE
    ).all()
    jpeg = Image.open(BytesIO(augment_image(content, IDENTITY_RANGES, "a", 100)))
    assert jpeg.format == "JPEG"
    assert np.abs(np.asarray(jpeg).astype(int) - NOISE).mean() < 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1"])
def test_an_image_of_any_mode_becomes_rgb_of_the_same_size(mode):
    content = BytesIO()
    Image.new(mode, (6, 4)).save(content, "TIFF")
    augmented = Image.open(BytesIO(augment_image(content.getvalue(), RANGES, "a", None)))
    assert (augmented.mode, augmented.size) == ("RGB", (6, 4))


@pytest.mark.parametrize(
    "invalid",
    [{"contrast_low": 2.0}, {"saturation_low": -1.0}, {"flip_prob": 1.5}, {"hue": -0.1}],
)
def test_an_invalid_range_is_rejected(invalid):
    name, value = next(iter(invalid.items()))
    with pytest.raises(InputError, match=rf"^params.yaml: mild[.:] ?{name} is {value}: give"):
        build_config(AugmentationRangesConfig, asdict(RANGES) | invalid, "mild")


def test_the_default_policies_are_those_of_the_paper_and_milder_ones():
    """The paper: brightness .5, contrast .2 to 1.8, hue .2, saturation 5 to 10."""
    policies = load_config(AugmentConfig, "augment").image.policies
    assert policies["paper"] == RANGES
    differences = [
        np.abs(
            apply_transform(NOISE, sample_transform(policies[name], str(n))).astype(int) - NOISE
        ).mean()
        for name in ("mild", "paper")
        for n in range(50)
        if not sample_transform(policies[name], str(n)).flip
    ]
    num_mild = [sample_transform(policies["mild"], str(n)).flip for n in range(50)].count(False)
    assert max(differences[:num_mild]) < min(differences[num_mild:])
