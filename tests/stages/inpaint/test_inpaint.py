"""Memes of every kind of picture through the stage: text goes, every other pixel stays."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz import fuzz

from stages.inpaint import __main__ as inpaint
from stages.inpaint import inpainters, masks, text_detection, text_removal
from stages.inpaint.inpainters import InpainterConfig
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store, parallel
from stages.shared.data.cache import Store
from stages.shared.runtime.stage import InputError
from tests.support import overlay_text_corpus

PARAMS = replace(load_config(inpaint.InpaintConfig, "inpaint"), num_shards=2)
THREADS = parallel.EngineConfig("threads", 2)


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


def run(folder, rows, records, params=PARAMS, workers=THREADS, name="out"):
    """(INPAINTED rows by picture, contents by sha256, summary)."""
    sources = overlay_text_corpus.save_corpus(folder, rows, records)
    inpaint.main(params, workers, *sources, folder / name)
    found = schemas.read_parquet(folder / name / "pictures.parquet", schemas.INPAINTED_IMAGES)
    contents = {
        row["sha256"]: row["bytes"] for row in image_store.read_images(folder / name / "images")
    }
    summary = json.loads((folder / name / "summary.json").read_text())
    return {row["image"]: row for row in found}, contents, summary


def records_of(rows: list[dict], text: str = "given") -> list[dict]:
    return [overlay_text_corpus.make_record(n, row["sha256"], text) for n, row in enumerate(rows)]


def bytes_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@cache
def meme_rows(count: int = 4) -> list[dict]:
    return [
        overlay_text_corpus.make_image_row(overlay_text_corpus.draw_meme(number)[0])
        for number in range(count)
    ]


def bare_row() -> dict:
    return overlay_text_corpus.make_image_row(Image.new("RGB", (80, 60), (90, 150, 60)), "JPEG")


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(image_store.decode_image(content))


def assert_only_the_mask_changed(row: dict, before: bytes, after: bytes) -> None:
    old, new, mask = pixels(before), pixels(after), masks.from_png(row["mask"])
    assert old.shape == new.shape and mask.shape == old.shape[:2]
    assert set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(old[mask == 0], new[mask == 0])
    assert row["masked"] == pytest.approx((mask > 0).mean(), abs=1e-6)


# ------------------------------------------------------------------------------- what comes out
def test_text_goes_and_every_pixel_outside_the_mask_stays(tmp_path):
    rows = meme_rows()
    found, contents, summary = run(tmp_path, rows, records_of(rows))
    for row in rows:
        out = found[row["sha256"]]
        assert out["inpainted"] != row["sha256"] and out["text"] is None
        assert_only_the_mask_changed(out, row["bytes"], contents[out["inpainted"]])
        quads, _ = text_detection.detect_text(pixels(contents[out["inpainted"]]), PARAMS.detection)
        assert len(quads) == 0
    assert summary == {
        "pictures": 4,
        "with_text": 4,
        "passed_through": 0,
        "recognised": 0,
        "failed": {},
        "masked": pytest.approx(np.mean([row["masked"] for row in found.values()])),
    }


def test_the_letters_are_inside_the_mask_and_little_else_is():
    """`python -m benchmarks inpaint` measures the same on memes of the sample corpus."""
    inside, letters = 0, 0
    for number in range(20):
        image, ink, _ = overlay_text_corpus.draw_meme(number)
        picture = np.asarray(image)
        quads, _ = text_detection.detect_text(picture, PARAMS.detection)
        mask = masks.build_text_mask(picture, quads, PARAMS.mask) > 0
        inside, letters = inside + (mask & ink).sum(), letters + ink.sum()
        assert (mask & ~box_of(ink)).mean() <= 0.15
    assert inside / letters >= 0.95


def box_of(ink: np.ndarray) -> np.ndarray:
    """The bounds of the letters above, and of those below."""
    bounds, half = np.zeros_like(ink), len(ink) // 2
    for rows in (slice(0, half), slice(half, None)):
        ys, xs = np.nonzero(ink[rows])
        bounds[rows][ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    return bounds


def test_boxes_are_the_bounds_of_the_quadrilaterals(tmp_path):
    rows = meme_rows(2)
    found, _, _ = run(tmp_path, rows, records_of(rows))
    for row in found.values():
        assert len(row["boxes"]) == len(row["quads"]) > 0
        for box, quad in zip(row["boxes"], row["quads"], strict=True):
            xs, ys = quad[0::2], quad[1::2]
            edges = [box[edge] for edge in ("left", "top", "right", "bottom")]
            assert edges == [min(xs), min(ys), max(xs), max(ys)]
            assert min(quad) >= 0 and max(quad) <= 256 and 0.5 <= box["score"] <= 1


def test_a_picture_without_text_is_the_same_bytes(tmp_path):
    row = bare_row()
    found, contents, summary = run(tmp_path, [row], records_of([row]))
    out = found[row["sha256"]]
    assert (out["inpainted"], out["boxes"], out["mask"]) == (row["sha256"], [], None)
    assert contents == {row["sha256"]: row["bytes"]}
    assert (summary["passed_through"], summary["masked"]) == (1, None)


def test_backend_none_passes_every_picture_through_without_looking_at_it(tmp_path, monkeypatch):
    rows = meme_rows(2)
    monkeypatch.setattr(text_detection, "find", None)
    params = replace(PARAMS, inpainting=replace(PARAMS.inpainting, backend="none"))
    found, contents, summary = run(tmp_path, rows, records_of(rows), params)
    assert {row["inpainted"] for row in found.values()} == set(contents) == set(found)
    assert (summary["with_text"], summary["passed_through"]) == (0, 2)


def test_a_record_without_picture_and_a_picture_of_two_records_are_taken(tmp_path):
    rows = meme_rows(1)
    key = rows[0]["sha256"]
    records = [
        overlay_text_corpus.make_record(0, key, "a"),
        overlay_text_corpus.make_record(1, key, ""),
        overlay_text_corpus.make_record(2, None, "b"),
    ]
    found, _, summary = run(tmp_path, rows, records)
    assert list(found) == [key] and summary["pictures"] == 1
    assert found[key]["text"]  # one of its records has no words


# ------------------------------------------------------------------------------- kinds of pictures
def odd(kind: str) -> dict:
    image = overlay_text_corpus.draw_meme(1)[0]
    match kind:
        case "animation":
            still = overlay_text_corpus.draw_scene(Random(9))
            return overlay_text_corpus.make_image_row(
                image, "GIF", save_all=True, append_images=[still] * 2
            )
        case "palette":
            return overlay_text_corpus.make_image_row(
                image.convert("P", palette=Image.Palette.ADAPTIVE)
            )
        case "alpha":
            image.putalpha(Image.linear_gradient("L"))
            return overlay_text_corpus.make_image_row(image)
        case "cmyk":
            return overlay_text_corpus.make_image_row(image.convert("CMYK"), "JPEG", quality=95)
        case "rotated":
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned by 90 degrees
            turned = image.crop((0, 0, 256, 200)).transpose(Image.Transpose.ROTATE_90)
            return overlay_text_corpus.make_image_row(turned, "JPEG", exif=exif, quality=95)
        case "16 bit":
            grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
            return overlay_text_corpus.make_image_row(Image.fromarray(grey))
        case "grey":
            return overlay_text_corpus.make_image_row(image.convert("L"))


@pytest.mark.parametrize(
    "kind", ["animation", "palette", "alpha", "cmyk", "rotated", "16 bit", "grey"]
)
def test_odd_kinds_of_pictures_lose_their_text_too(tmp_path, kind):
    row = odd(kind)
    found, contents, summary = run(tmp_path, [row], records_of([row]))
    out = found[row["sha256"]]
    assert summary["failed"] == {} and summary["with_text"] == 1
    assert_only_the_mask_changed(out, row["bytes"], contents[out["inpainted"]])
    assert (row["width"], row["height"]) == image_store.decode_image(
        contents[out["inpainted"]]
    ).size


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (20_000, 4), (3, 5), (40, 2500)])
def test_tiny_and_endless_pictures_pass_through(tmp_path, size):
    row = overlay_text_corpus.make_image_row(Image.new("RGB", size, (200, 30, 30)))
    _, contents, summary = run(tmp_path, [row], records_of([row]))
    assert contents == {row["sha256"]: row["bytes"]} and summary["failed"] == {}


@pytest.mark.parametrize("size", [(2400, 60), (17_000, 100)])
def test_text_in_a_long_strip_is_found_where_it_is(tmp_path, size):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((300, 5), "HELLO THERE", "black", ImageFont.load_default(45))
    row = overlay_text_corpus.make_image_row(image)
    found, contents, _ = run(tmp_path, [row], records_of([row]))
    out = found[row["sha256"]]
    assert_only_the_mask_changed(out, row["bytes"], contents[out["inpainted"]])
    assert (pixels(contents[out["inpainted"]]) > 250).mean() > 0.999  # beyond WebP's side too


# ------------------------------------------------------------------------------- reading
def letters(text: str) -> str:
    return "".join(character for character in text.upper() if character.isalpha())


def test_pictures_of_memes_without_words_are_read(tmp_path):
    rows = meme_rows(3)
    bare = bare_row()
    texts = ["given", "", "", ""]
    records = [
        overlay_text_corpus.make_record(n, row["sha256"], text)
        for n, (row, text) in enumerate(zip([*rows, bare], texts, strict=True))
    ]
    found, _, summary = run(tmp_path, [*rows, bare], records)
    assert found[rows[0]["sha256"]]["text"] is None
    for number in (1, 2):
        read = found[rows[number]["sha256"]]["text"]
        assert fuzz.ratio(letters(read), letters(overlay_text_corpus.draw_meme(number)[2])) > 90
        assert read.count("\n") == 1
    assert found[bare["sha256"]]["text"] == ""
    assert summary["recognised"] == 2


@pytest.mark.parametrize(("recognise", "count"), [("always", 2), ("never", 0)])
def test_params_say_which_pictures_are_read(tmp_path, recognise, count):
    rows = meme_rows(2)
    records = [
        overlay_text_corpus.make_record(n, row["sha256"], "x" * n) for n, row in enumerate(rows)
    ]
    params = replace(PARAMS, ocr=recognise, inpainting=replace(PARAMS.inpainting, backend="none"))
    found, contents, summary = run(tmp_path, rows, records, params)
    assert summary["recognised"] == count and set(contents) == set(found)


# ------------------------------------------------------------------------------- failures
def test_a_picture_on_which_a_step_fails_is_passed_through_and_counted(tmp_path, monkeypatch):
    rows = meme_rows(3)
    bad, painted_badly, good = (row["sha256"] for row in rows)
    find, paint = text_removal.find, text_removal.paint

    def failing(broken: str, step):
        def run_step(content, *rest):
            if content == next(row["bytes"] for row in rows if row["sha256"] == broken):
                raise ValueError("no such  <thing at 0x7f00>")
            return step(content, *rest)

        return run_step

    monkeypatch.setattr(text_removal, "find", failing(bad, find))
    monkeypatch.setattr(text_removal, "paint", failing(painted_badly, paint))
    found, contents, summary = run(tmp_path, rows, records_of(rows, text=""))
    assert summary["failed"] == {
        "find: ValueError: no such <thing>": 1,
        "paint: ValueError: no such <thing>": 1,
    }
    assert found[bad]["inpainted"] == bad and bad in contents
    assert (found[bad]["text"], found[bad]["boxes"]) == (None, [])
    assert found[painted_badly]["inpainted"] == painted_badly
    assert found[painted_badly]["boxes"] and found[painted_badly]["mask"] is None
    assert found[painted_badly]["text"]  # it can be read all the same
    assert found[good]["mask"]
    monkeypatch.undo()
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    _, _, summary = run(tmp_path, rows, records_of(rows))
    assert summary["failed"] == {} and summary["with_text"] == 3  # a failure is not kept


def test_a_step_that_fails_on_every_picture_stops_the_stage(tmp_path, monkeypatch):
    def fail(*given):
        raise RuntimeError("out of memory")

    rows = meme_rows(2)
    monkeypatch.setattr(text_removal, "paint", fail)
    said = "all 2 pictures failed, the last one at paint: RuntimeError: out of memory: see whether"
    with pytest.raises(InputError, match=said):
        run(tmp_path, rows, records_of(rows))
    assert not (tmp_path / "out").exists()


def test_a_picture_that_ingest_did_not_leave_is_named(tmp_path):
    rows = meme_rows(1)
    with pytest.raises(InputError, match=r"lacks the picture .*: run `dvc repro`"):
        run(tmp_path, rows, [overlay_text_corpus.make_record(0, "ab" * 32, "x")])


# ------------------------------------------------------------------------------- store and engines
def test_only_what_is_new_is_computed(tmp_path, monkeypatch):
    rows = meme_rows(4)
    run(tmp_path, rows[:3], records_of(rows[:3]), name="before")
    seen = []
    for step in ("find", "paint"):
        real = getattr(text_removal, step)

        def spy(content, *rest, step=step, real=real):
            seen.append((step, content))
            return real(content, *rest)

        monkeypatch.setattr(text_removal, step, spy)
    run(tmp_path, rows, records_of(rows))
    assert seen == [("find", rows[3]["bytes"]), ("paint", rows[3]["bytes"])]
    seen.clear()
    thicker = replace(PARAMS, mask=replace(PARAMS.mask, dilation=0.3))
    run(tmp_path, rows, records_of(rows), thicker)
    assert {step for step, _ in seen} == {"paint"} and len(seen) == 4


@pytest.mark.parametrize("kind", ["inline", "process"])
def test_every_engine_and_batch_writes_the_same_bytes(tmp_path, monkeypatch, kind):
    rows = [*meme_rows(), bare_row()]
    records = [
        overlay_text_corpus.make_record(n, row["sha256"], "x" * (n % 2))
        for n, row in enumerate(rows)
    ]
    run(tmp_path, rows, records, name="threads")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "another"))
    other = replace(PARAMS, batch=3)
    run(tmp_path, rows, records, other, parallel.EngineConfig(kind, 2), name=kind)
    assert bytes_of(tmp_path / "threads") == bytes_of(tmp_path / kind)


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    rows = meme_rows(4)
    sources = overlay_text_corpus.save_corpus(tmp_path, rows, records_of(rows))
    whole = tmp_path / "whole"
    inpaint.main(PARAMS, THREADS, *sources, whole)
    killed = {**os.environ, "POLYMUSE_HOME": str(tmp_path / "home2"), "PYTHONPATH": "."}
    command = [sys.executable, "-m", "stages.inpaint", *map(str, sources), str(tmp_path / "out")]
    started = subprocess.Popen(command, env=killed, stderr=subprocess.DEVNULL)
    store = tmp_path / "home2" / "store"
    until = time.monotonic() + 120
    while not list(store.glob("find-*.sqlite")) and time.monotonic() < until:
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "out").exists()
    ended = subprocess.run(command, env=killed, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    again = bytes_of(tmp_path / "out")
    expected = bytes_of(whole)
    for name in ("pictures.parquet", "summary.json"):
        assert again[name] == expected[name]


def test_the_rows_of_another_setting_are_not_taken(tmp_path):
    same = text_detection.fingerprint(PARAMS.detection)
    assert same == text_detection.fingerprint(replace(PARAMS.detection))
    assert same != text_detection.fingerprint(replace(PARAMS.detection, side=320))
    assert same != text_detection.fingerprint(PARAMS.recognition)
    one, other = (
        inpainters.fingerprint(replace(PARAMS.inpainting, radius=radius)) for radius in (3.0, 4.0)
    )
    assert one != other and isinstance(PARAMS.inpainting, InpainterConfig)


def test_the_rows_of_other_code_are_not_taken(tmp_path, monkeypatch):
    before = inpaint.fingerprints(PARAMS)
    assert inpaint.fingerprints(PARAMS) == before
    edited = tmp_path / "masks.py"
    edited.write_text("# another mask")
    monkeypatch.setattr(masks, "__file__", str(edited))
    assert all(found != before[step] for step, found in inpaint.fingerprints(PARAMS).items())


def test_weights_that_are_missing_are_said_before_anything_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("LAMA_MODEL", str(tmp_path / "none.pt"))
    monkeypatch.setattr(text_detection, "find", None)
    rows = meme_rows(1)
    lama = replace(PARAMS, inpainting=replace(PARAMS.inpainting, backend="lama"))
    with pytest.raises(InputError, match=r"LAMA_MODEL: .* is no file"):
        run(tmp_path, rows, records_of(rows), lama)


def test_what_the_store_keeps_is_what_was_computed(tmp_path):
    content = meme_rows(1)[0]["bytes"]
    boxes = text_removal.find(content, PARAMS.detection)
    painted = text_removal.paint(content, boxes.quads, PARAMS.mask, PARAMS.inpainting)
    store = Store(tmp_path, "x")
    store.write([("aa", boxes.pack()), ("bb", painted.pack())])
    again, also = store.read(["aa", "bb"])
    assert np.array_equal(text_removal.unpack_boxes(again).quads, boxes.quads)
    assert text_removal.unpack_inpaint_result(also) == painted
