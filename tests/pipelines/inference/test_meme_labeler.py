"""Raw pictures, with or without words, as a trained folder labels them."""

from dataclasses import replace

import pytest

from pipelines.inference import meme_labeler
from pipelines.inference.input_rules import load_input_rules
from pipelines.inference.meme_labeler import MemeInput, MemeLabel, to_table_row
from stages.inpaint import __main__ as inpaint
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.runtime.stage import InputError
from tests.support import trained_mm_orient_project
from tests.support.trained_mm_orient_project import (
    TEXT_IN_IMAGE_ONLY,
    WITHOUT_WORDS,
    draw_text_image,
    get_model_dir,
    load_labeler,
    make_items,
    prepare_inputs,
)


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


def of_test() -> list[MemeInput]:
    """The test split as its user has it."""
    return [
        MemeInput(row["id"], row["original"], shown)
        for row, shown in make_items()
        if row["split"] == "test"
    ]


def test_a_meme_is_labelled_as_the_stages_label_it_in_its_corpus(place):
    """With words that are given and words that are read, without words, without picture."""
    memes = prepare_inputs(*of_test())
    rows = schemas.read_parquet(place / "data/04_augment/memes/records.parquet", schemas.MEMES)
    rows = [row for row in rows if row["split"] == "test"]
    assert [meme.text for meme in memes] == [row["text"] for row in rows]
    names = [
        image_store.build_image_row(meme.image)["sha256"] if meme.image else None for meme in memes
    ]
    assert names == [row["image"] for row in rows]
    told = {"corpus": "given", "recognised": "recognised"}
    sources = [told[row["text_source"]] if row["text"] else "none" for row in rows]
    assert [meme.text_source for meme in memes] == sources
    assert [sources[n] for n in (0, TEXT_IN_IMAGE_ONLY, WITHOUT_WORDS)] == [
        "given",
        "recognised",
        "none",
    ]
    expected = {
        (row["record"], row["task"]): row
        for row in trained_mm_orient_project.classify_test_split(place)
    }
    labeller = load_labeler(get_model_dir(place))
    for found in (labeller.label(memes), [labeller.label([meme])[0] for meme in memes]):
        assert len(expected) == sum(map(len, found)) == 10
        for meme, labels in zip(memes, found, strict=True):
            for task, one in labels.items():
                row = expected[meme.name, task]
                assert [one.label] == row["predicted"]
                assert [one.probability] == pytest.approx(row["probability"], abs=1e-6)
    assert labeller.label([]) == []


def test_only_tasks_that_were_learned_are_labelled(place):
    labeller = load_labeler(get_model_dir(place))
    assert labeller.tasks == ["sentiment", "humour"]
    (labels,) = labeller.label(prepare_inputs(of_test()[0]))
    for task, one in labels.items():
        names = trained_mm_orient_project.TASKS[task]
        assert one.label in names and 1 / len(names) <= one.probability <= 1


def test_words_that_are_given_are_not_read_and_the_picture_loses_its_own_all_the_same(place):
    shown = draw_text_image("MONDAY AGAIN")
    given, read = prepare_inputs(
        MemeInput("a", "Not: this!", shown), MemeInput("b", " \u200b", shown)
    )
    assert (given.text, given.original_text, given.text_source) == (
        "not this",
        "Not: this!",
        "given",
    )
    assert (read.text, read.original_text) == ("monday again", "MONDAY AGAIN")
    assert given.image == read.image != shown
    assert prepare_inputs(MemeInput("c", "", given.image))[0].text == ""


def test_words_that_cleaning_leaves_nothing_of_are_read(place):
    (meme,) = prepare_inputs(MemeInput("a", "quickmeme.com", draw_text_image("MONDAY AGAIN")))
    assert (meme.text, meme.text_source) == ("monday again", "recognised")


def test_without_painting_a_picture_stays_as_it_is(place):
    params = load_config(inpaint.InpaintConfig, "inpaint")
    params = replace(params, inpainting=replace(params.inpainting, backend="none"), ocr="never")
    shown = draw_text_image("MONDAY AGAIN")
    memes = [MemeInput("a", "", shown), MemeInput("b", "words", b"never looked at")]
    read, given = meme_labeler.prepare_memes(memes, params, load_input_rules("cli_label"))
    assert (read.text, read.image, read.failures) == ("monday again", shown, ())
    assert (given.image, given.failures) == (b"never looked at", ())


def test_a_step_that_fails_is_told_and_the_picture_passed_through(place, monkeypatch):
    def fails(*_: object) -> None:
        raise ValueError("odd  picture")

    shown = draw_text_image("MONDAY AGAIN")
    with monkeypatch.context() as patch:
        patch.setattr(inpaint.text_removal, "paint", fails)
        (painted,) = prepare_inputs(MemeInput("a", "", shown))
    assert painted.failures == ("paint: ValueError: odd picture",)
    assert (painted.text, painted.image) == ("monday again", shown)
    monkeypatch.setattr(inpaint.text_removal, "find", fails)
    (found,) = prepare_inputs(MemeInput("a", "", shown))
    assert (found.text, found.image) == ("", shown)
    assert found.failures == ("find: ValueError: odd picture",)


def test_a_text_without_picture_is_labelled_too(place):
    (labels,) = load_labeler(get_model_dir(place)).label(
        prepare_inputs(MemeInput("a", "when the cat", None))
    )
    assert list(labels) == ["sentiment", "humour"]


def test_a_row_has_no_column_twice_whatever_tasks_are_called(place):
    (meme,) = prepare_inputs(MemeInput("a", "when", None))
    row = to_table_row(meme, {"text": MemeLabel("yes", 0.5), "mood": MemeLabel("bad", 1.0)})
    assert row == {
        "text": "when",
        "original": "when",
        "text_source": "given",
        "text_": "yes",
        "text__probability": 0.5,
        "mood": "bad",
        "mood_probability": 1.0,
    }


@pytest.mark.parametrize("reader", ["minilm", "learned", "resnet"])
def test_a_reader_with_encoders_of_its_own_labels_as_the_stages_do(tmp_path, monkeypatch, reader):
    """Also of texts that the aligned encoder does not read."""
    place = tmp_path / "project"
    place.mkdir()
    monkeypatch.setattr(
        trained_mm_orient_project, "SPLITS", {"train": 5, "validation": 1, "test": 5}
    )
    changes = {"text": {"encoder": "minilm", "max_subwords": 16}}
    if reader == "resnet":
        untrained(monkeypatch)
        changes |= {"image": {"encoder": "resnet18", "image_size": 64, "grid_size": 2}}
    languages = ("zh" if reader == "learned" else "en",)
    trained_mm_orient_project.create_trained_project(place, monkeypatch, changes, languages)
    expected = {
        (row["record"], row["task"]): row
        for row in trained_mm_orient_project.classify_test_split(place)
    }
    memes = prepare_inputs(*of_test())
    for meme, labels in zip(memes, load_labeler(get_model_dir(place)).label(memes), strict=True):
        for task, one in labels.items():
            row = expected[meme.name, task]
            assert [one.label] == row["predicted"]
            assert [one.probability] == pytest.approx(row["probability"], abs=1e-5)


def untrained(patch) -> None:
    """Weights of a ResNet without the download, the same each time."""
    import torch

    from stages.shared.backbones import resnet

    def fill(net, _: str) -> None:
        drawn = torch.Generator().manual_seed(0)
        for weight in net.parameters():
            weight.data.normal_(std=0.05, generator=drawn)

    patch.setattr(resnet, "_fill", fill)


@pytest.mark.parametrize("spoilt", ["config.json", "model.safetensors", "encoder/encoder.json"])
def test_a_folder_that_is_broken_is_one_sentence(place, tmp_path, spoilt):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(get_model_dir(place), folder)
    (folder / spoilt).write_bytes((folder / spoilt).read_bytes()[:9])
    with pytest.raises(InputError) as wrong:
        load_labeler(folder).label(prepare_inputs(*of_test()))
    assert "\n" not in str(wrong.value) and str(wrong.value).endswith("train it again")
    shutil.rmtree(folder / "encoder")
    shutil.copy(get_model_dir(place) / "config.json", folder)
    shutil.copy(get_model_dir(place) / "model.safetensors", folder)
    with pytest.raises(InputError, match="holds no encoder"):
        load_labeler(folder)
