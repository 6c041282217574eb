"""The stage `inpaint`: text is removed and every pixel outside the mask is unchanged."""

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

CONFIG = replace(load_config(inpaint.InpaintConfig, "inpaint"), num_shards=2)
THREADS = parallel.EngineConfig(backend="threads", workers=2)


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))


def run(folder, rows, records, config=CONFIG, engine=THREADS, name="out"):
    """Run the stage; return INPAINTED_IMAGES rows by image, contents by sha256 and the summary."""
    sources = overlay_text_corpus.save_corpus(folder, rows, records)
    inpaint.main(config, engine, *sources, folder / name)
    output_rows = schemas.read_parquet(folder / name / "pictures.parquet", schemas.INPAINTED_IMAGES)
    contents = {
        row["sha256"]: row["bytes"] for row in image_store.read_images(folder / name / "images")
    }
    summary = json.loads((folder / name / "summary.json").read_text())
    return {row["image"]: row for row in output_rows}, contents, summary


def make_records(rows: list[dict], text: str = "given") -> list[dict]:
    return [overlay_text_corpus.make_record(n, row["sha256"], text) for n, row in enumerate(rows)]


def read_files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@cache
def make_meme_rows(count: int = 4) -> list[dict]:
    return [
        overlay_text_corpus.make_image_row(overlay_text_corpus.draw_meme(number)[0])
        for number in range(count)
    ]


def make_textless_row() -> dict:
    return overlay_text_corpus.make_image_row(Image.new("RGB", (80, 60), (90, 150, 60)), "JPEG")


def decode(content: bytes) -> np.ndarray:
    return np.asarray(image_store.decode_image(content))


def assert_only_the_mask_changed(row: dict, before: bytes, after: bytes) -> None:
    old, new, mask = decode(before), decode(after), masks.from_png(row["mask"])
    assert old.shape == new.shape and mask.shape == old.shape[:2]
    assert set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(old[mask == 0], new[mask == 0])
    assert row["masked"] == pytest.approx((mask > 0).mean(), abs=1e-6)


# ------------------------------------------------------------------------------- output
def test_text_is_removed_and_pixels_outside_the_mask_are_unchanged(tmp_path):
    rows = make_meme_rows()
    rows_by_image, contents, summary = run(tmp_path, rows, make_records(rows))
    for row in rows:
        output = rows_by_image[row["sha256"]]
        assert output["inpainted"] != row["sha256"] and output["text"] is None
        assert_only_the_mask_changed(output, row["bytes"], contents[output["inpainted"]])
        inpainted = decode(contents[output["inpainted"]])
        quads, _ = text_detection.detect_text(inpainted, CONFIG.detection)
        assert len(quads) == 0
    assert summary == {
        "pictures": 4,
        "with_text": 4,
        "passed_through": 0,
        "recognised": 0,
        "failed": {},
        "masked": pytest.approx(np.mean([row["masked"] for row in rows_by_image.values()])),
    }


def test_the_mask_covers_the_letters_and_little_else():
    """`python -m benchmarks inpaint` measures the same on memes of the synthetic corpus."""
    num_covered, num_letters = 0, 0
    for number in range(20):
        image, ink, _ = overlay_text_corpus.draw_meme(number)
        pixels = np.asarray(image)
        quads, _ = text_detection.detect_text(pixels, CONFIG.detection)
        mask = masks.build_text_mask(pixels, quads, CONFIG.mask) > 0
        num_covered += (mask & ink).sum()
        num_letters += ink.sum()
        assert (mask & ~line_bounds(ink)).mean() <= 0.15
    assert num_covered / num_letters >= 0.95


def line_bounds(ink: np.ndarray) -> np.ndarray:
    """A mask of the bounding boxes of the letters in the upper and in the lower half."""
    bounds, half = np.zeros_like(ink), len(ink) // 2
    for rows in (slice(0, half), slice(half, None)):
        ys, xs = np.nonzero(ink[rows])
        bounds[rows][ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    return bounds


def test_boxes_are_the_bounds_of_the_quads(tmp_path):
    rows = make_meme_rows(2)
    rows_by_image, _, _ = run(tmp_path, rows, make_records(rows))
    for row in rows_by_image.values():
        assert len(row["boxes"]) == len(row["quads"]) > 0
        for box, quad in zip(row["boxes"], row["quads"], strict=True):
            xs, ys = quad[0::2], quad[1::2]
            edges = [box[edge] for edge in ("left", "top", "right", "bottom")]
            assert edges == [min(xs), min(ys), max(xs), max(ys)]
            assert min(quad) >= 0 and max(quad) <= 256 and 0.5 <= box["score"] <= 1


def test_an_image_without_text_keeps_its_bytes(tmp_path):
    row = make_textless_row()
    rows_by_image, contents, summary = run(tmp_path, [row], make_records([row]))
    output = rows_by_image[row["sha256"]]
    assert (output["inpainted"], output["boxes"], output["mask"]) == (row["sha256"], [], None)
    assert contents == {row["sha256"]: row["bytes"]}
    assert (summary["passed_through"], summary["masked"]) == (1, None)


def test_backend_none_passes_every_image_through_without_detection(tmp_path, monkeypatch):
    rows = make_meme_rows(2)
    monkeypatch.setattr(text_detection, "detect_text", None)
    config = replace(CONFIG, inpainting=replace(CONFIG.inpainting, backend="none"))
    rows_by_image, contents, summary = run(tmp_path, rows, make_records(rows), config)
    inpainted = {row["inpainted"] for row in rows_by_image.values()}
    assert inpainted == set(contents) == set(rows_by_image)
    assert (summary["with_text"], summary["passed_through"]) == (0, 2)


def test_records_without_image_and_images_of_two_records_are_supported(tmp_path):
    rows = make_meme_rows(1)
    key = rows[0]["sha256"]
    records = [
        overlay_text_corpus.make_record(0, key, "a"),
        overlay_text_corpus.make_record(1, key, ""),
        overlay_text_corpus.make_record(2, None, "b"),
    ]
    rows_by_image, _, summary = run(tmp_path, rows, records)
    assert list(rows_by_image) == [key] and summary["pictures"] == 1
    assert rows_by_image[key]["text"]  # read, since one of its records has no text


# ------------------------------------------------------------------------------- kinds of images
def make_image_of_kind(kind: str) -> dict:
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
            exif[0x0112] = 6  # rotate by 90 degrees
            rotated = image.crop((0, 0, 256, 200)).transpose(Image.Transpose.ROTATE_90)
            return overlay_text_corpus.make_image_row(rotated, "JPEG", exif=exif, quality=95)
        case "16 bit":
            gray = np.asarray(image.convert("L")).astype(np.uint16) * 257
            return overlay_text_corpus.make_image_row(Image.fromarray(gray))
        case "grey":
            return overlay_text_corpus.make_image_row(image.convert("L"))


@pytest.mark.parametrize(
    "kind", ["animation", "palette", "alpha", "cmyk", "rotated", "16 bit", "grey"]
)
def test_text_is_removed_from_all_kinds_of_images(tmp_path, kind):
    row = make_image_of_kind(kind)
    rows_by_image, contents, summary = run(tmp_path, [row], make_records([row]))
    output = rows_by_image[row["sha256"]]
    assert summary["failed"] == {} and summary["with_text"] == 1
    assert_only_the_mask_changed(output, row["bytes"], contents[output["inpainted"]])
    inpainted = image_store.decode_image(contents[output["inpainted"]])
    assert (row["width"], row["height"]) == inpainted.size


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (20_000, 4), (3, 5), (40, 2500)])
def test_tiny_and_very_long_images_pass_through(tmp_path, size):
    row = overlay_text_corpus.make_image_row(Image.new("RGB", size, (200, 30, 30)))
    _, contents, summary = run(tmp_path, [row], make_records([row]))
    assert contents == {row["sha256"]: row["bytes"]} and summary["failed"] == {}


@pytest.mark.parametrize("size", [(2400, 60), (17_000, 100)])  # WebP ends at 16,383
def test_text_in_a_long_strip_is_removed(tmp_path, size):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((300, 5), "HELLO THERE", "black", ImageFont.load_default(45))
    row = overlay_text_corpus.make_image_row(image)
    rows_by_image, contents, _ = run(tmp_path, [row], make_records([row]))
    output = rows_by_image[row["sha256"]]
    assert_only_the_mask_changed(output, row["bytes"], contents[output["inpainted"]])
    assert (decode(contents[output["inpainted"]]) > 250).mean() > 0.999


# ------------------------------------------------------------------------------- recognition
def only_letters(text: str) -> str:
    return "".join(character for character in text.upper() if character.isalpha())


def test_images_of_memes_without_text_are_read(tmp_path):
    rows = make_meme_rows(3)
    textless = make_textless_row()
    texts = ["given", "", "", ""]
    records = [
        overlay_text_corpus.make_record(n, row["sha256"], text)
        for n, (row, text) in enumerate(zip([*rows, textless], texts, strict=True))
    ]
    rows_by_image, _, summary = run(tmp_path, [*rows, textless], records)
    assert rows_by_image[rows[0]["sha256"]]["text"] is None
    for number in (1, 2):
        text = rows_by_image[rows[number]["sha256"]]["text"]
        expected = overlay_text_corpus.draw_meme(number)[2]
        assert fuzz.ratio(only_letters(text), only_letters(expected)) > 90
        assert text.count("\n") == 1
    assert rows_by_image[textless["sha256"]]["text"] == ""
    assert summary["recognised"] == 2


@pytest.mark.parametrize(("ocr", "count"), [("always", 2), ("never", 0)])
def test_the_config_selects_the_images_to_read(tmp_path, ocr, count):
    rows = make_meme_rows(2)
    records = [
        overlay_text_corpus.make_record(n, row["sha256"], "x" * n) for n, row in enumerate(rows)
    ]
    config = replace(CONFIG, ocr=ocr, inpainting=replace(CONFIG.inpainting, backend="none"))
    rows_by_image, contents, summary = run(tmp_path, rows, records, config)
    assert summary["recognised"] == count and set(contents) == set(rows_by_image)


# ------------------------------------------------------------------------------- failures
def test_an_image_on_which_a_step_fails_is_passed_through_and_counted(tmp_path, monkeypatch):
    rows = make_meme_rows(3)
    not_found, not_painted, good = (row["sha256"] for row in rows)
    find, paint = text_removal.find, text_removal.paint

    def failing(broken: str, step):
        def run_step(content, *rest):
            if content == next(row["bytes"] for row in rows if row["sha256"] == broken):
                raise ValueError("no such  <thing at 0x7f00>")
            return step(content, *rest)

        return run_step

    monkeypatch.setattr(text_removal, "find", failing(not_found, find))
    monkeypatch.setattr(text_removal, "paint", failing(not_painted, paint))
    rows_by_image, contents, summary = run(tmp_path, rows, make_records(rows, text=""))
    assert summary["failed"] == {
        "find: ValueError: no such <thing>": 1,
        "paint: ValueError: no such <thing>": 1,
    }
    assert rows_by_image[not_found]["inpainted"] == not_found and not_found in contents
    assert (rows_by_image[not_found]["text"], rows_by_image[not_found]["boxes"]) == (None, [])
    assert rows_by_image[not_painted]["inpainted"] == not_painted
    assert rows_by_image[not_painted]["boxes"] and rows_by_image[not_painted]["mask"] is None
    assert rows_by_image[not_painted]["text"]  # reading does not need the inpainted image
    assert rows_by_image[good]["mask"]
    monkeypatch.undo()
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    _, _, summary = run(tmp_path, rows, make_records(rows))
    assert summary["failed"] == {} and summary["with_text"] == 3  # failures are not cached


def test_a_step_that_fails_on_all_images_stops_the_stage(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    rows = make_meme_rows(2)
    monkeypatch.setattr(text_removal, "paint", fail)
    message = "all 2 images failed, the last one at paint: RuntimeError: out of memory: check that"
    with pytest.raises(InputError, match=message):
        run(tmp_path, rows, make_records(rows))
    assert not (tmp_path / "out").exists()


def test_an_image_that_ingest_did_not_write_is_named(tmp_path):
    rows = make_meme_rows(1)
    with pytest.raises(InputError, match=r"lacks the image .*: run `dvc repro`"):
        run(tmp_path, rows, [overlay_text_corpus.make_record(0, "ab" * 32, "x")])


# ------------------------------------------------------------------------------- cache and engines
def test_only_new_images_and_changed_steps_are_computed(tmp_path, monkeypatch):
    rows = make_meme_rows(4)
    run(tmp_path, rows[:3], make_records(rows[:3]), name="before")
    calls = []
    for step in ("find", "paint"):
        original = getattr(text_removal, step)

        def spy(content, *rest, step=step, original=original):
            calls.append((step, content))
            return original(content, *rest)

        monkeypatch.setattr(text_removal, step, spy)
    run(tmp_path, rows, make_records(rows))
    assert calls == [("find", rows[3]["bytes"]), ("paint", rows[3]["bytes"])]
    calls.clear()
    thicker = replace(CONFIG, mask=replace(CONFIG.mask, dilation=0.3))
    run(tmp_path, rows, make_records(rows), thicker)
    assert {step for step, _ in calls} == {"paint"} and len(calls) == 4


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_every_engine_and_batch_size_writes_the_same_bytes(tmp_path, monkeypatch, backend):
    rows = [*make_meme_rows(), make_textless_row()]
    records = [
        overlay_text_corpus.make_record(n, row["sha256"], "x" * (n % 2))
        for n, row in enumerate(rows)
    ]
    run(tmp_path, rows, records, name="threads")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "another"))
    other_config = replace(CONFIG, batch_size=3)
    engine = parallel.EngineConfig(backend=backend, workers=2)
    run(tmp_path, rows, records, other_config, engine, name=backend)
    assert read_files(tmp_path / "threads") == read_files(tmp_path / backend)


def test_a_killed_run_resumes_where_it_stopped(tmp_path):
    rows = make_meme_rows(4)
    sources = overlay_text_corpus.save_corpus(tmp_path, rows, make_records(rows))
    uninterrupted = tmp_path / "uninterrupted"
    inpaint.main(CONFIG, THREADS, *sources, uninterrupted)
    environment = {**os.environ, "POLYMUSE_HOME": str(tmp_path / "home2"), "PYTHONPATH": "."}
    ingest, clean = map(str, sources)
    command = [sys.executable, "-m", "stages.inpaint", "--ingest", ingest, "--clean", clean]
    command += ["--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    store = tmp_path / "home2" / "store"
    deadline = time.monotonic() + 120
    while not list(store.glob("find-*.sqlite")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    resumed = read_files(tmp_path / "out")
    expected = read_files(uninterrupted)
    for name in ("pictures.parquet", "summary.json"):
        assert resumed[name] == expected[name]


def test_cached_rows_depend_on_the_settings(tmp_path):
    fingerprint = text_detection.fingerprint(CONFIG.detection)
    assert fingerprint == text_detection.fingerprint(replace(CONFIG.detection))
    assert fingerprint != text_detection.fingerprint(replace(CONFIG.detection, input_size=320))
    assert fingerprint != text_detection.fingerprint(CONFIG.recognition)
    small, large = (
        inpainters.fingerprint(replace(CONFIG.inpainting, radius=radius)) for radius in (3.0, 4.0)
    )
    assert small != large and isinstance(CONFIG.inpainting, InpainterConfig)


def test_cached_rows_depend_on_the_code(tmp_path, monkeypatch):
    before = inpaint.fingerprints(CONFIG)
    assert inpaint.fingerprints(CONFIG) == before
    edited = tmp_path / "masks.py"
    edited.write_text("# another mask")
    monkeypatch.setattr(masks, "__file__", str(edited))
    after = inpaint.fingerprints(CONFIG)
    assert all(after[step] != before[step] for step in before)


def test_missing_weights_are_reported_before_detection(tmp_path, monkeypatch):
    monkeypatch.setenv("LAMA_MODEL", str(tmp_path / "none.pt"))
    monkeypatch.setattr(text_detection, "detect_text", None)
    rows = make_meme_rows(1)
    lama = replace(CONFIG, inpainting=replace(CONFIG.inpainting, backend="lama"))
    with pytest.raises(InputError, match=r"LAMA_MODEL: .* is not a file"):
        run(tmp_path, rows, make_records(rows), lama)


def test_cached_results_equal_computed_results(tmp_path):
    content = make_meme_rows(1)[0]["bytes"]
    boxes = text_removal.find(content, CONFIG.working_pixels, CONFIG.detection)
    painted = text_removal.paint(
        content, boxes.quads, CONFIG.working_pixels, CONFIG.mask, CONFIG.inpainting
    )
    store = Store(tmp_path, "x")
    store.write([("aa", boxes.pack()), ("bb", painted.pack())])
    packed_boxes, packed_result = store.read(["aa", "bb"])
    assert np.array_equal(text_removal.unpack_boxes(packed_boxes).quads, boxes.quads)
    assert text_removal.unpack_inpaint_result(packed_result) == painted
