import json
import shutil
import socket
from itertools import cycle

import pytest
import torch
from safetensors.torch import load_file

from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse.checkpoint import MuseClassifier
from stages.shared.backbones import resnet
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from tests.support import muse_corpus
from tests.support.muse_corpus import CORPUS_KINDS

RESNET = {
    "classifiers.muse_sentiment.image.encoder": "resnet18",
    "classifiers.muse_sentiment.image.image_size": 64,
    "classifiers.muse_sentiment.image.grid_size": 2,
    "classifiers.muse_sentiment.training.max_steps": 2,
}
MINILM = {
    f"classifiers.muse_sentiment.text.{k}": v for k, v in [("encoder", "minilm"), ("num_tuned_layers", 0)]
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """place(changes): a project with these values in params.yaml, which is current from then on."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))

    def make(changes=None):
        muse_corpus.create_project(tmp_path, changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """nowhere(): from then on there is no params.yaml, no encoder's folder and no network."""

    def refuse(*given):
        raise AssertionError("nobody is to be asked")

    def leave():
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        shutil.rmtree(tmp_path / "bert")
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.delenv("HF_HUB_OFFLINE")

    return leave


def decided(reader: MuseClassifier, folders, kind):
    """What is said of the test split: labels by name and their probabilities."""
    ingest, clean, embed = folders
    items = reader.build_dataset(
        muse_dataset.load_splits(clean, kind)["test"], feature_store.read_features(embed), ingest
    )
    everything = list(range(len(items)))
    found = reader.paper.predict(reader.model, items.batch(everything))
    return reader.decode_labels(found.labels, items, everything), found.probability


@pytest.mark.parametrize(
    ("name", "changes"),
    [("muse_entities", None), ("muse_sentiment", None), ("muse_sentiment", RESNET)],
    ids=["entities", "sentiment", "resnet18"],
)
def test_what_was_saved_says_the_same_without_params_or_network(place, nowhere, name, changes):
    folder, kind = place(changes), CORPUS_KINDS[name]
    given = muse_corpus.write_corpus(folder, kind)
    reader = muse_corpus.train_classifier(name, given)
    muse_checkpoint.save(reader, folder / "model", muse_corpus.write_encoder_dir(folder))
    wanted = decided(reader, given, kind)
    nowhere()
    again = muse_checkpoint.restore(folder / "model")
    assert decided(again, given, kind) == wanted
    assert again.config == reader.config and not again.model.training
    copied = (folder / "model" / "encoder" / "encoder.json").exists()
    assert copied == (changes is not RESNET)  # pixels need no encoder of patches


def test_the_weights_of_an_installed_package_are_not_copied(place, nowhere):
    folder = place(MINILM | {"classifiers.muse_sentiment.training.max_steps": 1})
    given = muse_corpus.write_corpus(folder, "posts")
    reader = muse_corpus.train_classifier("muse_sentiment", given)
    muse_checkpoint.save(reader, folder / "model", muse_corpus.write_encoder_dir(folder))
    saved = load_file(folder / "model" / "model.safetensors")
    assert saved and not [name for name in saved if name.startswith("text_encoder.")]
    wanted = decided(reader, given, "posts")
    nowhere()
    assert decided(muse_checkpoint.restore(folder / "model"), given, "posts") == wanted


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("classifiers.muse_sentiment.eval_batch_size", 0, "muse_sentiment.eval_batch_size is 0"),
        ("classifiers.muse_sentiment.training.batch_size", 0, "muse_sentiment.training.batch_size is 0"),
        ("classifiers.muse_sentiment.training.max_steps", -1, "training.max_steps is -1"),
        ("classifiers.muse_sentiment.text.max_subwords", 0, "text.max_subwords is 0: give 1"),
        ("classifiers.muse_sentiment.text.lr_multiplier", -1.0, "text.lr_multiplier is -1.0: give 0"),
        ("classifiers.muse_sentiment.text.num_tuned_layers", 9, "is 9: give 0 to 3"),
        (
            "classifiers.muse_sentiment.text.encoder",
            "no-such-bert",
            "text encoder no-such-bert could",
        ),
        ("classifiers.muse_sentiment.text.encoder", "", "text encoder  could not be loaded"),
        ("classifiers.muse_sentiment.image.grid_size", 0, "image.grid_size is 0: give 1"),
        ("classifiers.muse_sentiment.image.image_size", 32, "image.image_size is 32: give 33 or more"),
        ("classifiers.muse_sentiment.image.lr_multiplier", -1.0, "image.lr_multiplier is -1.0: give 0 or more"),
        (
            "classifiers.muse_sentiment.image.encoder",
            "resnet19",
            "image.encoder is 'resnet19': choose one of patches | resnet18 | resnet34 |",
        ),
        ("models.muse.network.theta", 1.0, "models.muse.network.theta is 1.0: give less than 1"),
        ("models.muse.network.captioning.max_length", 2, "captioning.max_length is 2: give 3"),
        ("models.muse.network.captioning.decoder.embedding_dim", 0, "decoder.embedding_dim is 0"),
        ("models.muse.network.image_generation.max_images_per_batch", 0, "max_images_per_batch is 0: give 1"),
        ("models.muse.network.image_generation.decoder.image_size", 6, "image_size is 6 and is halved twice"),
    ],
)
def test_a_number_or_a_name_that_cannot_be_is_one_sentence(place, key, value, said):
    folder = place({key: value})
    with pytest.raises(InputError) as wrong:
        created(folder)
    assert said in str(wrong.value) and "\n" not in str(wrong.value)


def created(folder, name="muse_sentiment", pictures=True, languages=("en",)) -> MuseClassifier:
    """A reader before its first step; languages: of the train rows, in turn."""
    _, clean, embed = muse_corpus.write_corpus(folder / "corpus", CORPUS_KINDS[name], pictures)
    rows = muse_dataset.load_splits(clean, CORPUS_KINDS[name])["train"]
    rows = [row | {"language": told} for row, told in zip(rows, cycle(languages), strict=False)]
    task = muse_dataset.TASK_BY_CORPUS_KIND[CORPUS_KINDS[name]]
    return muse_checkpoint.create(
        muse_corpus.load_run_config(name), rows, task, feature_store.read_features(embed)
    )


def test_weights_that_were_frozen_in_training_are_counted_so_ever_after(place, monkeypatch):
    monkeypatch.setattr(resnet, "_load_pretrained_weights", lambda net, name: None)  # in the place of the download
    folder = place(RESNET | {"classifiers.muse_sentiment.image.weights": "default"})
    reader = created(folder)
    frozen = sum(w.numel() for w in reader.model.parameters() if not w.requires_grad)
    stem = sum(w.numel() for w in reader.model.image_encoder.stem.parameters())
    assert reader.config["parameters"]["frozen"] == frozen > stem > 0
    muse_checkpoint.save(reader, folder / "model", muse_corpus.write_encoder_dir(folder))
    again = muse_checkpoint.restore(folder / "model")
    assert again.config["parameters"] == reader.config["parameters"]
    every = sum(w.numel() for w in again.model.parameters())
    assert sum(again.config["parameters"].values()) == every


@pytest.mark.parametrize(
    ("languages", "share"),
    [(["zh"], "0%"), (["en", "zh"], "50%"), (["und", "ja", "zh"], "38%")],  # 3 of 8 are und
)
def test_texts_that_minilm_does_not_read_are_one_sentence(place, languages, share):
    folder = place(MINILM)
    with pytest.raises(InputError, match=rf"reads English, as {share} of .*: name a BERT") as wrong:
        created(folder, languages=languages)
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    ("changes", "languages"),
    [(MINILM, ["en", "en", "zh"]), (MINILM, ["und"]), (None, ["zh"])],
    ids=["mostly English", "nobody knows", "a BERT by name"],
)
def test_texts_that_may_be_read_are_learned_from(place, changes, languages):
    assert created(place(changes), languages=languages).config["labels"]


def test_the_model_fits_what_it_reads_and_says(place):
    reader = created(place(), "muse_entities")
    shapes = reader.config["shapes"]
    assert (shapes["cells"], shapes["cell_width"]) == (muse_corpus.NUM_CELLS, muse_corpus.CELL_DIM)
    assert shapes["labels"] == len(reader.codec.labels) == 5
    assert shapes["text_width"] == 16 and shapes["words"] == len(reader.codec.vocabulary)


def test_patches_are_standardised_by_those_of_the_train_split(place):
    folder = place()
    found = created(folder).model.image_encoder.standardise
    _, clean, embed = (folder / "corpus" / name / "posts" for name in ("ingest", "clean", "embed"))
    names = {row["image"] for row in muse_dataset.load_splits(clean, "posts")["train"]} - {None}
    cached = feature_store.read_features(embed)
    patches = torch.tensor(cached.patches[[cached.image_index[name] for name in names]]).float()
    torch.testing.assert_close(found.mean, patches.flatten(0, 1).mean(0))
    deviation = patches.flatten(0, 1).std(0, correction=0)
    torch.testing.assert_close(found.deviation, deviation + 1e-4)


def test_a_placeholder_stands_for_a_corpus_without_any_picture(place):
    reader = created(place(), pictures=False)
    shapes = reader.config["shapes"]
    assert (shapes["cells"], shapes["cell_width"]) == (4, 1)


def test_cells_of_a_resnet_are_those_of_its_grid(place):
    shapes = created(place(RESNET)).config["shapes"]
    assert (shapes["cells"], shapes["cell_width"]) == (4, 512)


def test_pretrained_weights_learn_at_rates_of_their_own(place):
    folder = place({"classifiers.muse_sentiment.text.lr_multiplier": 0.25})
    rates = muse_checkpoint.lr_multipliers(muse_corpus.load_run_config("muse_sentiment"))
    assert rates == {"text_encoder.": 0.25, "image_encoder.": 1.0, "drawer.": 1.0}
    names = [name for name, _ in created(folder).model.named_parameters()]
    for part in rates.keys() - {"image_encoder."}:  # patches are read by nothing that learns
        assert any(name.startswith(part) for name in names)


def test_words_that_were_not_read_are_outside(place):
    folder = place()
    reader = created(folder, "muse_entities")
    ingest, clean, embed = (
        folder / "corpus" / name / "tweets" for name in ("ingest", "clean", "embed")
    )
    items = reader.build_dataset(
        muse_dataset.load_splits(clean, "tweets")["test"],
        feature_store.read_features(embed),
        ingest,
    )
    read = [1, 2] * (muse_corpus.MAX_SUBWORDS // 2)
    (names,) = reader.decode_labels([read], items, [muse_corpus.TOO_LONG])
    assert names == ["B-LOC", "I-LOC"] * (muse_corpus.MAX_SUBWORDS // 2) + [
        "O"
    ] * items.num_truncated_words(0)
    assert len(names) == len(items.rows[muse_corpus.TOO_LONG]["words"])


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="holds no trained model: run `dvc repro`"):
        muse_checkpoint.restore(tmp_path)


def test_weights_of_another_model_are_one_sentence(place):
    folder = place()
    muse_checkpoint.save(created(folder), folder / "model", muse_corpus.write_encoder_dir(folder))
    config = json.loads((folder / "model" / "config.json").read_text())
    config["network"]["use_image_generation"] = False
    (folder / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="holds weights of another model"):
        muse_checkpoint.restore(folder / "model")


def test_a_config_that_lacks_a_number_names_its_file(place):
    folder = place()
    muse_checkpoint.save(created(folder), folder / "model", muse_corpus.write_encoder_dir(folder))
    config = json.loads((folder / "model" / "config.json").read_text())
    del config["network"]["theta"]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: missing theta"):
        muse_checkpoint.restore(folder / "model")


def test_a_picture_that_ingest_did_not_keep_is_one_sentence(place):
    folder = place()
    reader = created(folder)
    _, clean, embed = (folder / "corpus" / name / "posts" for name in ("ingest", "clean", "embed"))
    rows = muse_dataset.load_splits(clean, "posts")["test"]
    with pytest.raises(InputError, match="lacks the image"):
        reader.build_dataset(rows, feature_store.read_features(embed), folder / "elsewhere")


def test_a_reader_is_made_the_same_for_the_same_seed(place):
    folder = place()
    models = []
    for number in range(2):
        torch.manual_seed(0)
        models.append(created(folder / str(number)).model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
