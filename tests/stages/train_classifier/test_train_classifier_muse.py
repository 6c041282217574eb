import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.data import history
from stages.shared.features import store as feature_store
from stages.shared.features.mapped_rows import MappedRows
from stages.shared.runtime.stage import InputError
from stages.shared.training import loop as training_loop
from stages.train_classifier import __main__ as stage
from stages.train_classifier import common
from stages.train_classifier import muse as train
from tests.support import muse_corpus
from tests.support.article_corpus import read_files, write_encoder_dir
from tests.support.kill_and_resume import run_killed_and_uninterrupted
from tests.support.muse_corpus import CORPUS_KINDS, fit_run
from tests.support.project_files import ROOT


@pytest.fixture
def make_project(tmp_path, monkeypatch):
    """make_project(changes): create a project with these params and change into it."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))

    def make(changes=None):
        monkeypatch.chdir(ROOT)
        muse_corpus.create_project(tmp_path, changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


def compute_score(classifier, items) -> float:
    """The selection score of a classifier on these items."""
    indices = list(range(len(items)))
    label_ids = classifier.paper.predict(classifier.model, items.batch(indices)).labels
    gold = [muse_dataset.get_gold_labels(row) for row in items.rows]
    predicted = classifier.decode_labels(label_ids, items, indices)
    return train.selection_score(classifier.codec.task, gold, predicted, "lenient")


def training_changes(name: str, **changes) -> dict:
    return {f"classifiers.{name}.training.{key}": value for key, value in changes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS_KINDS)
def test_the_tiny_corpus_is_memorized(make_project, name):
    torch.manual_seed(0)  # of the random text encoder
    changes = {
        "models.muse.network.use_image_generation": False,
        f"classifiers.{name}.text.num_tuned_layers": 0,
    }
    folder = make_project(
        training_changes(name, max_steps=320, batch_size=8, learning_rate=0.02) | changes
    )
    classifier, steps, items = fit_run(
        name, muse_corpus.write_corpus(folder, CORPUS_KINDS[name], splits=["train"])
    )
    assert len(items) == muse_corpus.SPLITS["train"]
    assert compute_score(classifier, items) == 1
    assert steps[-1]["task"] < steps[0]["task"] / 4


@pytest.mark.slow
def test_training_is_reproducible_and_depends_on_the_seed(make_project, monkeypatch):
    folder = make_project()
    corpus = CorpusFolders(*muse_corpus.write_corpus(folder, "tweets"))
    encoder = write_encoder_dir(folder)

    def main(output: str) -> Path:
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / f"home of {output}"))
        stage.main("muse_entities", train, corpus, encoder, "tweets", folder / output)
        return folder / output

    first = main("first")
    assert read_files(main("second")) == read_files(first)
    make_project(training_changes("muse_entities", seed=1))
    weights = load_file(main("third") / "model" / "model.safetensors")
    weights_before = load_file(first / "model" / "model.safetensors")
    assert not torch.equal(weights["no_text"], weights_before["no_text"])


@pytest.mark.slow
def test_a_killed_and_resumed_run_writes_the_same_bytes(make_project):
    folder = make_project({"models.muse.network.use_image_generation": False})
    corpus = [*muse_corpus.write_corpus(folder, "posts"), write_encoder_dir(folder)]
    names = ("images", "records", "features", "encoder")
    options = {"run": "muse_sentiment"} | dict(zip(names, corpus, strict=True))
    killed, uninterrupted = run_killed_and_uninterrupted("train_classifier", options, folder)
    assert read_files(killed) == read_files(uninterrupted)


def test_the_weights_with_the_best_score_of_validation_are_kept(make_project):
    folder = make_project(training_changes("muse_entities", max_steps=24))
    corpus = muse_corpus.write_corpus(folder, "tweets")
    classifier, steps, _ = fit_run("muse_entities", corpus)
    scores = [row["validation_score"] for row in steps if "validation_score" in row]
    assert len(scores) > 2 and max(scores) > scores[0]
    ingest, clean, embed = corpus
    rows = muse_dataset.load_splits(clean, "tweets")["validation"]
    validation = classifier.build_dataset(rows, feature_store.read_features(embed), ingest)
    assert compute_score(classifier, validation) == pytest.approx(max(scores))
    assert all(
        row["validation_loss"] == pytest.approx(1 - row["validation_score"])
        for row in steps
        if "validation_score" in row
    )


def test_the_history_has_the_loss_terms_and_diagnostics(make_project):
    folder = make_project()
    corpus = CorpusFolders(*muse_corpus.write_corpus(folder, "posts"))
    encoder = write_encoder_dir(folder)
    stage.main("muse_sentiment", train, corpus, encoder, "posts", folder / "out")
    steps = history.read_history(folder / "out" / "history.csv")
    assert [row["step"] for row in steps] == list(range(13))
    assert {"task", "captioning", "drawing", "learning_rate"} <= steps[1].keys()
    metrics = {"score", "loss", "likeness", "exchanged_text", "caption_nats", "drawing_bits"}
    assert {f"validation_{name}" for name in metrics} <= steps[4].keys()
    assert muse_checkpoint.restore(folder / "out" / "model").config["labels"] == [
        "negative",
        "positive",
    ]


def test_without_validation_the_last_weights_are_kept(make_project):
    folder = make_project(training_changes("muse_sentiment", max_steps=3))
    corpus = muse_corpus.write_corpus(folder, "posts", splits=["train", "test"])
    classifier, steps, _ = fit_run("muse_sentiment", corpus)
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert not [name for name in steps[-1] if name.startswith("validation")]
    assert not classifier.model.training


def test_a_corpus_without_images_is_trained_without_image_metrics(make_project):
    folder = make_project(training_changes("muse_sentiment", max_steps=4))
    _, steps, _ = fit_run(
        "muse_sentiment", muse_corpus.write_corpus(folder, "posts", with_images=False)
    )
    assert all(math.isfinite(value) for row in steps for value in row.values())
    assert [row["drawing"] for row in steps[1:]] == [0.0] * 4
    names = {name for row in steps for name in row if name.startswith("validation")}
    assert names == {"validation_loss", "validation_score"}


def test_a_resnet_reads_the_pixels_of_images_and_no_patches(make_project, monkeypatch):
    def fail(self, index):
        raise AssertionError("patches are read")

    monkeypatch.setattr(MappedRows, "__getitem__", fail)
    pixels = {"encoder": "resnet18", "image_size": 64, "grid_size": 2}
    changes = {f"classifiers.muse_sentiment.image.{key}": value for key, value in pixels.items()}
    folder = make_project(training_changes("muse_sentiment", max_steps=2) | changes)
    corpus = muse_corpus.write_corpus(folder, "posts")
    classifier, steps, items = fit_run("muse_sentiment", corpus)
    assert items.batch([0, 1])["picture"].shape == (2, 3, 64, 64)
    assert classifier.model.image_encoder.cells == 4
    assert math.isfinite(steps[-1]["loss"])
    # Batches that the training thread makes itself give the same history.
    monkeypatch.setattr(train, "Prefetcher", lambda batch_at, num_steps: batch_at)
    monkeypatch.setenv("POLYMUSE_HOME", str(folder / "other"))
    assert fit_run("muse_sentiment", corpus)[1] == steps


def test_fusion_text_trains_without_regularizers(make_project):
    parts = {"fusion": "text", "use_captioning": False, "use_image_generation": False}
    network = {f"models.muse.network.{name}": value for name, value in parts.items()}
    folder = make_project(training_changes("muse_entities", max_steps=4) | network)
    _, steps, _ = fit_run("muse_entities", muse_corpus.write_corpus(folder, "tweets"))
    assert steps[-1]["loss"] == steps[-1]["task"]
    names = {name for row in steps for name in row if name.startswith("validation")}
    assert names == {"validation_loss", "validation_score"}


def test_a_corpus_without_train_items_is_rejected(make_project):
    folder = make_project()
    corpus = muse_corpus.write_corpus(folder, "tweets", splits=["validation", "test"])
    with pytest.raises(InputError, match=r"records\.parquet has no record of the train split"):
        fit_run("muse_entities", corpus)


def test_the_checkpoint_key_depends_on_the_training_params(make_project, monkeypatch):
    keys = []

    def fit(*args, key, **more):
        keys.append((key, more["lr_multipliers"]))
        return []

    monkeypatch.setattr(common, "fit", fit)
    corpus = muse_corpus.write_corpus(make_project(), "posts")
    for changes in (
        {},
        {},
        {"classifiers.muse_sentiment.text.lr_multiplier": 0.5},
        {"classifiers.muse_sentiment.image.lr_multiplier": 0.5},
        {"models.muse.network.captioning.alpha": 0.5},
        training_changes("muse_sentiment", weight_decay=0.5),
        {"classify.num_images_per_prompt": 5},  # not a training param
    ):
        make_project(changes)
        fit_run("muse_sentiment", corpus)
    first, repeated, text, image, alpha, decay, classify = (key for key, _ in keys)
    assert first == repeated == classify
    assert len({first, text, image, alpha, decay}) == 5
    rates = [rates for _, rates in keys]
    assert rates[0] == {
        "text_encoder.": 1.0,
        "text_encoder.case_embeddings.": 1.0,
        "image_encoder.": 1.0,
        "drawer.": 1.0,
    }
    assert rates[2] == rates[0] | {"text_encoder.": 0.5}


def test_the_score_is_f1_by_the_rule_or_accuracy():
    gold = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    # The first entity is correct, the second is at another place.
    predicted = [["I-PER", "I-PER", "O"], ["B-LOC", "O"]]
    assert train.selection_score("entities", gold, predicted, "lenient") == 0.5
    # Without a B- tag the first is none: nothing right of 1 predicted and 2 gold entities.
    assert train.selection_score("entities", gold, predicted, "strict") == 0
    labels = [["a"], ["b"], ["b"]], [["a"], ["b"], ["a"]]
    assert train.selection_score("sentiment", *labels, "strict") == 2 / 3


def test_metrics_are_averaged_over_the_items_that_have_a_value():
    nan = math.nan
    batches = [
        {"x": torch.tensor([1.0, nan]), "y": torch.tensor([nan, nan])},
        {"x": torch.tensor([4.0]), "y": torch.tensor([nan])},
    ]
    assert training_loop.average_item_metrics(batches) == {"x": 2.5}
    assert training_loop.average_item_metrics([{}, {}]) == {}
    assert training_loop.average_item_metrics([{}, *batches, {}]) == {"x": 2.5}


def test_validation_does_not_depend_on_the_batch_size(make_project):
    folder = make_project()
    corpus = muse_corpus.write_corpus(folder, "posts")
    classifier, _, _ = fit_run("muse_sentiment", corpus)
    ingest, clean, embed = corpus
    rows = muse_dataset.load_splits(clean, "posts")["validation"]
    items = classifier.build_dataset(rows, feature_store.read_features(embed), ingest)
    results = []
    for batch_size in (1, 2, 3):
        training_loop.seed_everything(0)
        results.append(
            train.build_validator(classifier, items, batch_size, "lenient")(classifier.model)
        )
    for other in results[1:]:
        assert other.loss == results[0].loss
        assert other.metrics["score"] == results[0].metrics["score"]
        assert other.metrics["likeness"] == pytest.approx(results[0].metrics["likeness"], rel=1e-4)
