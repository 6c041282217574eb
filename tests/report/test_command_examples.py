"""The examples of the report with their commands: which items they are and what a command reads."""

import shlex
import sys
from hashlib import sha256
from html import unescape
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from pipelines import cli
from pipelines.cli import label, write
from pipelines.inference import text_labeler
from stages.report import command_examples
from stages.report.classifier_section import MuseSection
from stages.report.generator_section import GeneratorSection
from stages.report.meme_section import MemeSection
from stages.shared.core import schemas
from stages.shared.data import image_store
from tests.support import generator_outputs, mm_orient_outputs, muse_outputs
from tests.support.report_project import (
    XSS_TEXT,
    create_project,
    render_page,
    write_and_evaluate_predictions,
)

NASTY_TEXT = f"-o it's {XSS_TEXT}\n$HOME `date` !"


def make_generator(num_images: list[int], **changes) -> GeneratorSection:
    """A generator whose test articles 0, 1, ... have these numbers of images."""
    predictions = [
        {"record": str(record), "position": position, "image": "hash", "phase": phase}
        for phase in ("sft", "preference")
        for record, count in enumerate(num_images)
        for position in reversed(range(count))
    ]
    values = {"params": {}, "metrics": {"phase": "preference"}, "predictions": predictions}
    empty = {"histories": {}, "slot_results": {}, "further_images": {}, "ceilings": {}}
    return GeneratorSection(name="muse", kind="articles", **values | empty | changes)


@pytest.mark.parametrize(
    ("num_images", "record"), [([1, 5, 3, 2], "2"), ([6, 5, 7], "1")], ids=["fitting", "shortest"]
)
def test_the_first_article_with_two_to_four_images_is_shown_or_the_shortest(num_images, record):
    chunks = command_examples.select_chunks(make_generator(num_images))
    assert {(row["record"], row["phase"]) for row in chunks} == {(record, "preference")}
    assert [row["position"] for row in chunks] == list(range(num_images[int(record)]))


@pytest.mark.parametrize(
    ("temperature", "gate", "expected"),
    [(0.0, "always_pass", False), (0.7, "always_pass", True), (0.0, "sample", True)],
)
def test_a_run_that_samples_is_known(temperature, gate, expected):
    generator = make_generator(
        [2],
        params={"generation": {"temperature": temperature}},
        metrics={"phase": "sft", "gate": {"predict": {"mode": gate}}},
    )
    assert command_examples.uses_sampling(generator) == expected


@pytest.mark.parametrize(
    ("kind", "title", "num_images", "expected"),
    [
        ("captions", "", 1, "the first image of the test split"),
        ("articles", "T", 0, "the topic of the first of the shortest articles of the test split"),
        ("articles", "T", 3, "the topic and the images of the first article of the test split"),
        ("articles", "", 2, "the images of the first article of the test split"),
    ],
)
def test_the_inputs_of_a_text_are_described(kind, title, num_images, expected):
    assert command_examples.describe_chunks(kind, title, num_images).startswith(expected)


def test_the_page_shows_an_article_with_its_original_images_and_its_command(tmp_path, monkeypatch):
    """The topic has quotes, a line end and markup; the texts are those of the last phase."""
    project = create_project(tmp_path, monkeypatch)
    rows = [
        row | {"title": NASTY_TEXT, "text": f"{row['phase']} wrote {row['position']}"}
        for row in generator_outputs.make_predictions()
    ]
    write_and_evaluate_predictions(project / "data", rows)
    section = read_section(render_page(project))
    files = [f"data/14_report/example/{number}.png" for number in (1, 2)]
    assert shlex.split(unescape(section.split("<code>")[1].split("</code>")[0])) == [
        *("polymuse", "write", "--run", "muse", f"--topic={NASTY_TEXT}"),
        *("--image", *files, "-o", "article"),
    ]
    assert [sha256((project / file).read_bytes()).hexdigest() for file in files] == [
        row["image"] for row in generator_outputs.make_chunk_rows(NASTY_TEXT, "en")[:2]
    ]
    assert "preference wrote 0" in section and "preference wrote 1" in section
    assert "sft wrote" not in section and "<script" not in section


def test_without_runs_the_page_has_no_examples(tmp_path, monkeypatch):
    project = create_project(tmp_path, monkeypatch)
    (project / "params.yaml").write_text("corpora: {}\n")
    assert "#made" not in render_page(project)
    assert not (project / "data/14_report/example").exists()


def read_section(page: str) -> str:
    return page.split('<section id="made">')[1].split("</section>")[0]


@pytest.mark.parametrize("topic", ["Ada's cake", NASTY_TEXT, "-x"])
def test_the_command_line_reads_the_topic_and_images(monkeypatch, topic):
    options = parse(monkeypatch, write, command_examples.format_write_command("a", topic, ["1"]))
    assert (options.run, options.topic, options.image) == ("a", topic, [Path.cwd() / "1"])
    options = parse(monkeypatch, write, command_examples.format_write_command("a", topic, []))
    assert (options.topic, options.image, options.images) == (topic, [], 0)


@pytest.mark.parametrize("text", ["Ada's cake", NASTY_TEXT, "-x"])
def test_the_command_line_reads_the_text_and_image(monkeypatch, text):
    for path, images in [("1.png", [Path.cwd() / "1.png"]), (None, [])]:
        line = command_examples.format_text_command("a", text, path)
        options = parse(monkeypatch, label, line)
        assert (options.run, options.text, options.image) == ("a", text, images)
    options = parse(monkeypatch, label, command_examples.format_meme_command("a", "1.png", text))
    assert (options.run, options.text, options.words) == ("a", "1.png", text)


def parse(monkeypatch, module, line: str):
    """The options with which this command calls the module."""
    calls = []
    monkeypatch.setattr(module, "main", calls.append)
    monkeypatch.setattr(cli, "run_in_project", lambda work: work())
    monkeypatch.setattr(cli.os, "environ", {})
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    cli.main()
    return calls[0]


# ---------------------------------------------------------------------------- memes
@pytest.fixture
def memes(tmp_path) -> Path:
    """The folder data/ of a project with a classifier of memes."""
    mm_orient_outputs.write_corpus(tmp_path, "memes")
    rows = mm_orient_outputs.make_label_rows()
    mm_orient_outputs.write_classifier_outputs(tmp_path / "11_classify/orient", rows)
    return tmp_path


def build_meme(data: Path) -> command_examples.LabeledMeme | None:
    params = {"corpus": "memes", "records": "04_augment"}
    classifier = MemeSection("orient", params, {"split": "test"}, [])
    (data / "report").mkdir()
    return command_examples.build_labeled_meme([classifier], data, data / "report")


def test_a_meme_is_labeled_by_its_original_image_and_the_text_of_the_corpus(memes):
    meme = build_meme(memes)
    assert shlex.split(meme.command) == [
        *("polymuse", "label", "data/14_report/example/meme.png"),
        *("--text", "my cat works hard", "--run", "orient"),
    ]
    content = (memes / "report/example/meme.png").read_bytes()
    assert sha256(content).hexdigest() == mm_orient_outputs.image_hash("a", stage=0)
    labels = {result.task: result.predictions["both"].label for result in meme.results}
    assert labels == {"humour": "funny", "sentiment": "good"}


def test_a_recognized_text_is_not_part_of_the_command(memes):
    path = memes / "04_augment/memes/records.parquet"
    rows = schemas.read_parquet(path, schemas.MEMES)
    changed = [row | {"text_source": "recognised"} for row in rows]
    schemas.write_parquet(path, changed, schemas.MEMES)
    assert "--text" not in build_meme(memes).command


def test_a_meme_without_text_or_without_image_is_no_example(memes):
    rows = [row for row in mm_orient_outputs.make_label_rows() if row["record"] in "cd"]
    mm_orient_outputs.write_classifier_outputs(memes / "11_classify/orient", rows)
    assert build_meme(memes) is None
    assert not (memes / "report/example").exists()


# ---------------------------------------------------------------------------- texts
def build_text(data: Path, task: str, records: str = "abcd") -> command_examples.LabeledText | None:
    """The example of a classifier that has labels of these records."""
    rows = [row for row in muse_outputs.make_label_rows(task) if row["record"] in records]
    muse_outputs.write_corpus(data, "texts", task)
    muse_outputs.write_classifier_outputs(data / "11_classify/muse", rows, [], [])
    (data / "report").mkdir()
    classifier = MuseSection("muse", {"corpus": "texts"}, {"split": "test"}, [])
    kinds = {"texts": {"entities": "tweets", "sentiment": "posts"}[task]}
    return command_examples.build_labeled_text([classifier], kinds, data, data / "report")


def test_the_first_tweet_of_plain_words_is_shown_with_its_true_entities(tmp_path):
    """Tweet a has a hashtag. The first name of b is not found."""
    tweet = build_text(tmp_path, "entities")
    assert shlex.split(tweet.command) == [
        *("polymuse", "label", "Ada Lovelace writes"),
        *("--image", "data/14_report/example/tweet.png", "--run", "muse"),
    ]
    content = (tmp_path / "report/example/tweet.png").read_bytes()
    assert sha256(content).hexdigest() == tweet.row["image"]
    marked = [
        [segment.text for segment in prediction.segments if segment.entity_type]
        for prediction in (tweet.prediction, tweet.gold)
    ]
    assert marked == [["Lovelace"], ["Ada Lovelace"]] and not tweet.prediction.correct
    assert (
        tweet.description == "the first tweet of the test split with an image and only plain words"
    )


def test_any_text_of_a_post_is_plain(tmp_path):
    post = build_text(tmp_path, "sentiment")
    assert shlex.split(post.command)[2] == "Mia sings #Oslo"
    assert (post.prediction.label, post.prediction.probability) == ("positive", 0.75)
    assert post.description == "the first post of the test split with an image"


def test_a_text_without_image_has_a_command_without_image(tmp_path):
    tweet = build_text(tmp_path, "entities", "d")
    assert shlex.split(tweet.command) == ["polymuse", "label", "Rome", "--run", "muse"]
    assert not (tmp_path / "report/example").exists()


def test_without_a_tweet_of_plain_words_there_is_no_example(tmp_path):
    assert build_text(tmp_path, "entities", "a") is None


@pytest.mark.parametrize(
    ("text", "is_plain"),
    [
        ("wow , Zürich opens 2 offices !", True),
        ("so good ... :)", True),
        ("can't @you #tag", False),
        ("www.example.org", False),
        ("\u4f60\u597d", False),
        ("x_y", False),
    ],
)
def test_plain_words_are_found_again_by_the_command(text, is_plain):
    words = text.split()
    assert command_examples.has_plain_words({"words": words}) == is_plain
    if is_plain:
        assert text_labeler.build_input_from_text(text, None).words == words


def test_an_example_image_has_the_pixels_of_the_corpus_but_no_metadata(tmp_path):
    image = Image.effect_noise((60, 40), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = BytesIO()
    image.save(buffer, "JPEG", exif=exif, comment="taken at home")
    path = command_examples.save_pixels(buffer.getvalue(), tmp_path, "1")
    assert path == "data/14_report/example/1.png"
    content = (tmp_path / "example" / "1.png").read_bytes()
    saved = image_store.decode_image(content)
    assert saved.size == (40, 60)
    assert saved.tobytes() == image_store.decode_image(buffer.getvalue()).tobytes()
    assert b"a camera" not in content
    assert b"taken at home" not in content
