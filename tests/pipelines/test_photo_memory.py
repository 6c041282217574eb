"""Photos of 24 megapixels, four of them, need less than 1 GB in every command that decodes them."""

import sys
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw, ImageFont

from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from tests.support import overlay_text_corpus, trained_mm_orient_project
from tests.support.peak_memory import measure_peak_memory
from tests.support.project_files import clone_project

pytestmark = pytest.mark.slow

MAX_BYTES = 10**9
SIZE = (6000, 4000)
POLYMUSE = str(Path(sys.executable).with_name("polymuse"))
LINES = ((200, "WHEN THE SOUP"), (3500, "IS COLD AGAIN"))


def draw_photo(number: int) -> bytes:
    """A JPEG file of 24 megapixels with two lines of text."""
    noise = Image.effect_noise((SIZE[0] // 20, SIZE[1] // 20), 60 + number)
    photo = noise.resize(SIZE, Image.Resampling.BICUBIC).convert("RGB")
    draw, font = ImageDraw.Draw(photo), ImageFont.load_default(size=300)
    for top, line in LINES:
        style = {"stroke_width": 12, "stroke_fill": "black"}
        draw.text((SIZE[0] / 2, top), line, "white", font, anchor="ma", **style)
    file = BytesIO()
    photo.save(file, "JPEG", quality=85)
    return file.getvalue()


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [draw_photo(number) for number in range(4)]


@pytest.fixture
def photo_folder(photos, tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, photo in enumerate(photos):
        (folder / f"{number}.jpg").write_bytes(photo)
    return folder


def test_inpaint_reads_and_removes_the_text_of_photos(photos, tmp_path):
    rows = [image_store.validate_image(photo, SIZE[0] * SIZE[1]) for photo in photos]
    records = [
        overlay_text_corpus.make_record(number, row["sha256"], "")
        for number, row in enumerate(rows)
    ]
    project = clone_project(tmp_path)
    overlay_text_corpus.save_corpus(project, rows, records)
    folders = ["--ingest", "ingest", "--clean", "clean", "--output", "output"]
    command = [sys.executable, "-m", "stages.inpaint", *folders]
    assert measure_peak_memory(command, project) < MAX_BYTES
    output = schemas.read_parquet(project / "output/pictures.parquet", schemas.INPAINTED_IMAGES)
    text = "\n".join(line for _, line in LINES)
    assert [row["text"] for row in output] == [text] * 4
    working_pixels = load_config(int, "inpaint", "working_pixels")
    for image in image_store.read_images(project / "output/images"):
        assert 0.99 * working_pixels < image["width"] * image["height"] <= working_pixels
        assert image["width"] / image["height"] == pytest.approx(1.5, abs=0.01)


def test_memes_that_are_photos_are_labeled(photo_folder, tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    trained_mm_orient_project.create_trained_project(project, monkeypatch)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["parallel"]["backend"] = "threads"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    command = [POLYMUSE, "label", str(photo_folder), "--inpainted", str(tmp_path / "out")]
    assert measure_peak_memory(command, project) < MAX_BYTES
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_texts_with_photos_are_labeled(trained_classifiers, photo_folder, monkeypatch):
    monkeypatch.setenv("POLYMUSE_HOME", str(trained_classifiers / "home"))
    file = photo_folder / "posts.jsonl"
    lines = [f'{{"text": "a red soup {n}", "image": "{n}.jpg"}}\n' for n in range(4)]
    file.write_text("".join(lines))
    command = [POLYMUSE, "label", "--file", str(file)]
    assert measure_peak_memory(command, trained_classifiers) < MAX_BYTES
