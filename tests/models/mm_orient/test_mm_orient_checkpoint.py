"""A trained reader of memes lies in a folder that needs nothing else, and says the same from it."""

import shutil
import socket

import pytest
import torch

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient.checkpoint import TEXT_ENCODER_DIR
from stages.shared.backbones import resnet
from stages.shared.core.config import load_config
from stages.shared.data import image_store
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from tests.support import mm_orient_corpus, tiny_bert
from tests.support.article_corpus import write_encoder_dir
from tests.support.mm_orient_corpus import (
    RUN_NAME,
    load_run_config,
    prefix_run_changes,
    save_trained_classifier,
    train_classifier,
)

ONE_STEP = prefix_run_changes(training__steps=1)
RESNET = prefix_run_changes(picture__encoder="resnet18")
MINILM = prefix_run_changes(text__encoder="minilm")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """place(changes): a project with these values in params.yaml, which is current from then on.

    BERT stands for the folder of a tiny one.
    """
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))

    def make(changes=None):
        bert = str(tmp_path / "bert")
        changes = {key: bert if value == "BERT" else value for key, value in changes.items()}
        mm_orient_corpus.create_project(tmp_path, ONE_STEP | changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """nowhere(): as on a machine that has the folder of the model alone, and asks nobody."""

    def go():
        shutil.rmtree(tmp_path / "bert")
        (tmp_path / "params.yaml").unlink()
        monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "another home"))
        monkeypatch.setattr(resnet, "_fill", None)
        monkeypatch.setattr(socket.socket, "connect", None)
        monkeypatch.setattr(socket, "getaddrinfo", None)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        (tmp_path / "nowhere").mkdir()
        monkeypatch.chdir(tmp_path / "nowhere")

    return go


@pytest.fixture
def filled(monkeypatch):
    """torchvision's weights, here those of chance."""

    def fill(net, name):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for weight in net.parameters():
                torch.nn.init.normal_(weight, std=0.05)

    monkeypatch.setattr(resnet, "_fill", fill)


def items_of(reader, folders, split="test") -> meme_dataset.MemeDataset:
    pictures, records, embed = folders
    return reader.items(
        meme_dataset.load_splits(records)[split], feature_store.read_features(embed), pictures
    )


def probabilities(reader, folders) -> dict[str, torch.Tensor]:
    """Of every task, of all test items."""
    items = items_of(reader, folders)
    batch = items.batch(list(range(len(items))))
    return reader.paper.predict(reader.model, batch).probabilities


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("changes", "also"),
    [
        ({}, set()),
        (prefix_run_changes(text__encoder="BERT"), {"text_encoder"}),
        (MINILM, {"text_encoder"}),
        (RESNET, {"regions.safetensors"}),
        (prefix_run_changes(task_features__toxicity="BERT"), {"toxicity"}),
    ],
    ids=["cached", "bert", "minilm", "resnet18", "toxicity"],
)
def test_what_was_saved_says_the_same_without_params_or_network(
    place, nowhere, filled, changes, also
):
    folder = place(changes)
    given = mm_orient_corpus.write_meme_corpus(folder)
    reader, model = save_trained_classifier(folder, given)
    assert files(model) == {"config.json", "model.safetensors", "encoder"} | also
    wanted = probabilities(reader, given)
    nowhere()
    again = mm_orient_checkpoint.restore(model)
    found = probabilities(again, given)
    assert found.keys() == wanted.keys() == mm_orient_corpus.LEARNED_TASKS.keys()
    assert all(torch.equal(found[task], wanted[task]) for task in wanted)
    assert again.config == reader.config and not again.model.training


def test_the_weights_of_an_installed_package_are_not_copied(place):
    folder = place(MINILM)
    _, model = save_trained_classifier(folder, mm_orient_corpus.write_meme_corpus(folder))
    assert "model.safetensors" not in files(model / TEXT_ENCODER_DIR)


def test_a_text_encoder_of_its_own_reads_so_many_pieces_and_tells_what_it_cut(place):
    folder = place(prefix_run_changes(text__encoder="BERT", text__pieces=2))
    given = mm_orient_corpus.write_meme_corpus(folder)
    reader, _, items = train_classifier(given)
    texts = [row["text"] for row in items.rows]
    assert items.batch([0, 2, 3])["tokens"].shape == (3, 2, tiny_bert.MODEL_SIZES["hidden_size"])
    cut = [max(0, len(text.split()) - 2) for text in texts]
    assert [items.num_truncated_words(index) for index in range(len(items))] == cut
    assert items.num_truncated == sum(map(bool, cut)) > 0
    assert (
        items.subwords(0) == texts[0].split()[:2]
        and items.subwords(mm_orient_corpus.WITHOUT_TEXT) == []
    )
    assert all(
        not weight.requires_grad for one in reader.frozen_modules() for weight in one.parameters()
    )


def test_tokens_are_those_of_the_text_encoder_without_its_special_ones(place):
    folder = place(prefix_run_changes(text__encoder="BERT"))
    reader, _, items = train_classifier(mm_orient_corpus.write_meme_corpus(folder))
    batch = items.batch([0])
    ids = reader.text_encoder.tokenize(items.rows[0]["text"].split()).ids
    (states,) = reader.text_encoder.encode_frozen([ids])
    assert batch["tokens"].shape[1] == len(ids) == len(items.subwords(0))
    assert torch.equal(batch["tokens"][0], torch.from_numpy(states[1:-1]).float())


def test_regions_are_the_cells_of_a_resnet_that_nothing_trains(place, filled):
    folder = place(RESNET)
    reader, _, items = train_classifier(mm_orient_corpus.write_meme_corpus(folder))
    assert items.batch([0, 1])["regions"].shape == (2, 4, 512)
    before = mm_orient_checkpoint.build_region_extractor(
        load_run_config().image, "default"
    ).net.state_dict()
    assert all(
        torch.equal(value, before[name])
        for name, value in reader.region_extractor.net.state_dict().items()
    )
    name = items.rows[0]["image"]
    content = image_store.load_image_bytes(folder / "augment/memes/images", [name])[name]
    pixels = resnet.normalize_pixels(resnet.load_pixels(content, 64))[None]
    torch.testing.assert_close(
        items.batch([0])["regions"], reader.region_extractor.net(pixels), atol=1e-2, rtol=1e-2
    )  # cached in half precision


def test_regions_are_named_by_the_pictures_that_were_asked_for(place, filled):
    folder = place(RESNET)
    pictures, records, _ = mm_orient_corpus.write_meme_corpus(folder)
    names = [row["image"] for row in meme_dataset.load_splits(records)["test"] if row["image"]]
    reader = mm_orient_checkpoint.build_region_extractor(load_run_config().image, "default")
    found = reader.extract(pictures / "images", names[:2])
    assert list(found) == names[:2] and len(found) == 2 and found[names[1]].shape == (4, 512)
    with pytest.raises(KeyError):
        found[names[2]]
    with pytest.raises(InputError, match=r"images lacks the picture 00.*: run `dvc repro`"):
        reader.extract(pictures / "images", ["00" * 32])


def test_no_items_are_read_as_none(place, filled):
    folder = place(RESNET | prefix_run_changes(text__encoder="BERT"))
    given = mm_orient_corpus.write_meme_corpus(folder, ["train", "test"])
    reader, _, _ = train_classifier(given)
    assert len(items_of(reader, given, "validation")) == 0


def test_a_reader_with_its_own_text_encoder_needs_no_features_of_texts(place):
    folder = place(prefix_run_changes(text__encoder="BERT"))
    reader, _, items = train_classifier(mm_orient_corpus.write_meme_corpus(folder, texts=False))
    batch = items.batch([0])
    assert reader.config["texts"] == "learned"
    assert batch["has_text"].all() and not batch["text_clip"].any()
    assert batch["tokens"].any()


def test_texts_that_nobody_reads_are_one_sentence(place):
    folder = place({})
    with pytest.raises(InputError, match=r"06_align does not read these texts: name a BERT .*row"):
        train_classifier(mm_orient_corpus.write_meme_corpus(folder, texts=False))


def test_minilm_refuses_texts_of_another_language(place):
    folder = place(MINILM)
    given = mm_orient_corpus.write_meme_corpus(folder, change=lambda row: row | {"language": "zh"})
    with pytest.raises(InputError, match=r"readers of memes is minilm, which reads English"):
        train_classifier(given)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("batch", 0, "classifiers.mm_orient: batch is 0: give 1 or more"),
        ("text.pieces", 0, "mm_orient.text: pieces is 0: give 1 or more"),
        ("picture.size", 32, "mm_orient.picture: size is 32: give 33 or more"),
        ("picture.grid", 0, "mm_orient.picture: grid is 0: give 1 or more"),
        ("picture.encoder", "vgg", "picture.encoder is 'vgg': choose one of patches | resnet18"),
    ],
)
def test_numbers_and_names_that_cannot_be_are_one_sentence(place, key, value, said):
    place({f"classifiers.{RUN_NAME}.{key}": value})
    with pytest.raises(InputError) as wrong:
        load_config(mm_orient_checkpoint.MmOrientRun, "classifiers", RUN_NAME)
    assert said in str(wrong.value) and "\n" not in str(wrong.value)


def test_a_text_encoder_that_cannot_be_had_is_one_sentence(place):
    folder = place(prefix_run_changes(text__encoder="no-such-bert"))
    with pytest.raises(InputError, match=r"text encoder no-such-bert could not be loaded") as wrong:
        train_classifier(mm_orient_corpus.write_meme_corpus(folder))
    assert "\n" not in str(wrong.value)


def test_a_folder_without_a_model_or_with_another_ones_weights_is_one_sentence(place, tmp_path):
    folder = place({})
    with pytest.raises(InputError, match=r"elsewhere holds no trained model: run `dvc repro`"):
        mm_orient_checkpoint.restore(tmp_path / "elsewhere")
    reader, model = save_trained_classifier(folder, mm_orient_corpus.write_meme_corpus(folder))
    mm_orient_checkpoint.save_file({"one": torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(InputError, match="holds weights of another model"):
        mm_orient_checkpoint.restore(model)
    assert write_encoder_dir(folder).exists() and reader.config["parameters"]["frozen"] == 0
