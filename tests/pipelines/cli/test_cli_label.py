"""`polymuse label`, and readers that MLflow serves, on tiny ones that lie on disk."""

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
from pipelines.inference.text_labeler import (
    EntityPrediction,
    TextLabeler,
    build_input_from_text,
    extract_entities,
)
from stages.shared.runtime import tracking
from stages.shared.runtime.stage import InputError
from tests.pipelines.cli.test_cli import POLYMUSE, polymuse
from tests.support import muse_corpus
from tests.support.tiny_clip import make_photo
from tests.support.trained_muse_project import RED_IMAGE, get_model_dir


@pytest.fixture
def place(trained_readers, monkeypatch):
    monkeypatch.chdir(trained_readers)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained_readers / "home"))
    return trained_readers


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(RED_IMAGE)
    return path


def given(**options) -> Namespace:
    absent = dict.fromkeys(("text", "words", "output", "inpainted", "file", "run", "model"))
    return Namespace(**(absent | {"image": [], "json": False} | options))


def said(capsys, **options) -> list[str]:
    """The lines that the command writes for these options."""
    capsys.readouterr()
    label.main(given(**options))
    return capsys.readouterr().out.splitlines()


def told(capsys, **options) -> list[dict]:
    """The objects that it writes."""
    return [json.loads(line) for line in said(capsys, json=True, **options)]


def test_a_reader_that_does_not_look_at_pictures_says_so(place, capsys, red, monkeypatch):
    monkeypatch.setattr(TextLabeler, "uses_images", False)
    assert said(capsys, text="the fox", image=[red])[1] == "This model does not use images."


def test_a_tweet_is_shown_with_its_entities(place, capsys, red, monkeypatch):
    tags = EntityPrediction(["Ann", "Bo"], ["O", "O"], [], 0)
    item = build_input_from_text("Ann Bo is\n in Oslo", RED_IMAGE)
    found = extract_entities(item, ["B-PER", "I-PER", "O", "O", "B-MISC"])
    monkeypatch.setattr(
        TextLabeler, "label", lambda *_: [EntityPrediction(item.words, [], found, 2)]
    )
    assert said(capsys, text="Ann Bo is\n in Oslo", image=[red]) == [
        "Labeling 1 text with muse_entities",
        "",
        "Ann Bo is in Oslo [red.png]",
        "  PER   Ann Bo, words 1 to 2",
        "  MISC  Oslo, word 5",
        "  2 words at the end not read",
    ]
    monkeypatch.setattr(TextLabeler, "label", lambda *_: [tags])
    assert said(capsys, text="Ann Bo") == [
        "Labeling 1 text with muse_entities",
        "No image: a placeholder is used.",
        "",
        "Ann Bo",
        "  no entities",
    ]


def test_a_post_is_shown_with_its_label(place, capsys, red):
    first, blank, text, answer = said(capsys, text="the fox", image=[red], run="muse_sentiment")
    assert (first, blank, text) == ("Labeling 1 text with muse_sentiment", "", "the fox [red.png]")
    assert answer.strip().split(", ")[0] in muse_corpus.SENTIMENTS.values()
    lines = said(capsys, image=[red], run="muse_sentiment")
    assert lines[:-1] == [
        "Labeling 1 image with muse_sentiment",
        "No text: a placeholder is used.",
        "",
        "[red.png]",
    ]


def test_an_object_says_all_of_a_tweet(place, capsys, red):
    (made,) = told(capsys, text="the fox\u200b sat!", image=[red])
    assert list(made) == ["text", "image", "words", "tags", "entities", "words_not_read"]
    assert (made["text"], made["image"]) == ("the fox sat!", "red.png")
    assert made["words"] == ["the", "fox", "sat", "!"] and len(made["tags"]) == 4
    for one in made["entities"]:
        assert made["text"][one["start"] : one["end"]] == one["text"]
    (made,) = told(capsys, image=[red], run="muse_sentiment")
    assert list(made) == ["text", "image", "label", "probability", "words_not_read"]
    assert made["text"] is None and 1 / 3 < made["probability"] <= 1


def test_texts_of_a_file_are_labelled_in_its_order(place, capsys, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_bytes("\ufeffthe fox sat\r\n\n  \na lamp\n".encode())
    made = told(capsys, file=lines)
    assert [(one["source"], one["text"]) for one in made] == [
        ("lines.txt:1", "the fox sat"),
        ("lines.txt:4", "a lamp"),
    ]
    shown = said(capsys, file=lines)
    assert shown[:2] == [
        "Labeling 2 texts with muse_entities",
        "No image in 2 of 2: a placeholder is used.",
    ]
    assert [line for line in shown[2:] if line and not line.startswith(" ")] == [
        "the fox sat",
        "a lamp",
    ]


def test_a_file_of_objects_names_its_pictures_and_may_be_a_corpus(place, capsys, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(RED_IMAGE)
    rows = [
        {"text": "the fox", "image": "in/a.png"},
        {"words": ["the fox!", "sat"], "tags": ["O", "O"], "id": 7, "text": "ignored"},
        {"image": "in/a.png", "text": ""},
    ]
    file = tmp_path / "tweets.jsonl"
    file.write_text("\n".join(map(json.dumps, rows[:2])))
    made = told(capsys, file=file)
    assert [one["image"] for one in made] == ["in/a.png", None]
    assert made[1]["words"] == ["the fox!", "sat"] and made[1]["source"] == "tweets.jsonl:2"
    file.write_text("\n".join(map(json.dumps, rows)))
    made = told(capsys, file=file, run="muse_sentiment")
    assert [one["text"] for one in made] == ["the fox", "the fox! sat", None]


def test_batches_of_a_file_change_nothing(place, capsys, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"the fox {'lamp ' * number}\n" for number in range(7)))
    whole = told(capsys, file=file, run="muse_entities")
    text = (place / "params.yaml").read_text()
    changed = yaml.safe_load(text)
    changed["cli_label"]["batch_size"] = 2
    (place / "params.yaml").write_text(yaml.safe_dump(changed))
    try:
        assert told(capsys, file=file, run="muse_entities") == whole
    finally:
        (place / "params.yaml").write_text(text)


def spoil(folder: Path) -> None:
    """Files that cannot be used, and one that can."""
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
    "spoilt": '{"text": "a", "image": "text.png"}',
    "surrogate": '{"text": "\\ud800"}',
    "picture": '{"image": "fine.png"}',
}
WRONG = {  # what is said -> the options; files are those of `spoil`
    "unreadable": {"text": "a", "image": ["text.png"]},
    "cut.png: unreadable": {"text": "a", "image": ["cut.png"]},
    "larger than max_pixels": {"text": "a", "image": ["wide.png"]},
    "ingest.max_pixels": {"text": "a", "image": ["huge.bmp"]},
    "is a folder": {"text": "a", "image": ["empty"]},
    "does not exist": {"text": "a", "image": ["none.png"]},
    "2 images for one text": {"text": "a", "image": ["fine.png", "fine.png"]},
    "there is nothing to label": {},
    "nothing to label": {"text": " \0\u200b\u202e\t"},
    "TEXT has 100000 characters, more than cli_label.max_characters (5000)": {"text": "a" * 100_000},
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
    "spoilt.jsonl:2: text.png: unreadable image": {"file": "spoilt.jsonl"},
    "surrogate.jsonl:2: not JSON": {"file": "surrogate.jsonl"},
    "picture.jsonl:2 has no text, and this model labels words": {"file": "picture.jsonl"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_input_that_cannot_be_used_is_one_sentence_and_nothing_is_labelled(
    place, tmp_path, capsys, wrong
):
    spoil(tmp_path)
    options = dict(WRONG[wrong])
    options["image"] = [tmp_path / name for name in options.get("image", [])]
    if "file" in options:
        options["file"] = tmp_path / options["file"]
    with pytest.raises(InputError) as error:
        label.main(given(**options))
    assert wrong in str(error.value) and "\n" not in str(error.value)
    assert "Labeling" not in capsys.readouterr().out


def test_control_characters_reach_no_terminal(place, capsys, tmp_path):
    file = tmp_path / "words.jsonl"
    file.write_text(json.dumps({"words": ["a\x1b[31m", "\x9b2J", "\u202eb", "\0"]}))
    labeller_lines = said(capsys, file=file)
    assert not set("".join(labeller_lines)) & set("\x1b\x9b\u202e\0")
    assert said(capsys, text="\x1b[31m a\udcff \u202eb")[3] == "[31m a b"


def test_a_reader_that_is_not_trained_says_what_to_run(place, monkeypatch):
    monkeypatch.setattr(label, "MODEL_DIRS", {"train_classifier": "data/none"})
    with pytest.raises(InputError, match="polymuse run train_classifier@muse_sentiment"):
        label.main(given(text="a", run="muse_sentiment"))


@pytest.mark.parametrize(
    "spoilt",
    ["config.json", "model.safetensors", "encoder/encoder.json", "text_encoder/text_encoder.json"],
)
def test_a_model_folder_that_is_broken_is_one_sentence(place, tmp_path, red, spoilt):
    folder = tmp_path / "model"
    shutil.copytree(get_model_dir(place, "muse_sentiment"), folder)
    (folder / spoilt).write_bytes((folder / spoilt).read_bytes()[:9])
    with pytest.raises(InputError) as wrong:
        label.main(given(text="a", image=[red], model=str(folder)))
    assert "\n" not in str(wrong.value) and str(wrong.value).startswith("--model: ")


def test_a_model_by_folder_and_by_addresses_of_mlflow_labels_the_same(
    place, capsys, red, tmp_path, monkeypatch
):
    """And so does mlflow.pyfunc, where there is no params.yaml."""
    client = mlflow.MlflowClient(tracking.get_tracking_uri())
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT_NAME).experiment_id
    logged = {
        client.get_run(one.source_run_id).info.run_name: one
        for one in client.search_logged_models([experiment])
    }
    for name in muse_corpus.CORPUS_KINDS:
        model = logged[f"train_classifier@{name}"]
        expected = told(capsys, text="the fox sat", image=[red], run=name)
        address = f"models:/{model.model_id}"
        for one in (address, f"runs:/{model.source_run_id}/model", str(get_model_dir(place, name))):
            assert told(capsys, text="the fox sat", image=[red], model=one) == expected
        served = mlflow.pyfunc.load_model(address)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir(tmp_path)
            frame = pd.DataFrame({"text": ["the fox sat", "a"], "image": [RED_IMAGE, None]})
            found = served.predict(frame).to_dict("records")
            assert served.predict(frame[:0]).empty
            assert served.metadata.get_output_schema().input_names() == list(found[0])
        sure = found[0].pop("probability", 0.0), expected[0].get("probability", 0.0)
        assert sure[0] == pytest.approx(sure[1], abs=1e-5) and len(found) == 2
        assert found[0] == {key: expected[0][key] for key in found[0]}
        with pytest.raises(InputError, match="row 1 has neither text nor image"):
            served.predict(pd.DataFrame({"text": ["a", " \u200b"]}))
        long = pd.DataFrame({"text": ["a" * 5001]})
        with pytest.raises(InputError, match="row 0: text has 5001 characters, more than cli"):
            served.predict(long)


def test_the_command_works_from_any_folder(place, red):
    inner = place / "data"
    shutil.copy(red, inner / "mine.png")
    done = polymuse(inner, "label", "the fox sat", "--image", "mine.png", "--json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout)["image"] == "mine.png"
    wrong = polymuse(inner, "label", "")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1


def test_whoever_reads_its_output_may_stop(place, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("the fox sat\n" * 500)
    command = f"'{POLYMUSE}' label --file '{file}' --json | head -1"
    done = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True)
    assert json.loads(done.stdout)["text"] == "the fox sat" and done.stderr == ""


def test_a_photo_is_read_whatever_its_form(place, tmp_path, capsys):
    for number, mode in enumerate(["L", "RGBA", "P", "1", "CMYK"]):
        path = tmp_path / f"{number}.tiff"
        make_photo(number, 31, 77).convert(mode).save(path)
        (made,) = told(capsys, text="the fox", image=[path], run="muse_sentiment")
        assert made["label"] in muse_corpus.SENTIMENTS.values()
