"""`polymuse label` of texts and the models that MLflow serves, with tiny trained models."""

import json
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from PIL import Image

from pipelines.cli import label
from pipelines.inference import model_bundle
from pipelines.inference.text_labeler import (
    EntityPrediction,
    TextLabeler,
    build_input_from_text,
    extract_entities,
)
from stages.shared.runtime import mlflow_store, tracking
from stages.shared.runtime.stage import InputError
from tests.pipelines.cli.test_cli import POLYMUSE, polymuse
from tests.support import muse_corpus
from tests.support.earlier_version import make_logged_model
from tests.support.tiny_clip import make_photo
from tests.support.trained_muse_project import RED_IMAGE, get_model_dir


@pytest.fixture
def place(trained_classifiers, monkeypatch):
    monkeypatch.chdir(trained_classifiers)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained_classifiers / "home"))
    return trained_classifiers


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(RED_IMAGE)
    return path


def make_options(**options) -> Namespace:
    defaults = dict.fromkeys(("text", "words", "output", "inpainted", "file", "run", "model"))
    return Namespace(**(defaults | {"image": [], "json": False} | options))


def label_lines(capsys, **options) -> list[str]:
    """The output lines of the command."""
    capsys.readouterr()
    label.main(make_options(**options))
    return capsys.readouterr().out.splitlines()


def label_as_json(capsys, **options) -> list[dict]:
    """The JSON objects of the command."""
    return [json.loads(line) for line in label_lines(capsys, json=True, **options)]


def test_a_model_that_does_not_use_images_says_so(place, capsys, red, monkeypatch):
    monkeypatch.setattr(TextLabeler, "uses_images", False)
    assert label_lines(capsys, text="the fox", image=[red])[1] == "This model does not use images."


def test_a_tweet_is_printed_with_its_entities(place, capsys, red, monkeypatch):
    tags = EntityPrediction(["Ann", "Bo"], ["O", "O"], [], 0)
    item = build_input_from_text("Ann Bo is\n in Oslo", RED_IMAGE)
    entities = extract_entities(item, ["B-PER", "I-PER", "O", "O", "B-MISC"])
    monkeypatch.setattr(
        TextLabeler, "label", lambda *_: [EntityPrediction(item.words, [], entities, 2)]
    )
    assert label_lines(capsys, text="Ann Bo is\n in Oslo", image=[red]) == [
        "Labeling 1 text with muse_entities",
        "",
        "Ann Bo is in Oslo [red.png]",
        "  PER   Ann Bo, words 1 to 2",
        "  MISC  Oslo, word 5",
        "  2 words at the end not read",
    ]
    monkeypatch.setattr(TextLabeler, "label", lambda *_: [tags])
    assert label_lines(capsys, text="Ann Bo") == [
        "Labeling 1 text with muse_entities",
        "No image: a placeholder is used.",
        "",
        "Ann Bo",
        "  no entities",
    ]


def test_a_post_is_printed_with_its_label(place, capsys, red):
    first, blank, text, answer = label_lines(
        capsys, text="the fox", image=[red], run="muse_sentiment"
    )
    assert (first, blank, text) == ("Labeling 1 text with muse_sentiment", "", "the fox [red.png]")
    assert answer.strip().split(", ")[0] in muse_corpus.SENTIMENTS.values()
    lines = label_lines(capsys, image=[red], run="muse_sentiment")
    assert lines[:-1] == [
        "Labeling 1 image with muse_sentiment",
        "No text: a placeholder is used.",
        "",
        "[red.png]",
    ]


def test_the_json_of_a_tweet_has_words_tags_and_entities(place, capsys, red):
    (labels,) = label_as_json(capsys, text="the fox\u200b sat!", image=[red])
    assert list(labels) == ["text", "image", "words", "tags", "entities", "words_not_read"]
    assert (labels["text"], labels["image"]) == ("the fox sat!", "red.png")
    assert labels["words"] == ["the", "fox", "sat", "!"] and len(labels["tags"]) == 4
    for entity in labels["entities"]:
        assert labels["text"][entity["start"] : entity["end"]] == entity["text"]
    (labels,) = label_as_json(capsys, image=[red], run="muse_sentiment")
    assert list(labels) == ["text", "image", "label", "probability", "words_not_read"]
    assert labels["text"] is None and 1 / 3 < labels["probability"] <= 1


def test_the_texts_of_a_file_are_labeled_in_order(place, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_bytes("\ufeffthe fox sat\r\n\n  \na lamp\n".encode())
    labels = label_as_json(capsys, file=lines)
    assert [(row["source"], row["text"]) for row in labels] == [
        ("lines.txt:1", "the fox sat"),
        ("lines.txt:4", "a lamp"),
    ]
    output = label_lines(capsys, file=lines)
    assert output[:2] == [
        "Labeling 2 texts with muse_entities",
        "No image in 2 of 2: a placeholder is used.",
    ]
    assert [line for line in output[2:] if line and not line.startswith(" ")] == [
        "the fox sat",
        "a lamp",
    ]


def test_a_jsonl_file_can_name_images_and_can_be_a_corpus(place, capsys, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(RED_IMAGE)
    rows = [
        {"text": "the fox", "image": "in/a.png"},
        {"words": ["the fox!", "sat"], "tags": ["O", "O"], "id": 7, "text": "ignored"},
        {"image": "in/a.png", "text": ""},
    ]
    file = tmp_path / "tweets.jsonl"
    file.write_text("\n".join(map(json.dumps, rows[:2])))
    labels = label_as_json(capsys, file=file)
    assert [row["image"] for row in labels] == ["in/a.png", None]
    assert labels[1]["words"] == ["the fox!", "sat"] and labels[1]["source"] == "tweets.jsonl:2"
    file.write_text("\n".join(map(json.dumps, rows)))
    labels = label_as_json(capsys, file=file, run="muse_sentiment")
    assert [row["text"] for row in labels] == ["the fox", "the fox! sat", None]


def test_labels_do_not_depend_on_the_batch_size(place, capsys, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"the fox {'lamp ' * number}\n" for number in range(7)))
    expected = label_as_json(capsys, file=file, run="muse_entities")
    text = (place / "params.yaml").read_text()
    changed = yaml.safe_load(text)
    changed["cli_label"]["batch_size"] = 2
    (place / "params.yaml").write_text(yaml.safe_dump(changed))
    try:
        assert label_as_json(capsys, file=file, run="muse_entities") == expected
    finally:
        (place / "params.yaml").write_text(text)


def write_invalid_files(folder: Path) -> None:
    """Invalid files, and a valid image."""
    (folder / "text.png").write_text("no picture")
    with (folder / "huge.bmp").open("wb") as file:
        file.truncate(10**12)  # sparse
    Image.new("1", (20000, 20000)).save(folder / "wide.png")
    (folder / "fine.png").write_bytes(RED_IMAGE)
    (folder / "cut.png").write_bytes(RED_IMAGE[:200])
    (folder / "empty").mkdir()
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "latin.txt").write_bytes("fine\ncaf\xe9\n".encode("latin-1"))
    (folder / "long.txt").write_text("fine\n" + "a" * 100_000 + "\n")
    (folder / "table.csv").write_text("a,b\n")
    for name, line in LINES.items():
        (folder / f"{name}.jsonl").write_text('{"text": "fine"}\n' + line)


LINES = {
    "broken": '{"text": ',
    "number": '{"text": 3}',
    "none": '{"image": null, "text": " "}',
    "nowords": '{"words": []}',
    "missing": '{"text": "a", "image": "no.png"}',
    "outside": '{"text": "a", "image": "../red.png"}',
    "remote": '{"text": "a", "image": "https://a.org/a.png"}',
    "broken_image": '{"text": "a", "image": "text.png"}',
    "surrogate": '{"text": "\\ud800"}',
    "picture": '{"image": "fine.png"}',
}
INVALID = {  # part of the message -> options; the files are those of write_invalid_files
    "unreadable": {"text": "a", "image": ["text.png"]},
    "cut.png: unreadable": {"text": "a", "image": ["cut.png"]},
    "larger than max_pixels": {"text": "a", "image": ["wide.png"]},
    "ingest.max_pixels": {"text": "a", "image": ["huge.bmp"]},
    "is a folder": {"text": "a", "image": ["empty"]},
    "does not exist": {"text": "a", "image": ["none.png"]},
    "2 images for one text": {"text": "a", "image": ["fine.png", "fine.png"]},
    "there is nothing to label": {},
    "nothing to label": {"text": " \0\u200b\u202e\t"},
    "TEXT has 100000 characters, more than cli_label.max_characters (5000)": {
        "text": "a" * 100_000
    },
    "TEXT has no text, and this model labels words": {"image": ["fine.png"]},
    "no run": {"text": "a", "run": "nobody"},
    "no run 'flexmuse' among its classifiers": {"text": "a", "run": "flexmuse"},
    "no trained model": {"text": "a", "model": "nowhere"},
    "models:/nobody/1": {"text": "a", "model": "models:/nobody/1"},
    "runs:/0/model": {"text": "a", "model": "runs:/0/model"},
    "give one or the other": {"text": "a", "file": "blank.txt"},
    "blank.txt has no text": {"file": "blank.txt"},
    "latin.txt:2: undecodable line": {"file": "latin.txt"},
    "long.txt:2 has 100000 characters": {"file": "long.txt"},
    "table.csv is neither .txt": {"file": "table.csv"},
    "none.txt cannot be read (No such file": {"file": "none.txt"},
    "broken.jsonl:2: not JSON": {"file": "broken.jsonl"},
    "number.jsonl:2: wrong field: text": {"file": "number.jsonl"},
    "none.jsonl:2: there is neither a text nor": {"file": "none.jsonl"},
    "nowords.jsonl:2: there is neither a text": {"file": "nowords.jsonl"},
    "missing.jsonl:2: missing image: no.png": {"file": "missing.jsonl"},
    "outside.jsonl:2: path leaves the folder: ../red.png": {"file": "outside.jsonl"},
    "remote.jsonl:2: remote image": {"file": "remote.jsonl"},
    "broken_image.jsonl:2: text.png: unreadable image": {"file": "broken_image.jsonl"},
    "surrogate.jsonl:2: not JSON": {"file": "surrogate.jsonl"},
    "picture.jsonl:2 has no text, and this model labels words": {"file": "picture.jsonl"},
}


@pytest.mark.parametrize("message", INVALID)
def test_invalid_input_is_one_sentence_and_nothing_is_labeled(place, tmp_path, capsys, message):
    write_invalid_files(tmp_path)
    options = dict(INVALID[message])
    options["image"] = [tmp_path / name for name in options.get("image", [])]
    if "file" in options:
        options["file"] = tmp_path / options["file"]
    with pytest.raises(InputError) as error:
        label.main(make_options(**options))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "Labeling" not in capsys.readouterr().out


def test_control_characters_are_not_printed(place, capsys, tmp_path):
    file = tmp_path / "words.jsonl"
    file.write_text(json.dumps({"words": ["a\x1b[31m", "\x9b2J", "\u202eb", "\0"]}))
    lines = label_lines(capsys, file=file)
    assert not set("".join(lines)) & set("\x1b\x9b\u202e\0")
    assert label_lines(capsys, text="\x1b[31m a\udcff \u202eb")[3] == "[31m a b"


def test_an_untrained_run_says_what_to_run(place, monkeypatch):
    monkeypatch.setitem(model_bundle.MODEL_DIRS, "classifiers", {"train_classifier": "data/none"})
    with pytest.raises(InputError, match="polymuse run train_classifier@muse_sentiment"):
        label.main(make_options(text="a", run="muse_sentiment"))


@pytest.mark.parametrize(
    "broken",
    ["config.json", "model.safetensors", "encoder/encoder.json", "text_encoder/text_encoder.json"],
)
def test_a_model_folder_that_is_broken_is_one_sentence(place, tmp_path, red, broken):
    folder = tmp_path / "model"
    shutil.copytree(get_model_dir(place, "muse_sentiment"), folder)
    (folder / broken).write_bytes((folder / broken).read_bytes()[:9])
    with pytest.raises(InputError) as error:
        label.main(make_options(text="a", image=[red], model=str(folder)))
    assert "\n" not in str(error.value) and str(error.value).startswith("--model: ")


def test_a_model_labels_the_same_by_folder_and_by_mlflow_address(
    place, capsys, red, tmp_path, monkeypatch
):
    """Also by mlflow.pyfunc in a folder without params.yaml."""
    client = mlflow.MlflowClient(tracking.get_tracking_uri())
    experiment = client.get_experiment_by_name(mlflow_store.EXPERIMENT_NAME).experiment_id
    logged = {
        client.get_run(model.source_run_id).info.run_name: model
        for model in client.search_logged_models([experiment])
    }
    for name in muse_corpus.CORPUS_KINDS:
        model = logged[f"train_classifier@{name}"]
        expected = label_as_json(capsys, text="the fox sat", image=[red], run=name)
        address = f"models:/{model.model_id}"
        run_address = f"runs:/{model.source_run_id}/{name}"
        for source in (address, run_address, str(get_model_dir(place, name))):
            assert label_as_json(capsys, text="the fox sat", image=[red], model=source) == expected
        served = mlflow.pyfunc.load_model(address)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir(tmp_path)
            frame = pd.DataFrame({"text": ["the fox sat", "a"], "image": [RED_IMAGE, None]})
            rows = served.predict(frame).to_dict("records")
            assert served.predict(frame[:0]).empty
            assert served.metadata.get_output_schema().input_names() == list(rows[0])
        sure = rows[0].pop("probability", 0.0), expected[0].get("probability", 0.0)
        assert sure[0] == pytest.approx(sure[1], abs=1e-5) and len(rows) == 2
        assert rows[0] == {key: expected[0][key] for key in rows[0]}
        with pytest.raises(InputError, match="row 1 has neither text nor image"):
            served.predict(pd.DataFrame({"text": ["a", " \u200b"]}))
        long = pd.DataFrame({"text": ["a" * 5001]})
        with pytest.raises(InputError, match="row 0: text has 5001 characters, more than cli"):
            served.predict(long)


@pytest.mark.parametrize("name", muse_corpus.CORPUS_KINDS)
def test_a_model_that_an_earlier_version_logged_loads_and_labels_the_same(
    place, capsys, red, tmp_path, name
):
    """Its MLmodel names the module pipelines.served, its config.json has old keys."""
    folder = tmp_path / "model"
    shutil.copytree(get_model_dir(place, name), folder)
    make_logged_model(folder)
    (expected,) = label_as_json(capsys, text="the fox sat", image=[red], run=name)
    (labels,) = label_as_json(capsys, text="the fox sat", image=[red], model=str(folder))
    assert labels == expected
    frame = pd.DataFrame({"text": ["the fox sat"], "image": [RED_IMAGE]})
    (row,) = mlflow.pyfunc.load_model(str(folder)).predict(frame).to_dict("records")
    assert row.pop("probability", None) == pytest.approx(expected.get("probability"), abs=1e-5)
    assert row == {key: expected[key] for key in row}


@pytest.mark.slow
def test_the_command_works_from_any_folder(place, red):
    inner = place / "data"
    shutil.copy(red, inner / "mine.png")
    done = polymuse(inner, "label", "the fox sat", "--image", "mine.png", "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout)["image"] == "mine.png"
    wrong = polymuse(inner, "label", "")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_reader_of_the_output_may_stop_reading(place, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("the fox sat\n" * 500)
    command = f"'{POLYMUSE}' label --file '{file}' --json | head -1"
    done = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True)
    assert json.loads(done.stdout)["text"] == "the fox sat" and done.stderr == ""


def test_images_of_all_color_modes_are_read(place, tmp_path, capsys):
    for number, mode in enumerate(["L", "RGBA", "P", "1", "CMYK"]):
        path = tmp_path / f"{number}.tiff"
        make_photo(number, 31, 77).convert(mode).save(path)
        (labels,) = label_as_json(capsys, text="the fox", image=[path], run="muse_sentiment")
        assert labels["label"] in muse_corpus.SENTIMENTS.values()
