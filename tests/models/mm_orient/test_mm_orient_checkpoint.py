"""A saved MM-ORIENT restores from its folder alone and predicts the same."""

import shutil
import socket

import pytest
import torch

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient.checkpoint import TEXT_ENCODER_DIR
from stages.shared.backbones import resnet
from stages.shared.backbones.efficientnet import EfficientNetLite0
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

ONE_STEP = prefix_run_changes(training__max_steps=1)
RESNET = prefix_run_changes(image__encoder="resnet18")
EFFICIENTNET = prefix_run_changes(image__encoder="efficientnet-lite0")
MINILM = prefix_run_changes(text__encoder="minilm")


@pytest.fixture
def make_project(tmp_path, monkeypatch):
    """make_project(changes): create a project with changed params.yaml and enter its folder.

    The value BERT is replaced by the folder of a tiny BERT.
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
def isolated(tmp_path, monkeypatch):
    """isolated(): remove everything but the model folder and block the network."""

    def isolate():
        shutil.rmtree(tmp_path / "bert")
        (tmp_path / "params.yaml").unlink()
        monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "other_home"))
        monkeypatch.setattr(resnet, "_load_pretrained_weights", None)
        monkeypatch.setattr(socket.socket, "connect", None)
        monkeypatch.setattr(socket, "getaddrinfo", None)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")

    return isolate


@pytest.fixture
def random_resnet(monkeypatch):
    """Random weights instead of a download from torchvision."""

    def fill(net, name, weights):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for weight in net.parameters():
                torch.nn.init.normal_(weight, std=0.05)

    monkeypatch.setattr(resnet, "_load_pretrained_weights", fill)


def build_dataset(classifier, folders, split="test") -> meme_dataset.MemeDataset:
    images, records, embed = folders
    rows = meme_dataset.load_splits(records)[split]
    return classifier.build_dataset(rows, feature_store.read_features(embed), images)


def predict_test_split(classifier, folders) -> dict[str, torch.Tensor]:
    """Probabilities of all test items by task."""
    dataset = build_dataset(classifier, folders)
    batch = dataset.batch(list(range(len(dataset))))
    return classifier.paper.predict(classifier.model, batch).probabilities


def file_names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("changes", "extra_files"),
    [
        ({}, set()),
        (prefix_run_changes(text__encoder="BERT"), {"text_encoder"}),
        (MINILM, {"text_encoder"}),
        (RESNET, {"regions.safetensors"}),
        (EFFICIENTNET, set()),
        (prefix_run_changes(task_features__toxicity_model="BERT"), {"toxicity"}),
    ],
    ids=["cached", "bert", "minilm", "resnet18", "efficientnet-lite0", "toxicity"],
)
def test_a_saved_classifier_predicts_the_same_without_params_or_network(
    make_project, isolated, random_resnet, changes, extra_files
):
    folder = make_project(changes)
    folders = mm_orient_corpus.write_meme_corpus(folder)
    classifier, model = save_trained_classifier(folder, folders)
    assert file_names(model) == {"config.json", "model.safetensors", "encoder"} | extra_files
    expected = predict_test_split(classifier, folders)
    isolated()
    restored = mm_orient_checkpoint.restore(model)
    predictions = predict_test_split(restored, folders)
    assert predictions.keys() == expected.keys() == mm_orient_corpus.LEARNED_TASKS.keys()
    assert all(torch.equal(predictions[task], expected[task]) for task in expected)
    assert restored.config == classifier.config and not restored.model.training


def test_the_weights_of_an_installed_package_are_not_copied(make_project):
    folder = make_project(MINILM)
    _, model = save_trained_classifier(folder, mm_orient_corpus.write_meme_corpus(folder))
    assert "model.safetensors" not in file_names(model / TEXT_ENCODER_DIR)


def test_a_text_encoder_truncates_texts_and_counts_truncated_words(make_project):
    folder = make_project(prefix_run_changes(text__encoder="BERT", text__max_subwords=2))
    folders = mm_orient_corpus.write_meme_corpus(folder)
    classifier, _, dataset = train_classifier(folders)
    texts = [row["text"] for row in dataset.rows]
    assert dataset.batch([0, 2, 3])["tokens"].shape == (3, 2, tiny_bert.MODEL_SIZES["hidden_size"])
    truncated = [max(0, len(text.split()) - 2) for text in texts]
    assert [dataset.num_truncated_words(index) for index in range(len(dataset))] == truncated
    assert dataset.num_truncated == sum(map(bool, truncated)) > 0
    assert dataset.subwords(0) == texts[0].split()[:2]
    assert dataset.subwords(mm_orient_corpus.WITHOUT_TEXT) == []
    for module in classifier.frozen_modules():
        assert not any(weight.requires_grad for weight in module.parameters())


def test_token_features_exclude_special_tokens(make_project):
    folder = make_project(prefix_run_changes(text__encoder="BERT"))
    classifier, _, dataset = train_classifier(mm_orient_corpus.write_meme_corpus(folder))
    batch = dataset.batch([0])
    ids = classifier.text_encoder.tokenize(dataset.rows[0]["text"].split()).ids
    (states,) = classifier.text_encoder.encode_frozen([ids])
    assert batch["tokens"].shape[1] == len(ids) == len(dataset.subwords(0))
    assert torch.equal(batch["tokens"][0], torch.from_numpy(states[1:-1]).float())


def test_regions_are_the_cells_of_a_frozen_resnet(make_project, random_resnet):
    folder = make_project(RESNET)
    classifier, _, dataset = train_classifier(mm_orient_corpus.write_meme_corpus(folder))
    assert dataset.batch([0, 1])["regions"].shape == (2, 4, 512)
    before = mm_orient_checkpoint.build_region_extractor(
        load_run_config().image, "default"
    ).net.state_dict()
    assert all(
        torch.equal(value, before[name])
        for name, value in classifier.region_extractor.net.state_dict().items()
    )
    name = dataset.rows[0]["image"]
    content = image_store.load_image_bytes(folder / "augment/memes/images", [name])[name]
    pixels = resnet.normalize_pixels(resnet.load_pixels(content, 64))[None]
    torch.testing.assert_close(
        dataset.batch([0])["regions"], classifier.region_extractor.net(pixels), atol=1e-2, rtol=1e-2
    )  # cached in half precision


def test_an_efficientnet_is_trained_with_the_model(make_project):
    folder = make_project(EFFICIENTNET | prefix_run_changes(training__max_steps=2))
    classifier, _, dataset = train_classifier(mm_orient_corpus.write_meme_corpus(folder))
    encoder, initial = classifier.model.image_encoder, EfficientNetLite0(1, grid=2)
    weights = initial.last.state_dict()
    changed = {
        name for name, value in encoder.last.state_dict().items() if (value != weights[name]).any()
    }
    assert changed == {name for name, _ in encoder.last.named_parameters()}
    initial.fit_normalization(dataset.images.regions)  # fitted to the train images
    assert torch.equal(encoder.standardise.mean, initial.standardise.mean)
    assert dataset.batch([0, 1])["regions"].shape == (2, *encoder.frozen.shape)
    assert classifier.config["regions"] == [4, 1280] and classifier.frozen_modules() == []
    assert classifier.config["parameters"]["trained"] > 700_000  # of the last block and convolution


def test_an_efficientnet_has_its_own_learning_rate(make_project):
    make_project(EFFICIENTNET | prefix_run_changes(image__lr_multiplier=0.25))
    multipliers = mm_orient_checkpoint.lr_multipliers(load_run_config())
    assert multipliers == {"image_encoder.": 0.25}


def test_a_model_that_reads_no_regions_has_no_efficientnet(make_project):
    folder = make_project(EFFICIENTNET | {"models.mm_orient.network.inputs": "text_only"})
    classifier, model = save_trained_classifier(folder, mm_orient_corpus.write_meme_corpus(folder))
    assert classifier.model.image_encoder is None and not classifier.reads_pixels
    assert mm_orient_checkpoint.restore(model).model.image_encoder is None


def test_region_features_are_keyed_by_the_requested_images(make_project, random_resnet):
    folder = make_project(RESNET)
    images, records, _ = mm_orient_corpus.write_meme_corpus(folder)
    names = [row["image"] for row in meme_dataset.load_splits(records)["test"] if row["image"]]
    extractor = mm_orient_checkpoint.build_region_extractor(load_run_config().image, "default")
    regions = extractor.extract(images / "images", names[:2])
    assert list(regions) == names[:2] and len(regions) == 2
    assert regions[names[1]].shape == (4, 512)
    with pytest.raises(KeyError):
        regions[names[2]]
    with pytest.raises(InputError, match=r"images lacks the image 00.*: run `dvc repro`"):
        extractor.extract(images / "images", ["00" * 32])


def test_an_empty_split_makes_an_empty_dataset(make_project, random_resnet):
    folder = make_project(RESNET | prefix_run_changes(text__encoder="BERT"))
    folders = mm_orient_corpus.write_meme_corpus(folder, ["train", "test"])
    classifier, _, _ = train_classifier(folders)
    assert len(build_dataset(classifier, folders, "validation")) == 0


def test_a_classifier_with_its_own_text_encoder_needs_no_text_features(make_project):
    folder = make_project(prefix_run_changes(text__encoder="BERT"))
    classifier, _, dataset = train_classifier(
        mm_orient_corpus.write_meme_corpus(folder, texts=False)
    )
    batch = dataset.batch([0])
    assert classifier.config["texts"] == "learned"
    assert batch["has_text"].all() and not batch["text_clip"].any()
    assert batch["tokens"].any()


def test_unsupported_texts_are_an_error_of_one_sentence(make_project):
    folder = make_project({})
    with pytest.raises(InputError, match=r"06_align does not support these texts: set .* BERT"):
        train_classifier(mm_orient_corpus.write_meme_corpus(folder, texts=False))


def test_minilm_rejects_texts_in_other_languages(make_project):
    folder = make_project(MINILM)
    folders = mm_orient_corpus.write_meme_corpus(
        folder, change=lambda row: row | {"language": "zh"}
    )
    with pytest.raises(InputError, match=r"of memes is minilm, which .* English"):
        train_classifier(folders)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("eval_batch_size", 0, "classifiers.mm_orient.eval_batch_size is 0: give 1 or more"),
        ("text.max_subwords", 0, "mm_orient.text.max_subwords is 0: give 1 or more"),
        ("image.image_size", 32, "mm_orient.image.image_size is 32: give 33 or more"),
        ("image.grid_size", 0, "mm_orient.image.grid_size is 0: give 1 or more"),
        (
            "image.encoder",
            "vgg",
            "image.encoder is 'vgg': choose one of patches | efficientnet-lite0 | resnet18",
        ),
        ("image.num_tuned_blocks", 17, "mm_orient.image.num_tuned_blocks is 17: give 16 or less"),
    ],
)
def test_wrong_values_are_an_error_of_one_sentence(make_project, key, value, message):
    make_project({f"classifiers.{RUN_NAME}.{key}": value})
    with pytest.raises(InputError) as error:
        load_config(mm_orient_checkpoint.MmOrientRun, "classifiers", RUN_NAME)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unavailable_text_encoder_is_an_error_of_one_sentence(make_project):
    folder = make_project(prefix_run_changes(text__encoder="no-such-bert"))
    with pytest.raises(InputError, match=r"text encoder no-such-bert could not be loaded") as error:
        train_classifier(mm_orient_corpus.write_meme_corpus(folder))
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_or_with_other_weights_is_an_error_of_one_sentence(
    make_project, tmp_path
):
    folder = make_project({})
    with pytest.raises(InputError, match=r"elsewhere holds no trained model: run `dvc repro`"):
        mm_orient_checkpoint.restore(tmp_path / "elsewhere")
    classifier, model = save_trained_classifier(folder, mm_orient_corpus.write_meme_corpus(folder))
    mm_orient_checkpoint.save_file({"one": torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(InputError, match="holds weights of another model"):
        mm_orient_checkpoint.restore(model)
    assert write_encoder_dir(folder).exists() and classifier.config["parameters"]["frozen"] == 0
