"""Training of MM-ORIENT on a tiny corpus."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.shared.backbones.classifier import CorpusFolders, load_model_config
from stages.shared.data import history
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from stages.shared.training import loop as training_loop
from stages.train_classifier import __main__ as stage
from stages.train_classifier import common
from stages.train_classifier import mm_orient as train
from tests.support import mm_orient_corpus
from tests.support.article_corpus import read_files, write_encoder_dir
from tests.support.kill_and_resume import run_killed_and_uninterrupted
from tests.support.mm_orient_corpus import (
    LEARNED_TASKS,
    RUN_NAME,
    TASKS,
    prefix_run_changes,
    train_classifier,
)
from tests.support.project_files import ROOT


@pytest.fixture
def make_project(tmp_path, monkeypatch):
    """make_project(changes): create a project with these params and change into it."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))

    def make(changes=None):
        monkeypatch.chdir(ROOT)
        mm_orient_corpus.create_project(tmp_path, changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


def training_changes(**changes) -> dict:
    return prefix_run_changes(**{f"training__{key}": value for key, value in changes.items()})


def predict_labels(classifier, items) -> torch.Tensor:
    """Label ids (N, T)"""
    batch = items.batch(list(range(len(items))))
    labels = classifier.paper.predict(classifier.model, batch).labels
    return torch.stack([labels[task] for task in classifier.tasks], 1)


def build_split(classifier, folders: list[Path], split: str = "validation"):
    images, records, embed = folders
    return classifier.build_dataset(
        meme_dataset.load_splits(records)[split], feature_store.read_features(embed), images
    )


def remove_labels(row: dict, *splits: str) -> dict:
    return row | {"labels": []} if row["split"] in splits else row


def test_the_tiny_corpus_is_memorized(make_project):
    folder = make_project(training_changes(max_steps=120, batch_size=14, learning_rate=0.02))
    classifier, steps, items = train_classifier(
        mm_orient_corpus.write_meme_corpus(folder, ["train"])
    )
    assert len(items) == mm_orient_corpus.SPLITS["train"] + len(mm_orient_corpus.PARAPHRASED)
    is_labeled = items.labels != meme_dataset.UNLABELED
    assert 0 < (~is_labeled).sum() < is_labeled.sum()
    # Also the memes without text or without image, which lack the evidence for some labels.
    assert torch.equal(predict_labels(classifier, items)[is_labeled], items.labels[is_labeled])
    assert steps[-1]["loss"] < steps[0]["loss"] / 4


def test_training_is_reproducible_and_depends_on_the_seed(make_project, monkeypatch):
    folder = make_project()
    corpus = CorpusFolders(*mm_orient_corpus.write_meme_corpus(folder))
    encoder = write_encoder_dir(folder)

    def main(output: str) -> Path:
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / f"home of {output}"))
        stage.main(RUN_NAME, train, corpus, encoder, "memes", folder / output)
        return folder / output

    first = main("first")
    assert read_files(main("second")) == read_files(first)
    make_project(training_changes(seed=1))
    weights = load_file(main("third") / "model" / "model.safetensors")
    weights_before = load_file(first / "model" / "model.safetensors")
    assert not torch.equal(weights["heads.0.weight"], weights_before["heads.0.weight"])


@pytest.mark.slow
def test_a_killed_and_resumed_run_writes_the_same_bytes(make_project):
    folder = make_project(training_changes(max_steps=40))
    corpus = [*mm_orient_corpus.write_meme_corpus(folder), write_encoder_dir(folder)]
    names = ("images", "records", "features", "encoder")
    options = {"run": RUN_NAME} | dict(zip(names, corpus, strict=True))
    killed, uninterrupted = run_killed_and_uninterrupted("train_classifier", options, folder)
    assert read_files(killed) == read_files(uninterrupted)


def test_the_weights_with_the_best_score_of_validation_are_kept(make_project):
    folder = make_project(training_changes(max_steps=24))
    corpus = mm_orient_corpus.write_meme_corpus(folder)
    classifier, steps, _ = train_classifier(corpus)
    scores = [row["validation_score"] for row in steps if "validation_score" in row]
    assert len(scores) > 2 and max(scores) > scores[0]
    items = build_split(classifier, corpus)
    by_task = train.compute_accuracies(predict_labels(classifier, items), items.labels)
    assert sum(by_task.values()) / len(LEARNED_TASKS) == pytest.approx(max(scores))
    for row in steps:
        if "validation_score" in row:
            assert row["validation_loss"] == pytest.approx(1 - row["validation_score"])


def test_the_history_has_each_task_and_diagnostics(make_project):
    folder = make_project()
    stage.main(
        RUN_NAME,
        train,
        CorpusFolders(*mm_orient_corpus.write_meme_corpus(folder)),
        write_encoder_dir(folder),
        "memes",
        folder / "out",
    )
    steps = history.read_history(folder / "out" / "history.csv")
    assert [row["step"] for row in steps] == list(range(13))
    assert {*LEARNED_TASKS, "loss", "learning_rate"} <= steps[1].keys()
    metrics = {"loss", "score", *(f"score_{task}" for task in LEARNED_TASKS)}
    metrics |= {"density_tt", "isolated_it", "evenness_words", "evenness_regions"}
    assert {f"validation_{name}" for name in metrics} <= steps[4].keys()
    assert not [name for row in steps for name in row if "sarcasm" in name]
    config = mm_orient_checkpoint.restore(folder / "out" / "model").config
    assert config["labels"] == LEARNED_TASKS and config["not_learned"] == ["sarcasm"]


def test_the_score_is_the_accuracy_of_each_task_on_labeled_items():
    labels = torch.tensor([[0, -1, -1], [1, 2, -1], [1, 0, -1]])
    predicted = torch.tensor([[0, 1, 0], [0, 2, 0], [1, 1, 0]])
    assert train.compute_accuracies(predicted, labels) == {0: pytest.approx(2 / 3), 1: 0.5}


def test_validation_does_not_depend_on_the_batch_size(make_project):
    folder = make_project()
    corpus = mm_orient_corpus.write_meme_corpus(folder)
    classifier, _, _ = train_classifier(corpus)
    items, results = build_split(classifier, corpus), []
    for batch_size in (1, 2, 5):
        training_loop.seed_everything(0)
        with torch.inference_mode():
            results.append(train.build_validator(classifier, items, batch_size)(classifier.model))
    for other in results[1:]:
        assert other.loss == results[0].loss
        assert other.metrics == pytest.approx(results[0].metrics, rel=1e-4)


@pytest.mark.parametrize("splits", [["train", "test"], ["train", "validation", "test"]])
def test_without_validation_labels_the_last_weights_are_kept(make_project, splits):
    folder = make_project(training_changes(max_steps=3))
    corpus = mm_orient_corpus.write_meme_corpus(
        folder, splits, change=lambda row: remove_labels(row, "validation")
    )
    classifier, steps, _ = train_classifier(corpus)
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert not [name for name in steps[-1] if name.startswith("validation")]
    assert not classifier.model.training


def test_a_corpus_without_train_items_is_rejected(make_project):
    folder = make_project()
    with pytest.raises(InputError, match=r"records\.parquet has no record of the train split"):
        train_classifier(mm_orient_corpus.write_meme_corpus(folder, ["validation", "test"]))


def test_a_corpus_without_labels_is_rejected(make_project):
    folder = make_project()
    corpus = mm_orient_corpus.write_meme_corpus(
        folder, change=lambda row: remove_labels(row, "train")
    )
    with pytest.raises(InputError, match=r"no meme of the train split has a label: add"):
        train_classifier(corpus)


@pytest.mark.parametrize("missing", ["text", "image"])
def test_a_corpus_without_texts_or_without_images_is_trained(make_project, missing):
    folder = make_project(training_changes(max_steps=4))
    without = {"text": ""} if missing == "text" else {"image": None}
    corpus = mm_orient_corpus.write_meme_corpus(folder, change=lambda row: row | without)
    classifier, steps, items = train_classifier(corpus)
    assert all(math.isfinite(value) for row in steps for value in row.values())
    key = "has_text" if missing == "text" else "has_picture"
    assert not items.pooled_batch(list(range(len(items))))[key].any()
    names = {name for name in steps[-1] if name.startswith("validation")}
    assert "validation_density_ti" not in names or missing == "text"
    assert predict_labels(classifier, items).shape == (len(items), len(LEARNED_TASKS))


def test_the_checkpoint_key_depends_on_the_training_params(make_project, monkeypatch):
    keys = []

    def fit(*args, key, **more):
        keys.append(key)
        return []

    monkeypatch.setattr(common, "fit", fit)
    corpus = mm_orient_corpus.write_meme_corpus(make_project())
    bert_changes = prefix_run_changes(text__encoder=str(corpus[0].parents[1] / "bert"))
    for changes in (
        {},
        {},
        training_changes(weight_decay=0.5),
        {f"models.{RUN_NAME}.network.relations.density": 0.2},
        bert_changes,
        prefix_run_changes(task_features__use_lexicon=False),
        {"classify.num_examples": 5},  # not a training param
    ):
        make_project(changes)
        train_classifier(corpus)
    first, repeated, decay, density, text, lexicon, classify = keys
    assert first == repeated == classify
    assert len({first, decay, density, text, lexicon}) == 5
    weights = mm_orient_checkpoint.load_file(corpus[0].parents[1] / "bert/model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1
    make_project(bert_changes)  # the same folder, other weights
    mm_orient_checkpoint.save_file(
        weights, corpus[0].parents[1] / "bert/model.safetensors", {"format": "pt"}
    )
    train_classifier(corpus)
    assert keys[-1] != text


def test_the_tracked_run_has_the_params_of_run_and_model(make_project):
    make_project()
    params = stage.logged_params(mm_orient_corpus.load_run_config(), load_model_config(RUN_NAME))
    assert params["corpus"] == "memes" and params["training"]["max_steps"] == 12
    assert params["network"]["relations"]["memory_bank_size"] == 8
    assert set(TASKS) - set(LEARNED_TASKS) == {"sarcasm"}
