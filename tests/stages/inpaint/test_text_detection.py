"""Where text is found and what is read: the same each time, with no network and no noise."""

import subprocess
import sys
from dataclasses import replace
from random import Random
from threading import Thread

import numpy as np
import pytest

from stages.inpaint import __main__ as inpaint
from stages.inpaint import text_detection
from stages.shared.core.config import load_config
from tests.support import overlay_text_corpus

PARAMS = load_config(inpaint.InpaintConfig, "inpaint")
SILENT = """
import socket, sys
def refuse(*given, **named): raise AssertionError("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from tests import lettered
from tests.stages.inpaint.test_text_detection import PARAMS, picture
from stages.inpaint import text_detection as text_boxes
quads, _ = text_boxes.find(picture(0), PARAMS.find)
assert len(quads) == 2
assert text_boxes.read(picture(0), quads, PARAMS.find, PARAMS.read)
assert len(text_boxes.find(picture(0)[:40, :40] * 0, PARAMS.find)[0]) == 0
"""


def picture(number: int, size: int = 256) -> np.ndarray:
    return np.asarray(overlay_text_corpus.draw_meme(number, size)[0])


def test_nothing_is_asked_of_a_network_and_nothing_is_said():
    ended = subprocess.run([sys.executable, "-c", SILENT], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_same_is_found_in_every_thread_and_each_time():
    found = [text_detection.detect_text(picture(n), PARAMS.detection) for n in range(4)]
    again: dict[int, tuple] = {}

    def work(n: int) -> None:
        again[n] = text_detection.detect_text(picture(n), PARAMS.detection)

    threads = [Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, (quads, scores) in enumerate(found):
        assert np.array_equal(again[n][0], quads) and np.array_equal(again[n][1], scores)


@pytest.mark.parametrize("size", [128, 256, 1200])
def test_boxes_are_in_pixels_of_the_picture_whatever_its_size(size):
    image, ink, _ = overlay_text_corpus.draw_meme(3, size)
    quads, _ = text_detection.detect_text(np.asarray(image), PARAMS.detection)
    ys, xs = np.nonzero(ink)
    low, high = quads.min((0, 1)), quads.max((0, 1))
    assert low == pytest.approx([xs.min(), ys.min()], abs=0.05 * size)
    assert high == pytest.approx([xs.max(), ys.max()], abs=0.05 * size)


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [
        (1280, 1280, 0.5),  # 640 x 640 pixels
        (2560, 640, 0.5),  # as many
        (400, 400, 1.6),
        (100, 100, 2.0),  # `enlarge`
        (102_400, 1, 0.1),  # sixteen sides long at most
    ],
)
def test_a_picture_is_scaled_to_as_many_pixels(width, height, scale):
    params = replace(PARAMS.detection, side=640, max_upscale=2.0)
    assert text_detection.compute_scale(width, height, params) == pytest.approx(scale)


def test_boxes_beside_each_other_share_a_line():
    def box(left: float, top: float) -> list:
        return [[left, top], [left + 30, top], [left + 30, top + 10], [left, top + 10]]

    quads = np.array([box(50, 3), box(0, 0), box(0, 30), box(60, 50), box(0, 51)], np.float32)
    assert text_detection.group_into_lines(quads) == [[1, 0], [2], [4, 3]]


def test_nothing_is_read_where_nothing_was_found():
    none = np.zeros((0, 4, 2), np.float32)
    assert text_detection.read_text(picture(0), none, PARAMS.detection, PARAMS.recognition) == ""


def test_shapes_of_a_drawing_are_seldom_taken_for_text():
    found = [
        text_detection.detect_text(
            np.asarray(overlay_text_corpus.draw_scene(Random(n))), PARAMS.detection
        )
        for n in range(20)
    ]
    assert sum(len(quads) > 0 for quads, _ in found) <= 2
