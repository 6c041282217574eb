"""MM-ORIENT learns a tiny corpus, and says what it cannot learn from."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.shared.data import history
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from stages.shared.training import loop as training_loop
from stages.train_classifier import __main__ as stage
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
def place(tmp_path, monkeypatch):
    """place(changes): a project with these values in params.yaml, which is current from then on."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))

    def make(changes=None):
        monkeypatch.chdir(ROOT)
        mm_orient_corpus.create_project(tmp_path, changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


def steps_of(**changes) -> dict:
    return prefix_run_changes(**{f"training__{key}": value for key, value in changes.items()})


def decided(reader, items) -> torch.Tensor:
    """(N, T)"""
    found = reader.paper.predict(reader.model, items.batch(list(range(len(items))))).labels
    return torch.stack([found[task] for task in reader.tasks], 1)


def held_out(reader, folders: list[Path], split: str = "validation"):
    pictures, records, embed = folders
    return reader.build_dataset(
        meme_dataset.load_splits(records)[split], feature_store.read_features(embed), pictures
    )


def unlabelled(row: dict, *splits: str) -> dict:
    return row | {"labels": []} if row["split"] in splits else row


def test_the_tiny_corpus_is_learned_by_heart(place):
    folder = place(steps_of(max_steps=120, batch_size=14, learning_rate=0.02))
    reader, steps, items = train_classifier(mm_orient_corpus.write_meme_corpus(folder, ["train"]))
    assert len(items) == mm_orient_corpus.SPLITS["train"] + len(mm_orient_corpus.PARAPHRASED)
    judged = items.labels != meme_dataset.UNLABELED
    assert 0 < (~judged).sum() < judged.sum()
    # The meme without text and the one without picture lack what tells some of their labels.
    assert torch.equal(decided(reader, items)[judged], items.labels[judged])
    assert steps[-1]["loss"] < steps[0]["loss"] / 4


def test_two_trainings_write_the_same_bytes_and_another_seed_others(place, monkeypatch):
    folder = place()
    given = [*mm_orient_corpus.write_meme_corpus(folder), write_encoder_dir(folder)]

    def main(target: str) -> Path:
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / f"home of {target}"))
        stage.main(RUN_NAME, train, given, "memes", folder / target)
        return folder / target

    first = main("first")
    assert read_files(main("second")) == read_files(first)
    place(steps_of(seed=1))
    weights = load_file(main("third") / "model" / "model.safetensors")
    before = load_file(first / "model" / "model.safetensors")
    assert not torch.equal(weights["heads.0.weight"], before["heads.0.weight"])


def test_sigkill_in_the_middle_of_the_stage_ends_with_the_same_bytes(place):
    folder = place(steps_of(max_steps=40))
    given = [*mm_orient_corpus.write_meme_corpus(folder), write_encoder_dir(folder)]
    names = ("images", "records", "features", "encoder")
    options = {"run": RUN_NAME} | dict(zip(names, given, strict=True))
    killed, whole = run_killed_and_uninterrupted("train_classifier", options, folder)
    assert read_files(killed) == read_files(whole)


def test_the_weights_with_the_best_score_of_validation_are_kept(place):
    folder = place(steps_of(max_steps=24))
    given = mm_orient_corpus.write_meme_corpus(folder)
    reader, steps, _ = train_classifier(given)
    scores = [row["validation_score"] for row in steps if "validation_score" in row]
    assert len(scores) > 2 and max(scores) > scores[0]
    items = held_out(reader, given)
    by_task = train.compute_accuracies(decided(reader, items), items.labels)
    assert sum(by_task.values()) / len(LEARNED_TASKS) == pytest.approx(max(scores))
    for row in steps:
        if "validation_score" in row:
            assert row["validation_loss"] == pytest.approx(1 - row["validation_score"])


def test_the_history_tells_each_task_and_how_the_model_behaves(place):
    folder = place()
    stage.main(
        RUN_NAME,
        train,
        [*mm_orient_corpus.write_meme_corpus(folder), write_encoder_dir(folder)],
        "memes",
        folder / "out",
    )
    steps = history.read_history(folder / "out" / "history.csv")
    assert [row["step"] for row in steps] == list(range(13))
    assert {*LEARNED_TASKS, "loss", "learning_rate"} <= steps[1].keys()
    measured = {"loss", "score", *(f"score_{task}" for task in LEARNED_TASKS)}
    measured |= {"density_tt", "isolated_it", "evenness_words", "evenness_regions"}
    assert {f"validation_{name}" for name in measured} <= steps[4].keys()
    assert not [name for row in steps for name in row if "sarcasm" in name]
    config = mm_orient_checkpoint.restore(folder / "out" / "model").config
    assert config["labels"] == LEARNED_TASKS and config["not_learned"] == ["sarcasm"]


def test_the_score_is_each_tasks_accuracy_of_what_somebody_judged():
    labels = torch.tensor([[0, -1, -1], [1, 2, -1], [1, 0, -1]])
    predicted = torch.tensor([[0, 1, 0], [0, 2, 0], [1, 1, 0]])
    assert train.compute_accuracies(predicted, labels) == {0: pytest.approx(2 / 3), 1: 0.5}


def test_every_validation_item_is_scored_whatever_the_batch(place):
    folder = place()
    given = mm_orient_corpus.write_meme_corpus(folder)
    reader, _, _ = train_classifier(given)
    items, found = held_out(reader, given), []
    for batch in (1, 2, 5):
        training_loop.seed_everything(0)
        with torch.inference_mode():
            found.append(train.build_validator(reader, items, batch)(reader.model))
    for other in found[1:]:
        assert other.loss == found[0].loss
        assert other.metrics == pytest.approx(found[0].metrics, rel=1e-4)


@pytest.mark.parametrize("splits", [["train", "test"], ["train", "validation", "test"]])
def test_without_validation_labels_the_last_weights_are_kept(place, splits):
    folder = place(steps_of(max_steps=3))
    given = mm_orient_corpus.write_meme_corpus(
        folder, splits, change=lambda row: unlabelled(row, "validation")
    )
    reader, steps, _ = train_classifier(given)
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert not [name for name in steps[-1] if name.startswith("validation")]
    assert not reader.model.training


def test_a_corpus_without_train_items_is_one_sentence(place):
    folder = place()
    with pytest.raises(InputError, match=r"records\.parquet holds no record of the train split"):
        train_classifier(mm_orient_corpus.write_meme_corpus(folder, ["validation", "test"]))


def test_a_corpus_that_nobody_judged_is_one_sentence(place):
    folder = place()
    given = mm_orient_corpus.write_meme_corpus(folder, change=lambda row: unlabelled(row, "train"))
    with pytest.raises(InputError, match=r"no meme of the train split has a label: give"):
        train_classifier(given)


@pytest.mark.parametrize("lacking", ["text", "image"])
def test_a_corpus_without_any_text_or_any_picture_is_trained(place, lacking):
    folder = place(steps_of(max_steps=4))
    without = {"text": ""} if lacking == "text" else {"image": None}
    given = mm_orient_corpus.write_meme_corpus(folder, change=lambda row: row | without)
    reader, steps, items = train_classifier(given)
    assert all(math.isfinite(value) for row in steps for value in row.values())
    has = "has_text" if lacking == "text" else "has_picture"
    assert not items.pooled_batch(list(range(len(items))))[has].any()
    told = {name for name in steps[-1] if name.startswith("validation")}
    assert "validation_density_ti" not in told or lacking == "text"
    assert decided(reader, items).shape == (len(items), len(LEARNED_TASKS))


def test_a_checkpoint_belongs_to_one_set_of_numbers(place, monkeypatch):
    keys = []

    def fit(*given, key, **more):
        keys.append(key)
        return []

    monkeypatch.setattr(train, "fit", fit)
    given = mm_orient_corpus.write_meme_corpus(place())
    own = prefix_run_changes(text__encoder=str(given[0].parents[1] / "bert"))
    for changes in (
        {},
        {},
        steps_of(weight_decay=0.5),
        {f"models.{RUN_NAME}.network.relations.density": 0.2},
        own,
        prefix_run_changes(task_features__use_lexicon=False),
        {"classify.num_examples": 5},  # no number of training
    ):
        place(changes)
        train_classifier(given)
    first, again, decay, density, text, lexicon, label = keys
    assert first == again == label
    assert len({first, decay, density, text, lexicon}) == 5
    weights = mm_orient_checkpoint.load_file(given[0].parents[1] / "bert/model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1
    place(own)  # the same folder
    mm_orient_checkpoint.save_file(
        weights, given[0].parents[1] / "bert/model.safetensors", {"format": "pt"}
    )
    train_classifier(given)
    assert keys[-1] != text


def test_the_tracked_run_has_the_numbers_of_run_and_model(place):
    place()
    found = stage.logged_params(mm_orient_corpus.load_run_config())
    assert found["corpus"] == "memes" and found["training"]["max_steps"] == 12
    assert found["network"]["relations"]["memory_bank_size"] == 8
    assert set(TASKS) - set(LEARNED_TASKS) == {"sarcasm"}
