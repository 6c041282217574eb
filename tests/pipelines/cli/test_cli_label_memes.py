"""`polymuse label` of memes and the model that MLflow serves, with a tiny trained model."""

import csv
import json
import shutil
from argparse import Namespace
from pathlib import Path

import mlflow
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipelines import cli
from pipelines.cli import label, label_memes
from pipelines.cli.label_memes import (
    MAX_SHOWN_CHARACTERS,
    escape_formula,
    format_meme,
    plan_output_paths,
    write_table,
)
from pipelines.inference.meme_labeler import MemeLabel, MemeLabeler, PreparedMeme
from stages.shared.runtime import mlflow_store, tracking
from stages.shared.runtime.stage import InputError
from tests.pipelines.cli.test_cli import polymuse
from tests.support import trained_mm_orient_project
from tests.support.trained_mm_orient_project import RUN_NAME, TASKS, draw_text_image, get_model_dir

FIELDS = ["image", "text", "original", "text_source"]
TASK_COLUMNS = ["sentiment", "sentiment_probability", "humour", "humour_probability"]
CAT, MONDAY = draw_text_image("WHEN THE CAT", 0), draw_text_image("MONDAY AGAIN", 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("memes") / "project"
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        return trained_mm_orient_project.create_trained_project(place, patch)


@pytest.fixture
def place(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained / "home"))
    return trained


@pytest.fixture
def folder(tmp_path):
    """A folder with two memes, another file, a hidden file and a subfolder."""
    path = tmp_path / "memes"
    (path / "older").mkdir(parents=True)
    (path / "cat.png").write_bytes(CAT)
    (path / "Monday.PNG").write_bytes(MONDAY)
    (path / "labels.csv").write_text("a,b\n")
    (path / "._cat.png").write_bytes(b"of a Mac")
    return path


def make_options(text: Path | str | None, **options) -> Namespace:
    defaults = dict.fromkeys(("words", "output", "inpainted", "file", "run", "model"))
    return Namespace(**(defaults | {"image": [], "json": False} | options), text=text)


def label_lines(capsys, text: Path, **options) -> tuple[list[str], list[str]]:
    """The lines on standard output and on standard error."""
    capsys.readouterr()
    label_memes.main(make_options(text, **options))
    out, errors = capsys.readouterr()
    return out.splitlines(), errors.splitlines()


def label_as_json(capsys, text: Path, **options) -> list[dict]:
    """The JSON objects of the command."""
    return [json.loads(line) for line in label_lines(capsys, text, json=True, **options)[0]]


def test_a_folder_is_printed_with_texts_and_a_line_for_each_task(place, capsys, folder):
    out, _ = label_lines(capsys, folder)
    assert out[:3] == [f"Labeling 2 images with {RUN_NAME}", "", "Monday.PNG: monday again"]
    assert out[5:7] == ["", "cat.png: when the cat"] and len(out) == 9
    for lines in (out[3:5], out[7:9]):
        for task, line in zip(("sentiment", "humour"), lines, strict=True):
            name, answer, probability = line.replace(",", "").split()
            assert name == task and answer in TASKS[task]
            assert 0 < float(probability) <= 1


def test_labels_do_not_depend_on_other_memes_or_on_how_the_model_is_named(place, capsys, folder):
    together = label_as_json(capsys, folder)
    assert [row["image"] for row in together] == ["Monday.PNG", "cat.png"]
    client = mlflow.MlflowClient(tracking.get_tracking_uri())
    experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT_NAME).experiment_id
    models = client.search_logged_models([experiment])
    model = max(models, key=lambda model: model.creation_timestamp)
    address = f"models:/{model.model_id}"
    for options in (
        {},
        {"run": RUN_NAME},
        {"model": address},
        {"model": str(get_model_dir(place))},
    ):
        (alone,) = label_as_json(capsys, folder / "cat.png", **options)
        assert_same(alone, together[1])
    served = mlflow.pyfunc.load_model(address)
    frame = pd.DataFrame({"text": [None, "Not: this!", "a cat"], "image": [CAT, CAT, None]})
    served_rows = served.predict(frame).to_dict("records")
    assert_same({"image": "cat.png", **served_rows[0]}, together[1])
    assert [row["text"] for row in served_rows] == ["when the cat", "not this", "a cat"]
    assert served.metadata.get_output_schema().input_names() == list(served_rows[0])
    assert served.predict(frame[:0]).empty
    for row in ({"text": "a@b.org"}, {"image": b""}):
        with pytest.raises(InputError, match="row 0 has neither text nor image: give it one"):
            served.predict(pd.DataFrame([row]))
    with pytest.raises(InputError, match="row 0: text has 5001 characters"):
        served.predict(pd.DataFrame({"text": ["a" * 5001]}))


def assert_same(row: dict, expected: dict) -> None:
    """The same labels; probabilities up to rounding."""
    assert list(row) == list(expected) == FIELDS + TASK_COLUMNS
    for name, value in row.items():
        is_probability = name.endswith("_probability")
        wanted = expected[name]
        assert value == (pytest.approx(wanted, abs=1e-5) if is_probability else wanted)


def test_the_text_of_an_image_can_be_given(place, capsys, folder):
    (given,) = label_as_json(capsys, folder / "cat.png", words="It's\u202e MINE")
    assert [given[name] for name in FIELDS] == ["cat.png", "its mine", "It's MINE", "given"]
    (read,) = label_as_json(capsys, folder / "cat.png", words=" \u200b")
    assert (read["text"], read["text_source"]) == ("when the cat", "recognised")


def test_printed_texts_are_short_and_have_no_control_characters():
    meme = PreparedMeme(
        "a\x1b[2J\udcff.png", "word " * 50, "", "", "given", None, None, ("paint: Odd",)
    )
    first, *lines = format_meme(meme, {"mood": MemeLabel("bad", 0.126)}).splitlines()[1:]
    assert first.startswith("a[2J?.png: word") and first.endswith("...") and "\x1b" not in first
    assert len(first) <= len("a[2J?.png: ") + MAX_SHOWN_CHARACTERS
    assert lines == ["  mood  bad, 0.13", "  failed step: paint: Odd"]
    silent = PreparedMeme("a.png", "", "", "", "none", None, None, ())
    assert format_meme(silent, {}) == "\na.png: (no text)"


def test_a_table_has_columns_for_each_task_and_its_probability(place, capsys, folder, tmp_path):
    expected = label_as_json(capsys, folder)
    for file in (tmp_path / "out.parquet", tmp_path / "out.CSV"):
        for _ in range(2):  # it overwrites a table of its own
            out, _ = label_lines(capsys, folder, output=file)
            assert out == [f"Labeling 2 images with {RUN_NAME}", f"Wrote 2 rows to {file}"]
        printed_rows = label_as_json(capsys, folder, output=file)
        table = (pd.read_parquet if file.suffix == ".parquet" else pd.read_csv)(file)
        assert list(table) == FIELDS + TASK_COLUMNS
        records = table.to_dict("records")
        for printed, row, wanted in zip(printed_rows, records, expected, strict=True):
            assert_same(row, wanted)
            assert_same(printed, wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memes", "out.CSV", "out.parquet"]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_cells_of_a_csv_are_not_formulas(tmp_path, start):
    file = tmp_path / "out.csv"
    cell = f'{start}HYPERLINK("a","b")'
    write_table([{"image": cell, "text": "a = b", cell: 0.5}], file)
    with file.open(encoding="utf-8", newline="") as lines:
        assert list(csv.reader(lines)) == [
            ["image", "text", f"'{cell}"],
            [f"'{cell}", "a = b", "0.5"],
        ]
    assert (
        escape_formula(-0.5) == -0.5
        and escape_formula("") == ""
        and escape_formula("a\r=b") == "a\r=b"
    )
    write_table([{"image": cell}], tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [{"image": cell}]


def test_images_are_written_without_their_text_and_metadata(place, capsys, folder, tmp_path):
    Image.new("RGB", (60, 40), "red").save(folder / "plain.jpg", exif=b"Exif\0\0secret")
    out, _ = label_lines(capsys, folder, inpainted=tmp_path / "a/b")
    assert out[-1] == f"Wrote 3 images to {tmp_path}/a/b"
    written = {path.name: path for path in (tmp_path / "a/b").iterdir()}
    assert sorted(written) == ["Monday.png", "cat.png", "plain.png"]
    for name, path in written.items():
        assert path.read_bytes().startswith(b"\x89PNG"), name
    assert b"secret" not in written["plain.png"].read_bytes()
    assert Image.open(written["plain.png"]).size == (60, 40)
    assert [row["text"] for row in label_as_json(capsys, tmp_path / "a/b")] == ["", "", ""]


def test_no_image_overwrites_a_file(place, capsys, folder):
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    with pytest.raises(InputError, match=r"cat\.png exists and would be overwritten"):
        label_memes.main(make_options(folder, inpainted=folder))
    (folder / "a.webp").write_bytes(CAT)
    assert label_lines(capsys, folder / "a.webp", inpainted=folder)[0][0].startswith("Labeling 1")
    assert (folder / "a.png").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_images_with_the_same_stem_keep_their_suffixes(tmp_path):
    files = [Path(name) for name in ("a.jpg", "A.png", "b.png")]
    names = [target.name for target in plan_output_paths(tmp_path / "out", files).values()]
    assert names == ["a.jpg.png", "A.png.png", "b.png"]
    with pytest.raises(InputError, match="too similar"):
        plan_output_paths(
            tmp_path / "out", [Path(name) for name in ("a.jpg", "a.png", "a.jpg.bmp")]
        )


def test_an_invalid_image_in_a_folder_is_named_and_skipped(place, capsys, folder, tmp_path):
    (folder / "broken.jpg").write_bytes(CAT[:200])
    (folder / "text.gif").write_text("no picture")
    options = {"output": tmp_path / "out.csv", "inpainted": tmp_path / "out"}
    out, errors = label_lines(capsys, folder, json=True, **options)
    assert [json.loads(line)["image"] for line in out] == ["Monday.PNG", "cat.png"]
    assert f"Labeling 4 images with {RUN_NAME}" in errors
    skipped = [line for line in errors if line.startswith("skipped: ")]
    assert [line.split(": ")[1] for line in skipped] == ["broken.jpg", "text.gif"]
    assert errors[-1] == "2 of 4 images skipped"
    assert len(list((tmp_path / "out").iterdir())) == 2
    for name in ("cat.png", "Monday.PNG"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="none of its images is valid"):
        label_memes.main(make_options(folder))


def write_invalid_files(place: Path) -> None:
    """Invalid files and folders, and a valid image."""
    for name in ("empty", "words", "folder.csv"):
        (place / name).mkdir()
    (place / "words/notes.txt").write_text("words")
    (place / "fine.png").write_bytes(CAT)
    (place / "cut.png").write_bytes(CAT[:200])
    (place / "note.txt").write_text("words")
    (place / "mine.csv").write_text("image,label\na.png,1\n")
    (place / "mine.parquet").write_text("none")
    Image.new("1", (20000, 20000)).save(place / "wide.png")


INVALID = {  # part of the message -> file and options; the files of write_invalid_files
    "cut.png: unreadable image": ("cut.png", {}),
    "note.txt: unreadable image": ("note.txt", {}),
    "larger than max_pixels": ("wide.png", {}),
    "empty is empty: name a folder": ("empty", {}),
    "words has no image: name a folder": ("words", {}),
    "words is a folder: name an image, or leave --text out": ("words", {"words": "a"}),
    "--text has 5001 characters, more than cli_label.max_char": ("fine.png", {"words": "a" * 5001}),
    "--image and --file are options for texts": ("fine.png", {"image": ["fine.png"]}),
    "leave them out": ("fine.png", {"file": "note.txt"}),
    "out.txt ends neither in .parquet": ("fine.png", {"output": "out.txt"}),
    "none is not a writable folder": ("fine.png", {"output": "none/out.csv"}),
    "mine.csv is not a table of this command": ("fine.png", {"output": "mine.csv"}),
    "mine.parquet is not a table of this": ("fine.png", {"output": "mine.parquet"}),
    "folder.csv is not a table of this": ("fine.png", {"output": "folder.csv"}),
    "--inpainted: ": ("fine.png", {"inpainted": "note.txt"}),
    "fine.png exists and would be": ("fine.png", {"inpainted": ""}),
    "no run 'nobody' among its classifiers": ("fine.png", {"run": "nobody"}),
    "muse_sentiment is not trained yet": ("fine.png", {"run": "muse_sentiment"}),
    "no trained model": ("fine.png", {"model": "nowhere"}),
}


@pytest.mark.parametrize("message", INVALID)
def test_invalid_input_is_one_sentence_and_nothing_is_labeled(place, tmp_path, capsys, message):
    write_invalid_files(tmp_path)
    name, options = INVALID[message]
    for option in {"file", "output", "inpainted"} & options.keys():
        options = options | {option: tmp_path / options[option]}
    with pytest.raises(InputError) as error:
        label_memes.main(make_options(tmp_path / name, **options))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "Labeling" not in capsys.readouterr().out


INVALID_TEXTS = {  # part of the message -> text, and options of memes
    "meme.jpg does not exist: name an image": ("meme.jpg", {}),
    "memes/ does not exist": ("memes/", {"words": "a"}),
    "--text is an option for memes, and nothing is not a file": (None, {"words": "a"}),
    "--output is an option for memes, and the fox is not a": ("the fox", {"output": Path("a.csv")}),
    "--inpainted is an option for memes": ("the fox", {"inpainted": Path("a")}),
    f"{RUN_NAME}/model labels memes: give it an image": ("the fox", {"run": RUN_NAME}),
    "muse_entities is not trained yet": ("see https://a.org/meme.jpg", {}),
}


@pytest.mark.parametrize("message", INVALID_TEXTS)
def test_options_and_models_of_memes_are_rejected_for_texts(place, message):
    text, options = INVALID_TEXTS[message]
    with pytest.raises(InputError) as error:
        label.main(make_options(text, **options))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_classifier_of_texts_is_rejected_for_memes(place, tmp_path):
    config = {"labels": ["O"], "shapes": {"task": "entities"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="labels texts: give it a text, and an image with"):
        MemeLabeler(tmp_path, "models:/mine/1")


def test_the_default_is_the_first_classifier_for_the_input(place):
    assert label.find_first_classifier(memes=True) == RUN_NAME
    assert label.find_first_classifier(memes=False) == "muse_entities"
    text = (place / "params.yaml").read_text()
    params = yaml.safe_load(text)
    try:
        params["classifiers"] = {RUN_NAME: params["classifiers"][RUN_NAME]}
        (place / "params.yaml").write_text(yaml.safe_dump(params))
        assert label.find_first_classifier(memes=False) is None
        del params["classifiers"]
        (place / "params.yaml").write_text(yaml.safe_dump(params))
        with pytest.raises(InputError, match="no classifier of memes"):
            label.find_first_classifier(memes=True)
    finally:
        (place / "params.yaml").write_text(text)


def test_the_argument_of_label_is_a_path_if_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    assert cli._parse_text_or_path("a.png") == tmp_path / "a.png"
    assert cli._parse_text_or_path(str(tmp_path)) == tmp_path
    for text in ("", "b.png", "a" * 10_000, "a\0b", "the fox"):
        assert cli._parse_text_or_path(text) == text


@pytest.mark.slow
def test_the_command_works_from_any_folder_and_downloads_nothing(place, folder):
    """The weights of LaMa would have to be downloaded."""
    inner = place / "data"
    shutil.copy(folder / "cat.png", inner / "mine.png")
    done = polymuse(inner, "label", "mine.png", "--text", "When", "-o", "out.csv", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == "when" and (inner / "out.csv").exists()
    text = (place / "params.yaml").read_text()
    try:
        (place / "params.yaml").write_text(text.replace("backend: telea", "backend: lama"))
        done = polymuse(inner, "label", "mine.png", "--inpainted", "out")
    finally:
        (place / "params.yaml").write_text(text)
    assert done.returncode == 1 and "inpaint.inpainting.backend is lama" in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert list((inner / "out").iterdir()) == []
