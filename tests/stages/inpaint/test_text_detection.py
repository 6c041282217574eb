"""Text detection and recognition: reproducible, offline and silent."""

# ruff: noqa: RUF001  (Greek and Armenian letters that look Latin are the point)

import subprocess
import sys
from dataclasses import replace
from random import Random
from threading import Thread

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from stages.inpaint import __main__ as inpaint
from stages.inpaint import text_detection
from stages.shared.core.config import load_config
from tests.support import overlay_text_corpus

CONFIG = load_config(inpaint.InpaintConfig, "inpaint")
SILENT_RUN = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("network access")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from tests.stages.inpaint.test_text_detection import CONFIG, draw_meme
from stages.inpaint import text_detection
quads, _ = text_detection.detect_text(draw_meme(0), CONFIG.detection)
assert len(quads) == 2
assert text_detection.read_text(draw_meme(0), quads, CONFIG.detection, CONFIG.recognition)
assert len(text_detection.detect_text(draw_meme(0)[:40, :40] * 0, CONFIG.detection)[0]) == 0
"""


def draw_meme(number: int, size: int = 256) -> np.ndarray:
    return np.asarray(overlay_text_corpus.draw_meme(number, size)[0])


def test_there_is_no_network_access_and_no_output():
    result = subprocess.run([sys.executable, "-c", SILENT_RUN], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_detection_is_the_same_in_every_thread():
    expected = [text_detection.detect_text(draw_meme(n), CONFIG.detection) for n in range(4)]
    results: dict[int, tuple] = {}

    def work(n: int) -> None:
        results[n] = text_detection.detect_text(draw_meme(n), CONFIG.detection)

    threads = [Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, (quads, scores) in enumerate(expected):
        assert np.array_equal(results[n][0], quads) and np.array_equal(results[n][1], scores)


@pytest.mark.parametrize("size", [128, 256, 1200])
def test_boxes_are_in_pixels_of_the_image_for_every_size(size):
    image, ink, _ = overlay_text_corpus.draw_meme(3, size)
    quads, _ = text_detection.detect_text(np.asarray(image), CONFIG.detection)
    ys, xs = np.nonzero(ink)
    low, high = quads.min((0, 1)), quads.max((0, 1))
    assert low == pytest.approx([xs.min(), ys.min()], abs=0.05 * size)
    assert high == pytest.approx([xs.max(), ys.max()], abs=0.05 * size)


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [
        (1280, 1280, 0.5),  # 640 x 640 pixels
        (2560, 640, 0.5),  # the same number
        (400, 400, 1.6),
        (100, 100, 2.0),  # max_upscale
        (102_400, 1, 0.1),  # at most 16 * input_size long
    ],
)
def test_images_are_scaled_to_the_same_number_of_pixels(width, height, scale):
    config = replace(CONFIG.detection, input_size=640, max_upscale=2.0)
    assert text_detection.compute_scale(width, height, config) == pytest.approx(scale)


def test_boxes_at_the_same_height_share_a_line():
    def box(left: float, top: float) -> list:
        return [[left, top], [left + 30, top], [left + 30, top + 10], [left, top + 10]]

    quads = np.array([box(50, 3), box(0, 0), box(0, 30), box(60, 50), box(0, 51)], np.float32)
    assert text_detection.group_into_lines(quads) == [[1, 0], [2], [4, 3]]


def test_without_boxes_the_text_is_empty():
    no_boxes = np.zeros((0, 4, 2), np.float32)
    assert (
        text_detection.read_text(draw_meme(0), no_boxes, CONFIG.detection, CONFIG.recognition) == ""
    )


def test_drawn_shapes_are_seldom_detected_as_text():
    scenes = [np.asarray(overlay_text_corpus.draw_scene(Random(n))) for n in range(20)]
    detections = [text_detection.detect_text(scene, CONFIG.detection) for scene in scenes]
    assert sum(len(quads) > 0 for quads, _ in detections) <= 2


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_text_is_read_however_the_image_is_turned(degrees):
    meme = Image.new("RGB", (640, 480), (90, 120, 90))
    draw, font = ImageDraw.Draw(meme), ImageFont.load_default(size=56)
    for row, line in [(40, "WHEN THE SOUP"), (380, "IS COLD AGAIN")]:
        draw.text((40, row), line, "white", font, stroke_width=3, stroke_fill="black")
    turned = np.asarray(meme.rotate(degrees, expand=True))
    quads, _ = text_detection.detect_text(turned, CONFIG.detection)
    text = text_detection.read_text(turned, quads, CONFIG.detection, CONFIG.recognition)
    assert text == "WHEN THE SOUP\nIS COLD AGAIN"


FONTS = matplotlib.get_data_path() + "/fonts/ttf"  # DejaVu, which has these scripts


def read_meme(*lines: str, font: str = "DejaVuSans-Bold") -> str:
    """The text that is read from an image of these lines."""
    meme = Image.new("RGB", (960, 90 * len(lines) + 40), (90, 120, 90))
    typeface, draw = ImageFont.truetype(f"{FONTS}/{font}.ttf", 48), ImageDraw.Draw(meme)
    for number, line in enumerate(lines):
        place = (40, 30 + 90 * number)
        draw.text(place, line, "white", typeface, stroke_width=3, stroke_fill="black")
    image = np.asarray(meme)
    quads, _ = text_detection.detect_text(image, CONFIG.detection)
    assert len(quads) >= len(lines) // 2
    return text_detection.read_text(image, quads, CONFIG.detection, CONFIG.recognition)


@pytest.mark.parametrize("font", ["DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif"])
@pytest.mark.parametrize(
    "lines",
    [
        ["ΟΤΑΝ Η ΣΟΥΠΑ", "είναι πάλι κρύα σήμερα", "Κανείς δεν διαβάζει αυτό"],
        ["ΚΑΝΕΙΣ ΔΕΝ ΞΕΡΕΙ", "η γάτα μου λέει γεια"],
        ["КОГДА СУП", "снова холодный сегодня", "МОЯ КОШКА ГОВОРИТ ПРИВЕТ"],
        ["КОЛИ СУП", "знову холодний сьогодні", "Ніхто цього не читає"],
        ["ԲԱՐԵՎ ԱՇԽԱՐՀ", "ոչ ոք սա չի կարդում"],
    ],
    ids=["Greek", "Greek capitals", "Russian", "Ukrainian", "Armenian"],
)
def test_an_unknown_script_is_not_read_as_similar_letters(lines, font):
    assert read_meme(*lines, font=font) == ""


@pytest.mark.parametrize(
    "lines", [["שלום עולם", "אף אחד לא קורא את זה"], ["مرحبا بالعالم", "لا أحد يقرأ هذا"]]
)
def test_a_script_from_right_to_left_is_not_read_as_similar_letters(lines):
    assert read_meme(*lines, font="DejaVuSans") == ""


def test_a_line_in_an_unknown_script_does_not_hide_the_others():
    lines = ["WHEN THE SOUP IS COLD AGAIN", "Nobody reads this text", "γεια σου"]
    assert read_meme(*lines) == "\n".join(lines[:2])


def test_accents_and_single_greek_symbols_are_read():
    lines = ["schön wäre es, natürlich", "π = 3 of 20", "est déjà très froide"]
    assert read_meme(*lines, font="DejaVuSans").splitlines() == lines
