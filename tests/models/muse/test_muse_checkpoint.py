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
from stages.shared.backbones import bert, resnet
from stages.shared.backbones.classifier import load_model_config
from stages.shared.backbones.efficientnet import EfficientNetLite0
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
EFFICIENTNET = {
    "classifiers.muse_sentiment.image.encoder": "efficientnet-lite0",
    "classifiers.muse_sentiment.image.grid_size": 2,
    "classifiers.muse_sentiment.training.max_steps": 2,
}
MINILM = {
    f"classifiers.muse_sentiment.text.{k}": v
    for k, v in [("encoder", "minilm"), ("num_tuned_layers", 0)]
}


@pytest.fixture
def make_project(tmp_path, monkeypatch):
    """make_project(changes): create a project with these params and change into it."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))

    def make(changes=None):
        muse_corpus.create_project(tmp_path, changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


@pytest.fixture
def go_offline(tmp_path, monkeypatch):
    """go_offline(): remove params.yaml, the encoder's folder and network access."""

    def refuse(*args):
        raise AssertionError("no network access expected")

    def leave():
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        shutil.rmtree(tmp_path / "bert")
        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.delenv("HF_HUB_OFFLINE")

    return leave


def predict_test_split(classifier: MuseClassifier, folders, kind):
    """Names and probabilities of the predicted labels of the test split."""
    ingest, clean, embed = folders
    items = classifier.build_dataset(
        muse_dataset.load_splits(clean, kind)["test"], feature_store.read_features(embed), ingest
    )
    indices = list(range(len(items)))
    predictions = classifier.paper.predict(classifier.model, items.batch(indices))
    return classifier.decode_labels(predictions.labels, items, indices), predictions.probability


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("muse_entities", None),
        ("muse_sentiment", None),
        ("muse_sentiment", RESNET),
        ("muse_sentiment", EFFICIENTNET),
    ],
    ids=["entities", "sentiment", "resnet18", "efficientnet-lite0"],
)
def test_a_restored_classifier_predicts_the_same_without_params_or_network(
    make_project, go_offline, name, changes
):
    folder, kind = make_project(changes), CORPUS_KINDS[name]
    corpus = muse_corpus.write_corpus(folder, kind)
    classifier = muse_corpus.train_classifier(name, corpus)
    muse_checkpoint.save(classifier, folder / "model", muse_corpus.write_encoder_dir(folder))
    expected = predict_test_split(classifier, corpus, kind)
    go_offline()
    restored = muse_checkpoint.restore(folder / "model")
    assert predict_test_split(restored, corpus, kind) == expected
    assert restored.config == classifier.config and not restored.model.training
    copied = (folder / "model" / "encoder" / "encoder.json").exists()
    assert copied == (changes is None)  # the others do not read patches of the aligned encoder


def test_the_weights_of_an_installed_package_are_not_saved(make_project, go_offline):
    folder = make_project(MINILM | {"classifiers.muse_sentiment.training.max_steps": 1})
    corpus = muse_corpus.write_corpus(folder, "posts")
    classifier = muse_corpus.train_classifier("muse_sentiment", corpus)
    muse_checkpoint.save(classifier, folder / "model", muse_corpus.write_encoder_dir(folder))
    saved = load_file(folder / "model" / "model.safetensors")
    assert saved and not [name for name in saved if name.startswith("text_encoder.")]
    expected = predict_test_split(classifier, corpus, "posts")
    go_offline()
    assert (
        predict_test_split(muse_checkpoint.restore(folder / "model"), corpus, "posts") == expected
    )


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("classifiers.muse_sentiment.eval_batch_size", 0, "muse_sentiment.eval_batch_size is 0"),
        (
            "classifiers.muse_sentiment.training.batch_size",
            0,
            "muse_sentiment.training.batch_size is 0",
        ),
        ("classifiers.muse_sentiment.training.max_steps", -1, "training.max_steps is -1"),
        ("classifiers.muse_sentiment.text.max_subwords", 0, "text.max_subwords is 0: give 1"),
        (
            "classifiers.muse_sentiment.text.lr_multiplier",
            -1.0,
            "text.lr_multiplier is -1.0: give 0",
        ),
        ("classifiers.muse_sentiment.text.num_tuned_layers", 9, "is 9: give 0 to 3"),
        (
            "classifiers.muse_sentiment.text.encoder",
            "no-such-bert",
            "text encoder no-such-bert could",
        ),
        ("classifiers.muse_sentiment.text.encoder", "", "text encoder  could not be loaded"),
        ("classifiers.muse_sentiment.image.grid_size", 0, "image.grid_size is 0: give 1"),
        (
            "classifiers.muse_sentiment.image.image_size",
            32,
            "image.image_size is 32: give 33 or more",
        ),
        (
            "classifiers.muse_sentiment.image.lr_multiplier",
            -1.0,
            "image.lr_multiplier is -1.0: give 0 or more",
        ),
        (
            "classifiers.muse_sentiment.image.encoder",
            "resnet19",
            "image.encoder is 'resnet19': choose one of patches | efficientnet-lite0 | resnet18 |",
        ),
        ("classifiers.muse_sentiment.image.num_tuned_blocks", 17, "is 17: give 16 or less"),
        ("models.muse.network.theta", 1.0, "models.muse.network.theta is 1.0: give less than 1"),
        ("models.muse.network.captioning.max_length", 2, "captioning.max_length is 2: give 3"),
        ("models.muse.network.captioning.decoder.embedding_dim", 0, "decoder.embedding_dim is 0"),
        (
            "models.muse.network.image_generation.max_images_per_batch",
            0,
            "max_images_per_batch is 0: give 1",
        ),
        (
            "models.muse.network.image_generation.decoder.image_size",
            6,
            "image_size is 6 and is halved twice",
        ),
    ],
)
def test_a_wrong_value_is_rejected_with_one_sentence(make_project, key, value, sentence):
    folder = make_project({key: value})
    with pytest.raises(InputError) as error:
        create_classifier(folder)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def create_classifier(
    folder, name="muse_sentiment", with_images=True, languages=("en",)
) -> MuseClassifier:
    """An untrained classifier; languages: of the train rows, repeated."""
    _, clean, embed = muse_corpus.write_corpus(folder / "corpus", CORPUS_KINDS[name], with_images)
    rows = muse_dataset.load_splits(clean, CORPUS_KINDS[name])["train"]
    rows = [
        row | {"language": language} for row, language in zip(rows, cycle(languages), strict=False)
    ]
    task = muse_dataset.TASK_BY_CORPUS_KIND[CORPUS_KINDS[name]]
    return muse_checkpoint.create(
        muse_corpus.load_run_config(name),
        load_model_config("muse"),
        rows,
        task,
        feature_store.read_features(embed),
    )


def test_a_restored_classifier_keeps_the_counts_of_frozen_weights(make_project, monkeypatch):
    # Instead of a download:
    monkeypatch.setattr(resnet, "_load_pretrained_weights", lambda net, name, weights: None)
    folder = make_project(RESNET | {"classifiers.muse_sentiment.image.weights": "default"})
    classifier = create_classifier(folder)
    frozen = sum(w.numel() for w in classifier.model.parameters() if not w.requires_grad)
    stem = sum(w.numel() for w in classifier.model.image_encoder.stem.parameters())
    assert classifier.config["parameters"]["frozen"] == frozen > stem > 0
    muse_checkpoint.save(classifier, folder / "model", muse_corpus.write_encoder_dir(folder))
    restored = muse_checkpoint.restore(folder / "model")
    assert restored.config["parameters"] == classifier.config["parameters"]
    total = sum(w.numel() for w in restored.model.parameters())
    assert sum(restored.config["parameters"].values()) == total


@pytest.mark.parametrize(
    ("languages", "share"),
    [(["zh"], "0%"), (["en", "zh"], "50%"), (["und", "ja", "zh"], "38%")],  # 3 of 8 are und
)
def test_minilm_is_rejected_for_mostly_non_english_texts(make_project, languages, share):
    folder = make_project(MINILM)
    with pytest.raises(
        InputError, match=rf"supports English only, but {share} of .*: name a BERT"
    ) as error:
        create_classifier(folder, languages=languages)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "languages"),
    [(MINILM, ["en", "en", "zh"]), (MINILM, ["und"]), (None, ["zh"])],
    ids=["mostly English", "undetermined", "a BERT by name"],
)
def test_texts_that_the_encoder_may_support_are_accepted(make_project, changes, languages):
    assert create_classifier(make_project(changes), languages=languages).config["labels"]


def test_the_model_has_the_dimensions_of_its_inputs_and_labels(make_project):
    classifier = create_classifier(make_project(), "muse_entities")
    shapes = classifier.config["shapes"]
    assert (shapes["cells"], shapes["cell_width"]) == (muse_corpus.NUM_CELLS, muse_corpus.CELL_DIM)
    assert shapes["labels"] == len(classifier.codec.labels) == 5
    assert shapes["text_width"] == 16 and shapes["words"] == len(classifier.codec.vocabulary)


def test_patches_are_standardized_by_those_of_the_train_split(make_project):
    folder = make_project()
    standardizer = create_classifier(folder).model.image_encoder.standardise
    _, clean, embed = (folder / "corpus" / name / "posts" for name in ("ingest", "clean", "embed"))
    names = {row["image"] for row in muse_dataset.load_splits(clean, "posts")["train"]} - {None}
    features = feature_store.read_features(embed)
    patches = torch.tensor(features.patches[[features.image_index[name] for name in names]]).float()
    torch.testing.assert_close(standardizer.mean, patches.flatten(0, 1).mean(0))
    std = patches.flatten(0, 1).std(0, correction=0)
    torch.testing.assert_close(standardizer.deviation, std + 1e-4)


def test_a_corpus_without_images_has_placeholder_dimensions(make_project):
    classifier = create_classifier(make_project(), with_images=False)
    shapes = classifier.config["shapes"]
    assert (shapes["cells"], shapes["cell_width"]) == (4, 1)


def test_a_resnet_has_the_cells_of_its_grid(make_project):
    shapes = create_classifier(make_project(RESNET)).config["shapes"]
    assert (shapes["cells"], shapes["cell_width"]) == (4, 512)


def test_an_efficientnet_is_trained_with_the_model(make_project):
    folder = make_project(EFFICIENTNET)
    corpus = muse_corpus.write_corpus(folder, "posts")
    trained = muse_corpus.train_classifier("muse_sentiment", corpus).model.image_encoder
    initial = EfficientNetLite0(1, grid=2).last.state_dict()
    changed = {
        name for name, value in trained.last.state_dict().items() if (value != initial[name]).any()
    }
    assert changed == {name for name, _ in trained.last.named_parameters()}
    assert (trained.standardise.deviation != 1).all()  # fitted to the train images


def test_pretrained_weights_have_their_own_learning_rates(make_project):
    text = "classifiers.muse_sentiment.text"
    folder = make_project({f"{text}.lr_multiplier": 0.25, f"{text}.use_case_embeddings": True})
    run = muse_corpus.load_run_config("muse_sentiment")
    multipliers = muse_checkpoint.lr_multipliers(run, load_model_config("muse"))
    assert multipliers == {
        "text_encoder.": 0.25,
        "text_encoder.case_embeddings.": 1.0,
        "image_encoder.": 1.0,
        "drawer.": 1.0,
    }
    names = [name for name, _ in create_classifier(folder).model.named_parameters()]
    for prefix in multipliers.keys() - {"image_encoder."}:  # the patch encoder has no weights
        assert any(name.startswith(prefix) for name in names)


def test_a_classifier_with_case_embeddings_and_short_urls_is_restored(make_project):
    text = "classifiers.muse_entities.text"
    folder = make_project({f"{text}.use_case_embeddings": True, f"{text}.shorten_urls": True})
    corpus = muse_corpus.write_corpus(folder, "tweets", splits=("train", "test"))
    classifier = muse_corpus.train_classifier("muse_entities", corpus)  # the last weights
    cases = classifier.codec.text_encoder.case_embeddings
    assert cases is not None and cases.weight[bert.CASES.index("lower")].any()  # learned
    assert not cases.weight[bert.CASES.index("upper")].any()  # no such word
    muse_checkpoint.save(classifier, folder / "model", muse_corpus.write_encoder_dir(folder))
    restored = muse_checkpoint.restore(folder / "model")
    assert restored.codec.shorten_urls
    expected = predict_test_split(classifier, corpus, "tweets")
    assert predict_test_split(restored, corpus, "tweets") == expected


def test_words_beyond_the_limit_are_tagged_outside(make_project):
    folder = make_project()
    classifier = create_classifier(folder, "muse_entities")
    ingest, clean, embed = (
        folder / "corpus" / name / "tweets" for name in ("ingest", "clean", "embed")
    )
    items = classifier.build_dataset(
        muse_dataset.load_splits(clean, "tweets")["test"],
        feature_store.read_features(embed),
        ingest,
    )
    label_ids = [1, 2] * (muse_corpus.MAX_SUBWORDS // 2)
    (names,) = classifier.decode_labels([label_ids], items, [muse_corpus.TOO_LONG])
    assert names == ["B-LOC", "I-LOC"] * (muse_corpus.MAX_SUBWORDS // 2) + [
        "O"
    ] * items.num_truncated_words(0)
    assert len(names) == len(items.rows[muse_corpus.TOO_LONG]["words"])


def test_a_folder_without_a_model_is_rejected(tmp_path):
    with pytest.raises(InputError, match="holds no trained model: run `dvc repro`"):
        muse_checkpoint.restore(tmp_path)


def test_weights_of_another_model_are_rejected(make_project):
    folder = make_project()
    muse_checkpoint.save(
        create_classifier(folder), folder / "model", muse_corpus.write_encoder_dir(folder)
    )
    config = json.loads((folder / "model" / "config.json").read_text())
    config["network"]["use_image_generation"] = False
    (folder / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="holds weights of another model"):
        muse_checkpoint.restore(folder / "model")


def test_a_missing_config_key_is_reported_with_its_file(make_project):
    folder = make_project()
    muse_checkpoint.save(
        create_classifier(folder), folder / "model", muse_corpus.write_encoder_dir(folder)
    )
    config = json.loads((folder / "model" / "config.json").read_text())
    del config["network"]["theta"]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config\.json: missing theta"):
        muse_checkpoint.restore(folder / "model")


def test_an_image_that_is_missing_in_ingest_is_rejected(make_project):
    folder = make_project()
    classifier = create_classifier(folder)
    _, clean, embed = (folder / "corpus" / name / "posts" for name in ("ingest", "clean", "embed"))
    rows = muse_dataset.load_splits(clean, "posts")["test"]
    with pytest.raises(InputError, match="lacks the image"):
        classifier.build_dataset(rows, feature_store.read_features(embed), folder / "elsewhere")


def test_the_same_seed_creates_the_same_classifier(make_project):
    folder = make_project()
    models = []
    for number in range(2):
        torch.manual_seed(0)
        models.append(create_classifier(folder / str(number)).model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
