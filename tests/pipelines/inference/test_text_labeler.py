"""Raw texts and pictures as a trained folder labels them."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.inference.generator import ArticleGenerator
from pipelines.inference.text_labeler import (
    Entity,
    EntityPrediction,
    LabelInput,
    SentimentPrediction,
    TextLabeler,
    build_input_from_text,
    build_input_from_words,
    extract_entities,
)
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import inference_context
from tests.support import muse_corpus
from tests.support.trained_muse_project import RED_IMAGE, get_model_dir, load_labeler


@pytest.fixture
def place(trained_readers, monkeypatch):
    monkeypatch.chdir(trained_readers)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained_readers / "home"))
    return trained_readers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ann is in Oslo!", ["Ann", "is", "in", "Oslo", "!"]),
        ("RT @ann_b: #Oslo2024 :-) ...", ["RT", "@ann_b", ":", "#Oslo2024", ":-)", "..."]),
        ("don't re-use U.S.A. 1,000.50", ["don't", "re-use", "U.S.A", ".", "1,000.50"]),
        ("see https://a.org/b?c=1,2 now", ["see", "https://a.org/b?c=1,2", "now"]),
        ("Ann\u200b \x1b[31m\tOslo\n\u00a0b", ["Ann", "[", "31m", "Oslo", "b"]),
        ("在东京 Tokyo。", ["在", "东", "京", "Tokyo", "。"]),
        (" \u202e\0 ", []),
    ],
)
def test_a_text_is_parted_as_published_tweets_are(text, words):
    assert build_input_from_text(text, None).words == words


def test_a_text_of_joined_words_is_parted_into_them():
    text = "RT @ann : Mia Chen is back in Oslo , # happy ! ! 1,000 https://t.co/a"
    assert build_input_from_text(text, None).words == text.split()


def test_words_are_taken_as_they_are_and_keep_their_places():
    item = build_input_from_words(["a b", "", "\u200d", "Oslo!"], None)
    assert item.text == "a b  \u200d Oslo!"
    assert item.words == ["a b", "", "\u200d", "Oslo!"]
    assert item.spans == [(0, 3), (4, 4), (5, 6), (7, 12)]


def test_what_is_not_seen_changes_no_place():
    assert build_input_from_text("\u200bAnn\u202e in Oslo", None) == LabelInput(
        "Ann in Oslo", [(0, 3), (4, 6), (7, 11)], None
    )


def test_entities_have_their_words_and_characters():
    item = build_input_from_text("Ann  Bo, in Oslo", None)
    # B-PER I-PER, then an I- that continues nothing: it is one of its own, as it is scored.
    found = extract_entities(item, ["B-PER", "I-PER", "O", "O", "I-LOC"])
    assert found == [
        Entity("PER", "Ann  Bo", first=0, last=1, start=0, end=7),
        Entity("LOC", "Oslo", first=4, last=4, start=12, end=16),
    ]


@pytest.mark.parametrize("name", muse_corpus.CORPUS_KINDS)
def test_raw_input_is_read_as_the_stages_read_it(place, name):
    """What stages/classify.py decides of the test split from the files that embed wrote."""
    kind, reader = (
        muse_corpus.CORPUS_KINDS[name],
        muse_checkpoint.restore(get_model_dir(place, name)),
    )
    rows = muse_dataset.load_splits(place / "given/clean" / kind, kind)["test"]
    cached = feature_store.read_features(place / "data/07_embed" / kind)
    items = reader.build_dataset(rows, cached, place / "given/ingest" / kind)
    places = list(range(len(rows)))
    with inference_context():
        expected = reader.paper.predict(reader.model, items.batch(places))
    files = {row["sha256"]: row["bytes"] for _, row in muse_corpus.make_items(kind) if row}
    made = [
        build_input_from_words(
            row["words"] if kind == "tweets" else row["text"].split(), files.get(row["image"])
        )
        for row in rows
    ]
    found = load_labeler(get_model_dir(place, name)).label(made)
    names = reader.decode_labels(expected.labels, items, places)
    cut = [items.num_truncated_words(index) for index in places]
    assert [one.words_not_read for one in found] == cut and max(cut) > 0
    if kind == "tweets":
        assert [one.tags for one in found] == names
        assert [one.words for one in found] == [row["words"] for row in rows]
    else:
        assert [[one.label] for one in found] == names
        probabilities = [value for (value,) in expected.probability]
        assert [one.probability for one in found] == pytest.approx(probabilities, abs=2e-3)


@pytest.mark.parametrize("name", muse_corpus.CORPUS_KINDS)
def test_neighbours_change_nothing(place, name):
    labeller = load_labeler(get_model_dir(place, name))
    items = [
        build_input_from_text("the fox sat", RED_IMAGE),
        build_input_from_text("a", None),
        build_input_from_text("the lamp " * 9, RED_IMAGE),
    ]
    for item, beside in zip(items, labeller.label(items), strict=True):
        (alone,) = labeller.label([item])
        if isinstance(alone, EntityPrediction):
            assert alone == beside
        else:
            assert (alone.label, alone.words_not_read) == (beside.label, beside.words_not_read)
            assert alone.probability == pytest.approx(beside.probability, abs=1e-5)
    assert labeller.label([]) == []


def test_a_picture_without_text_is_labelled_as_one_whose_text_is_hidden(place):
    """However long that is: so stages/classify.py reads pictures alone."""
    labeller = load_labeler(get_model_dir(place, "muse_sentiment"))
    (alone,) = labeller.label([build_input_from_text("", RED_IMAGE)])
    decide = labeller.classifier.paper.predict

    def shown_alone(model, batch):
        return decide(model, batch | {"has_text": torch.zeros_like(batch["has_text"])})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labeller.classifier.paper, "predict", shown_alone)
        for text in ("the", "the fox sat under the lamp"):
            (found,) = labeller.label([build_input_from_text(text, RED_IMAGE)])
            assert found.label == alone.label
            assert found.probability == pytest.approx(alone.probability, abs=1e-5)


def test_writers_and_readers_are_told_apart(place, tmp_path):
    with pytest.raises(InputError, match="one of the classifiers: use it with `polymuse label`"):
        ArticleGenerator(get_model_dir(place, "muse_entities"), "models:/mine/1")
    (tmp_path / "config.json").write_text('{"model": "flexmuse"}')
    with pytest.raises(InputError, match="one of the generators: use it with `polymuse write`"):
        load_labeler(tmp_path)


def test_a_folder_without_the_encoder_of_its_patches_is_told_at_once(place, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(get_model_dir(place, "muse_sentiment"), folder)
    shutil.rmtree(folder / "encoder")
    with pytest.raises(InputError, match="holds no encoder"):
        load_labeler(folder)


def made(folder: Path, name: str, kind: str, without_pictures: bool = False) -> TextLabeler:
    """A reader of the project that is current, as it is before training."""
    place = Path.cwd()
    rows = muse_dataset.load_splits(place / "given/clean" / kind, kind)["train"]
    rows = [row | {"image": None} for row in rows] if without_pictures else rows
    cached = feature_store.read_features(place / "data/07_embed" / kind)
    reader = muse_checkpoint.create(
        muse_corpus.load_run_config(name), rows, muse_dataset.TASK_BY_CORPUS_KIND[kind], cached
    )
    muse_checkpoint.save(reader, folder, place / "data/06_align")
    return load_labeler(folder)


def test_a_reader_of_pixels_needs_no_encoder(place, tmp_path, monkeypatch):
    text = (place / "params.yaml").read_text()
    changed = yaml.safe_load(text)
    pixels = {"encoder": "resnet18", "weights": "none", "image_size": 64, "grid_size": 1}
    changed["classifiers"]["muse_sentiment"]["image"] |= pixels
    (place / "params.yaml").write_text(yaml.safe_dump(changed))
    try:
        labeller = made(tmp_path / "model", "muse_sentiment", "posts")
    finally:
        (place / "params.yaml").write_text(text)
    assert not (tmp_path / "model/encoder").exists()
    seen = [
        labeller.label([build_input_from_text("the fox", content)])[0]
        for content in (RED_IMAGE, None)
    ]
    assert all(isinstance(one, SentimentPrediction) for one in seen) and seen[0] != seen[1]


def test_a_reader_that_never_saw_a_picture_does_not_look(place, tmp_path):
    labeller = made(tmp_path / "model", "muse_sentiment", "posts", without_pictures=True)
    alike = labeller.label(
        [build_input_from_text("the fox", RED_IMAGE), build_input_from_text("the fox", None)]
    )
    assert alike[0] == alike[1] and not labeller.uses_images
    labeller.check_input(True, True, "it")
    with pytest.raises(InputError, match="it has no text, and this model does not use images"):
        labeller.check_input(False, True, "it")
