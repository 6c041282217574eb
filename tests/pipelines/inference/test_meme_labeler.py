"""Labels of raw memes, with and without text, by the model in a folder."""

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


def list_test_inputs() -> list[MemeInput]:
    """The memes of the test split as user input."""
    return [
        MemeInput(row["id"], row["original"], image)
        for row, image in make_items()
        if row["split"] == "test"
    ]


def test_labels_are_those_of_the_stages(place):
    """For memes with given and recognized text, without text and without image."""
    memes = prepare_inputs(*list_test_inputs())
    rows = schemas.read_parquet(place / "data/04_augment/memes/records.parquet", schemas.MEMES)
    rows = [row for row in rows if row["split"] == "test"]
    assert [meme.text for meme in memes] == [row["text"] for row in rows]
    names = [
        image_store.build_image_row(meme.image)["sha256"] if meme.image else None for meme in memes
    ]
    assert names == [row["image"] for row in rows]
    source_names = {"corpus": "given", "recognised": "recognised"}
    sources = [source_names[row["text_source"]] if row["text"] else "none" for row in rows]
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
    labeler = load_labeler(get_model_dir(place))
    one_by_one = [labeler.label([meme])[0] for meme in memes]
    for results in (labeler.label(memes), one_by_one):
        assert len(expected) == sum(map(len, results)) == 10
        for meme, labels in zip(memes, results, strict=True):
            for task, label in labels.items():
                row = expected[meme.name, task]
                assert [label.label] == row["predicted"]
                assert [label.probability] == pytest.approx(row["probability"], abs=1e-6)
    assert labeler.label([]) == []


def test_only_learned_tasks_are_labeled(place):
    labeler = load_labeler(get_model_dir(place))
    assert labeler.tasks == ["sentiment", "humour"]
    (labels,) = labeler.label(prepare_inputs(list_test_inputs()[0]))
    for task, label in labels.items():
        names = trained_mm_orient_project.TASKS[task]
        assert label.label in names and 1 / len(names) <= label.probability <= 1


def test_a_given_text_is_not_recognized_but_the_image_is_inpainted(place):
    image = draw_text_image("MONDAY AGAIN")
    given, read = prepare_inputs(
        MemeInput("a", "Not: this!", image), MemeInput("b", " \u200b", image)
    )
    assert (given.text, given.original_text, given.text_source) == (
        "not this",
        "Not: this!",
        "given",
    )
    assert (read.text, read.original_text) == ("monday again", "MONDAY AGAIN")
    assert given.image == read.image != image
    assert prepare_inputs(MemeInput("c", "", given.image))[0].text == ""


def test_a_text_that_is_empty_after_cleaning_is_recognized_instead(place):
    (meme,) = prepare_inputs(MemeInput("a", "quickmeme.com", draw_text_image("MONDAY AGAIN")))
    assert (meme.text, meme.text_source) == ("monday again", "recognised")


def test_without_inpainting_an_image_stays_unchanged(place):
    params = load_config(inpaint.InpaintConfig, "inpaint")
    params = replace(params, inpainting=replace(params.inpainting, backend="none"), ocr="never")
    image = draw_text_image("MONDAY AGAIN")
    memes = [MemeInput("a", "", image), MemeInput("b", "words", b"not read")]
    read, given = meme_labeler.prepare_memes(memes, params, load_input_rules("cli_label"))
    assert (read.text, read.image, read.failures) == ("monday again", image, ())
    assert (given.image, given.failures) == (b"not read", ())


def test_a_failed_step_is_reported_and_the_image_left_unchanged(place, monkeypatch):
    def fails(*_: object) -> None:
        raise ValueError("odd  picture")

    image = draw_text_image("MONDAY AGAIN")
    with monkeypatch.context() as patch:
        patch.setattr(inpaint.text_removal, "paint", fails)
        (painted,) = prepare_inputs(MemeInput("a", "", image))
    assert painted.failures == ("paint: ValueError: odd picture",)
    assert (painted.text, painted.image) == ("monday again", image)
    monkeypatch.setattr(inpaint.text_removal, "find", fails)
    (not_detected,) = prepare_inputs(MemeInput("a", "", image))
    assert (not_detected.text, not_detected.image) == ("", image)
    assert not_detected.failures == ("find: ValueError: odd picture",)


def test_a_text_without_image_is_labeled_too(place):
    (labels,) = load_labeler(get_model_dir(place)).label(
        prepare_inputs(MemeInput("a", "when the cat", None))
    )
    assert list(labels) == ["sentiment", "humour"]


def test_a_task_with_the_name_of_a_column_gets_another_column(place):
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


@pytest.mark.parametrize("encoders", ["minilm", "learned", "resnet18", "efficientnet-lite0"])
def test_labels_with_own_encoders_are_those_of_the_stages(tmp_path, monkeypatch, encoders):
    """Also for texts that the aligned encoder does not support."""
    place = tmp_path / "project"
    place.mkdir()
    monkeypatch.setattr(
        trained_mm_orient_project, "SPLITS", {"train": 5, "validation": 1, "test": 5}
    )
    changes = {"text": {"encoder": "minilm", "max_subwords": 16}}
    if encoders in ("resnet18", "efficientnet-lite0"):
        use_random_resnet(monkeypatch)
        image = {"encoder": encoders, "image_size": 64, "grid_size": 2}
        changes |= {"image": image | {"num_tuned_blocks": 1, "lr_multiplier": 1.0}}
    languages = ("zh" if encoders == "learned" else "en",)
    trained_mm_orient_project.create_trained_project(place, monkeypatch, changes, languages)
    expected = {
        (row["record"], row["task"]): row
        for row in trained_mm_orient_project.classify_test_split(place)
    }
    memes = prepare_inputs(*list_test_inputs())
    for meme, labels in zip(memes, load_labeler(get_model_dir(place)).label(memes), strict=True):
        for task, label in labels.items():
            row = expected[meme.name, task]
            assert [label.label] == row["predicted"]
            assert [label.probability] == pytest.approx(row["probability"], abs=1e-5)


def use_random_resnet(patch) -> None:
    """Replace the download of ResNet weights by seeded random weights."""
    import torch

    from stages.shared.backbones import resnet

    def fill(net, *_: str) -> None:
        generator = torch.Generator().manual_seed(0)
        for weight in net.parameters():
            weight.data.normal_(std=0.05, generator=generator)

    patch.setattr(resnet, "_load_pretrained_weights", fill)


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "encoder/encoder.json"])
def test_a_broken_model_folder_is_one_sentence(place, tmp_path, broken):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(get_model_dir(place), folder)
    (folder / broken).write_bytes((folder / broken).read_bytes()[:9])
    with pytest.raises(InputError) as error:
        load_labeler(folder).label(prepare_inputs(*list_test_inputs()))
    assert "\n" not in str(error.value) and str(error.value).endswith("train it again")
    shutil.rmtree(folder / "encoder")
    shutil.copy(get_model_dir(place) / "config.json", folder)
    shutil.copy(get_model_dir(place) / "model.safetensors", folder)
    with pytest.raises(InputError, match="holds no encoder"):
        load_labeler(folder)
