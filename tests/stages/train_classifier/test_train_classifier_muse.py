import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.shared.data import history
from stages.shared.runtime.stage import InputError
from stages.shared.training import loop as training_loop
from stages.train_classifier import __main__ as stage
from stages.train_classifier import muse as train
from tests.support import muse_corpus
from tests.support.article_corpus import read_files, write_encoder_dir
from tests.support.kill_and_resume import run_killed_and_uninterrupted
from tests.support.muse_corpus import CORPUS_KINDS
from tests.support.project_files import ROOT


@pytest.fixture
def place(tmp_path, monkeypatch):
    """place(changes): a project with these values in params.yaml, which is current from then on."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))

    def make(changes=None):
        monkeypatch.chdir(ROOT)
        muse_corpus.create_project(tmp_path, changes)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make


def fitted(name: str, folders: list[Path]):
    """reader, history and items of a run of the project that is current."""
    return train.train(
        name, muse_corpus.load_run_config(name), folders, CORPUS_KINDS[name], lambda row, step: None
    )


def share_right(reader, items) -> float:
    """The score of a reader on the items that it learned from."""
    everything = list(range(len(items)))
    decided = reader.paper.predict(reader.model, items.batch(everything)).labels
    gold = [muse_dataset.get_gold_labels(row) for row in items.rows]
    return train.selection_score(reader.codec.task, gold, reader.decode_labels(decided, items, everything))


def of_run(name: str, **changes) -> dict:
    return {f"classifiers.{name}.training.{key}": value for key, value in changes.items()}


@pytest.mark.parametrize("name", CORPUS_KINDS)
def test_the_tiny_corpus_is_learned_by_heart(place, name):
    changes = {"models.muse.network.use_image_generation": False, f"classifiers.{name}.text.num_tuned_layers": 0}
    folder = place(of_run(name, max_steps=160, batch_size=8, learning_rate=0.02) | changes)
    reader, steps, items = fitted(
        name, muse_corpus.write_corpus(folder, CORPUS_KINDS[name], splits=["train"])
    )
    assert len(items) == muse_corpus.SPLITS["train"]
    assert share_right(reader, items) == 1
    assert steps[-1]["task"] < steps[0]["task"] / 4


def test_two_trainings_write_the_same_bytes_and_another_seed_others(place, monkeypatch):
    folder = place()
    given = [*muse_corpus.write_corpus(folder, "tweets"), write_encoder_dir(folder)]

    def main(target: str) -> Path:
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / f"home of {target}"))
        stage.main("muse_entities", train, given, "tweets", folder / target)
        return folder / target

    first = main("first")
    assert read_files(main("second")) == read_files(first)
    place(of_run("muse_entities", seed=1))
    weights = load_file(main("third") / "model" / "model.safetensors")
    before = load_file(first / "model" / "model.safetensors")
    assert not torch.equal(weights["no_text"], before["no_text"])


def test_sigkill_in_the_middle_of_the_stage_ends_with_the_same_bytes(place):
    folder = place({"models.muse.network.use_image_generation": False})
    given = [*muse_corpus.write_corpus(folder, "posts"), write_encoder_dir(folder)]
    names = ("images", "records", "features", "encoder")
    options = {"run": "muse_sentiment"} | dict(zip(names, given, strict=True))
    killed, whole = run_killed_and_uninterrupted("train_classifier", options, folder)
    assert read_files(killed) == read_files(whole)


def test_the_weights_with_the_best_score_of_validation_are_kept(place):
    folder = place(of_run("muse_entities", max_steps=24))
    given = muse_corpus.write_corpus(folder, "tweets")
    reader, steps, _ = fitted("muse_entities", given)
    scores = [row["validation_score"] for row in steps if "validation_score" in row]
    assert len(scores) > 2 and max(scores) > scores[0]
    ingest, clean, embed = given
    rows = muse_dataset.load_splits(clean, "tweets")["validation"]
    held_out = reader.build_dataset(rows, train.feature_store.read_features(embed), ingest)
    assert share_right(reader, held_out) == pytest.approx(max(scores))
    assert all(
        row["validation_loss"] == pytest.approx(1 - row["validation_score"])
        for row in steps
        if "validation_score" in row
    )


def test_the_history_tells_the_terms_of_the_loss_and_how_the_model_behaves(place):
    folder = place()
    given = muse_corpus.write_corpus(folder, "posts")
    stage.main(
        "muse_sentiment", train, [*given, write_encoder_dir(folder)], "posts", folder / "out"
    )
    steps = history.read_history(folder / "out" / "history.csv")
    assert [row["step"] for row in steps] == list(range(13))
    assert {"task", "captioning", "drawing", "learning_rate"} <= steps[1].keys()
    measured = {"score", "loss", "likeness", "exchanged_text", "caption_nats", "drawing_bits"}
    assert {f"validation_{name}" for name in measured} <= steps[4].keys()
    assert muse_checkpoint.restore(folder / "out" / "model").config["labels"] == [
        "negative",
        "positive",
    ]


def test_without_validation_the_last_weights_are_kept(place):
    folder = place(of_run("muse_sentiment", max_steps=3))
    given = muse_corpus.write_corpus(folder, "posts", splits=["train", "test"])
    reader, steps, _ = fitted("muse_sentiment", given)
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert not [name for name in steps[-1] if name.startswith("validation")]
    assert not reader.model.training


def test_a_corpus_without_pictures_is_trained_and_tells_nothing_of_them(place):
    folder = place(of_run("muse_sentiment", max_steps=4))
    _, steps, _ = fitted(
        "muse_sentiment", muse_corpus.write_corpus(folder, "posts", pictures=False)
    )
    assert all(math.isfinite(value) for row in steps for value in row.values())
    assert [row["drawing"] for row in steps[1:]] == [0.0] * 4
    told = {name for row in steps for name in row if name.startswith("validation")}
    assert told == {"validation_loss", "validation_score"}


def test_a_picture_is_read_from_its_pixels_by_a_resnet(place):
    pixels = {"encoder": "resnet18", "image_size": 64, "grid_size": 2}
    changes = {f"classifiers.muse_sentiment.image.{key}": value for key, value in pixels.items()}
    folder = place(of_run("muse_sentiment", max_steps=2) | changes)
    reader, steps, items = fitted("muse_sentiment", muse_corpus.write_corpus(folder, "posts"))
    assert items.batch([0, 1])["picture"].shape == (2, 3, 64, 64)
    assert reader.model.image_encoder.cells == 4
    assert math.isfinite(steps[-1]["loss"])


def test_the_plain_tagger_trains_without_regularisers(place):
    parts = {"fusion": "text", "use_captioning": False, "use_image_generation": False}
    network = {f"models.muse.network.{name}": value for name, value in parts.items()}
    folder = place(of_run("muse_entities", max_steps=4) | network)
    _, steps, _ = fitted("muse_entities", muse_corpus.write_corpus(folder, "tweets"))
    assert steps[-1]["loss"] == steps[-1]["task"]
    told = {name for row in steps for name in row if name.startswith("validation")}
    assert told == {"validation_loss", "validation_score"}


def test_a_corpus_without_train_items_is_one_sentence(place):
    folder = place()
    given = muse_corpus.write_corpus(folder, "tweets", splits=["validation", "test"])
    with pytest.raises(InputError, match=r"records\.parquet holds no record of the train split"):
        fitted("muse_entities", given)


def test_a_checkpoint_belongs_to_one_set_of_numbers(place, monkeypatch):
    keys = []

    def fit(*given, key, **more):
        keys.append((key, more["rates"]))
        return []

    monkeypatch.setattr(train, "fit", fit)
    given = muse_corpus.write_corpus(place(), "posts")
    for changes in (
        {},
        {},
        {"classifiers.muse_sentiment.text.lr_multiplier": 0.5},
        {"classifiers.muse_sentiment.image.lr_multiplier": 0.5},
        {"models.muse.network.captioning.alpha": 0.5},
        of_run("muse_sentiment", weight_decay=0.5),
        {"classify.num_images_per_prompt": 5},  # no number of training
    ):
        place(changes)
        fitted("muse_sentiment", given)
    first, again, text, picture, alpha, decay, label = (key for key, _ in keys)
    assert first == again == label
    assert len({first, text, picture, alpha, decay}) == 5
    of_fit = [rates for _, rates in keys]
    assert of_fit[0] == {"text_encoder.": 1.0, "image_encoder.": 1.0, "drawer.": 1.0}
    assert of_fit[2] == of_fit[0] | {"text_encoder.": 0.5}


def test_the_score_is_lenient_f1_or_accuracy():
    gold = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    predicted = [["I-PER", "I-PER", "O"], ["B-LOC", "O"]]  # the first is right, the other elsewhere
    assert train.selection_score("entities", gold, predicted) == 0.5
    assert train.selection_score("sentiment", [["a"], ["b"], ["b"]], [["a"], ["b"], ["a"]]) == 2 / 3


def test_means_are_over_the_items_that_have_a_figure():
    nan = math.nan
    seen = [
        {"x": torch.tensor([1.0, nan]), "y": torch.tensor([nan, nan])},
        {"x": torch.tensor([4.0]), "y": torch.tensor([nan])},
    ]
    assert train.average_item_metrics(seen) == {"x": 2.5}
    assert train.average_item_metrics([{}, {}]) == {}


def test_every_validation_item_is_scored_whatever_the_batch(place):
    folder = place()
    given = muse_corpus.write_corpus(folder, "posts")
    reader, _, _ = fitted("muse_sentiment", given)
    ingest, clean, embed = given
    rows = muse_dataset.load_splits(clean, "posts")["validation"]
    items = reader.build_dataset(rows, train.feature_store.read_features(embed), ingest)
    found = []
    for batch in (1, 2, 3):
        training_loop.seed_everything(0)
        found.append(train.build_validator(reader, items, batch)(reader.model))
    for other in found[1:]:
        assert other.loss == found[0].loss
        assert other.metrics["score"] == found[0].metrics["score"]
        assert other.metrics["likeness"] == pytest.approx(found[0].metrics["likeness"], rel=1e-4)
