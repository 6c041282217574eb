"""Text masks, and inpainting by crops against inpainting of the whole image."""

from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest

from stages.inpaint import masks
from stages.inpaint.masks import Crop, TextMaskConfig


def make_quad(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def make_quads(*bounds: tuple[float, float, float, float]) -> np.ndarray:
    return np.array([make_quad(*box) for box in bounds], np.float32)


WHOLE_BOXES = TextMaskConfig(
    margin=0.2,
    border_width=0.1,
    min_uniform_fraction=1.1,  # never reached: no background counts as uniform
    color_tolerance=24,
    dilation=0.1,
    line_extension=0.0,
)
LETTERS = replace(WHOLE_BOXES, min_uniform_fraction=0.6)


def build_box_mask(height: int, width: int, quads: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """A mask of whole boxes."""
    image = np.zeros((height, width, 3), np.uint8)
    return masks.build_text_mask(image, quads, replace(WHOLE_BOXES, margin=margin))


def test_a_box_grows_on_each_side_by_a_fraction_of_its_text_height():
    """A box of 20 x 10 pixels grows by a fifth of 10."""
    mask = build_box_mask(60, 80, make_quads((30, 20, 50, 30)), 0.2)
    ys, xs = np.nonzero(mask)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (28, 52, 18, 32)
    assert np.array_equal(masks.from_png(masks.to_png(mask)), mask)


def test_without_margin_the_box_itself_is_masked():
    mask = build_box_mask(60, 80, make_quads((30, 20, 50, 30)))
    assert (mask > 0).sum() == 21 * 11 and set(np.unique(mask)) == {0, 255}


def test_a_box_at_the_edge_stays_within_the_image():
    assert build_box_mask(20, 30, make_quads((0, 0, 30, 20)), 1.0).min() == 255


def test_a_tilted_box_grows_by_its_own_height():
    tilted = np.array([[[40, 20], [60, 40], [50, 50], [30, 30]]], np.float32)
    thin, thick = (build_box_mask(80, 80, tilted, share) > 0 for share in (0.0, 0.5))
    distance = cv2.distanceTransform((~thin).astype(np.uint8), cv2.DIST_L2, 5)
    assert distance[thick].max() == pytest.approx(0.5 * 200**0.5, abs=1.5)


def test_on_a_uniform_background_only_letters_are_masked():
    """A letter of 4 x 10 pixels in a box 20 high grows by a tenth of 20."""
    image = np.full((60, 80, 3), 200, np.uint8)
    image[25:35, 40:44] = 10
    image[5:8, 5:8] = 10  # outside the box
    ys, xs = np.nonzero(masks.build_text_mask(image, make_quads((30, 20, 70, 40)), LETTERS))
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (38, 45, 23, 36)


def test_on_a_photo_the_whole_box_is_masked():
    image = make_noise(60, 80)
    quads = make_quads((30, 20, 70, 40))
    assert np.array_equal(
        masks.build_text_mask(image, quads, LETTERS),
        masks.build_text_mask(image, quads, WHOLE_BOXES),
    )


def test_letters_of_the_next_line_do_not_count_as_background():
    image = np.full((100, 200, 3), 255, np.uint8)
    image[40:60, 10:190] = make_noise(20, 180)  # the second line, close to the first
    image[25:35, 50:60] = 0
    first, second = (10, 18, 190, 42), (10, 38, 190, 62)
    mask = masks.build_text_mask(image, make_quads(first, second), LETTERS)
    assert mask[20, 100] == 0 and mask[30, 55] == 255 and mask[50, 100] == 255


def test_dots_at_the_end_of_a_line_are_masked_and_an_adjacent_photo_is_not():
    image = np.full((60, 160, 3), 200, np.uint8)
    image[25:35, 60:64] = 10  # a letter
    image[33:36, 86:89] = 10  # a dot, half a text height beyond the box
    image[10:50, 20:45] = 10  # a photo that reaches into the extended box
    quads = make_quads((50, 20, 75, 40))
    extended = masks.build_text_mask(image, quads, replace(LETTERS, line_extension=1.0)) > 0
    assert extended[25:35, 60:64].all() and extended[33:36, 86:89].all()
    assert not extended[:, :49].any()
    assert not masks.build_text_mask(image, quads, LETTERS)[:, 80:].any()


def test_a_box_is_extended_along_its_text():
    across, down = make_quad(10, 10, 50, 20), make_quad(10, 10, 20, 50)
    assert masks.extend_quad(across, 5).tolist() == make_quad(5, 10, 55, 20).tolist()
    assert masks.extend_quad(down, 5).tolist() == make_quad(10, 5, 20, 55).tolist()


def test_crops_include_the_context_and_are_merged_where_they_overlap():
    quads = make_quads((100, 50, 150, 60), (100, 80, 150, 90), (10, 150, 20, 160))
    mask = build_box_mask(200, 300, quads)
    assert masks.find_crops(mask, 5) == [
        Crop(5, 145, 26, 166),
        Crop(95, 45, 156, 66),
        Crop(95, 75, 156, 96),
    ]
    assert masks.find_crops(mask, 12) == [Crop(0, 138, 33, 173), Crop(88, 38, 163, 103)]
    assert masks.find_crops(mask, 300) == [Crop(0, 0, 300, 200)]
    assert masks.find_crops(np.zeros((5, 5), np.uint8), 3) == []


def make_noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


TELEA = partial(cv2.inpaint, inpaintRadius=3.0, flags=cv2.INPAINT_TELEA)


def test_crops_with_enough_context_match_the_whole_image():
    image = make_noise(160, 240)
    mask = build_box_mask(160, 240, make_quads((20, 20, 90, 35), (120, 100, 220, 120)), 0.1)
    assert len(masks.find_crops(mask, 16)) == 2
    whole = TELEA(image, mask)
    assert np.array_equal(masks.inpaint_image(image, mask, TELEA, 16, 1000), whole)


@pytest.mark.parametrize("max_crop_size", [1000, 64, 7])
def test_a_scaled_crop_changes_nothing_outside_the_mask(max_crop_size):
    image = make_noise(120, 250)
    mask = build_box_mask(120, 250, make_quads((20, 20, 190, 60)), 0.1)
    result = masks.inpaint_image(image, mask, TELEA, 10, max_crop_size)
    assert np.array_equal(result[mask == 0], image[mask == 0])
    assert not np.array_equal(result, image)


def test_a_scaled_crop_takes_no_color_from_under_the_mask():
    image = np.full((200, 400, 3), 200, np.uint8)
    mask = build_box_mask(200, 400, make_quads((53, 41, 347, 119)), 0.1)
    image[mask > 0] = (255, 0, 0)
    result = masks.inpaint_image(image, mask, TELEA, 33, 64).astype(int)
    assert np.ptp(result, axis=2).max() == 0  # no red
    assert abs(result - 200).max() < 8  # Telea's own rounding


def test_a_line_without_any_pixel_is_no_text(recwarn):
    """A box at the edge, whose border shows no background."""
    image = np.full((60, 120, 3), 90, np.uint8)
    mask = masks.build_text_mask(image, make_quads((120, 20, 120, 40)), LETTERS)
    assert not mask.any() and not list(recwarn)
