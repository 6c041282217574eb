"""Labels of raw texts and images by the model in a folder."""

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
from stages.shared.backbones.classifier import load_model_config
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import inference_context
from tests.support import muse_corpus
from tests.support.trained_muse_project import RED_IMAGE, get_model_dir, load_labeler


@pytest.fixture
def place(trained_classifiers, monkeypatch):
    monkeypatch.chdir(trained_classifiers)
    monkeypatch.setenv("POLYMUSE_HOME", str(trained_classifiers / "home"))
    return trained_classifiers


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
def test_a_text_is_tokenized_like_published_tweets(text, words):
    assert build_input_from_text(text, None).words == words


def test_tokens_joined_by_spaces_are_recovered():
    text = "RT @ann : Mia Chen is back in Oslo , # happy ! ! 1,000 https://t.co/a"
    assert build_input_from_text(text, None).words == text.split()


def test_given_words_are_kept_with_their_offsets():
    item = build_input_from_words(["a b", "", "\u200d", "Oslo!"], None)
    assert item.text == "a b  \u200d Oslo!"
    assert item.words == ["a b", "", "\u200d", "Oslo!"]
    assert item.spans == [(0, 3), (4, 4), (5, 6), (7, 12)]


def test_invisible_characters_do_not_change_offsets():
    assert build_input_from_text("\u200bAnn\u202e in Oslo", None) == LabelInput(
        "Ann in Oslo", [(0, 3), (4, 6), (7, 11)], None
    )


def test_entities_have_word_and_character_offsets():
    item = build_input_from_text("Ann  Bo, in Oslo", None)
    # The last I- continues no entity: it starts a new prediction, as in the scores.
    entities = extract_entities(item, ["B-PER", "I-PER", "O", "O", "I-LOC"])
    assert entities == [
        Entity("PER", "Ann  Bo", first=0, last=1, start=0, end=7),
        Entity("LOC", "Oslo", first=4, last=4, start=12, end=16),
    ]


@pytest.mark.parametrize("name", muse_corpus.CORPUS_KINDS)
def test_labels_of_raw_input_are_those_of_the_stage_classify(place, name):
    """The predictions for the test split from cached features."""
    kind = muse_corpus.CORPUS_KINDS[name]
    classifier = muse_checkpoint.restore(get_model_dir(place, name))
    rows = muse_dataset.load_splits(place / "given/clean" / kind, kind)["test"]
    features = feature_store.read_features(place / "data/07_embed" / kind)
    items = classifier.build_dataset(rows, features, place / "given/ingest" / kind)
    indices = list(range(len(rows)))
    with inference_context():
        expected = classifier.paper.predict(classifier.model, items.batch(indices))
    files = {row["sha256"]: row["bytes"] for _, row in muse_corpus.make_items(kind) if row}
    inputs = [
        build_input_from_words(
            row["words"] if kind == "tweets" else row["text"].split(), files.get(row["image"])
        )
        for row in rows
    ]
    predictions = load_labeler(get_model_dir(place, name)).label(inputs)
    names = classifier.decode_labels(expected.labels, items, indices)
    truncated = [items.num_truncated_words(index) for index in indices]
    assert [prediction.words_not_read for prediction in predictions] == truncated and max(
        truncated
    ) > 0
    if kind == "tweets":
        assert [prediction.tags for prediction in predictions] == names
        assert [prediction.words for prediction in predictions] == [row["words"] for row in rows]
    else:
        assert [[prediction.label] for prediction in predictions] == names
        probabilities = [value for (value,) in expected.probability]
        assert [prediction.probability for prediction in predictions] == pytest.approx(
            probabilities, abs=2e-3
        )


@pytest.mark.parametrize("name", muse_corpus.CORPUS_KINDS)
def test_labels_do_not_depend_on_other_items(place, name):
    labeler = load_labeler(get_model_dir(place, name))
    items = [
        build_input_from_text("the fox sat", RED_IMAGE),
        build_input_from_text("a", None),
        build_input_from_text("the lamp " * 9, RED_IMAGE),
    ]
    for item, in_batch in zip(items, labeler.label(items), strict=True):
        (alone,) = labeler.label([item])
        if isinstance(alone, EntityPrediction):
            assert alone == in_batch
        else:
            assert (alone.label, alone.words_not_read) == (in_batch.label, in_batch.words_not_read)
            assert alone.probability == pytest.approx(in_batch.probability, abs=1e-5)
    assert labeler.label([]) == []


def test_an_image_without_text_is_labeled_like_one_whose_text_is_masked(place):
    """For texts of any length; the stage classify masks texts to predict from images alone."""
    labeler = load_labeler(get_model_dir(place, "muse_sentiment"))
    (alone,) = labeler.label([build_input_from_text("", RED_IMAGE)])
    predict = labeler.classifier.paper.predict

    def predict_from_image(model, batch):
        return predict(model, batch | {"has_text": torch.zeros_like(batch["has_text"])})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labeler.classifier.paper, "predict", predict_from_image)
        for text in ("the", "the fox sat under the lamp"):
            (masked,) = labeler.label([build_input_from_text(text, RED_IMAGE)])
            assert masked.label == alone.label
            assert masked.probability == pytest.approx(alone.probability, abs=1e-5)


def test_generators_and_classifiers_are_distinguished(place, tmp_path):
    with pytest.raises(InputError, match="one of the classifiers: use it with `polymuse label`"):
        ArticleGenerator(get_model_dir(place, "muse_entities"), "models:/mine/1")
    (tmp_path / "config.json").write_text('{"model": "flexmuse"}')
    with pytest.raises(InputError, match="one of the generators: use it with `polymuse write`"):
        load_labeler(tmp_path)


def test_a_missing_image_encoder_is_reported_at_once(place, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(get_model_dir(place, "muse_sentiment"), folder)
    shutil.rmtree(folder / "encoder")
    with pytest.raises(InputError, match="holds no encoder"):
        load_labeler(folder)


def make_untrained(folder: Path, name: str, kind: str, images: bool = True) -> TextLabeler:
    """An untrained model of the current project, with or without images in its corpus."""
    place = Path.cwd()
    rows = muse_dataset.load_splits(place / "given/clean" / kind, kind)["train"]
    rows = rows if images else [row | {"image": None} for row in rows]
    features = feature_store.read_features(place / "data/07_embed" / kind)
    classifier = muse_checkpoint.create(
        muse_corpus.load_run_config(name),
        load_model_config("muse"),
        rows,
        muse_dataset.TASK_BY_CORPUS_KIND[kind],
        features,
    )
    muse_checkpoint.save(classifier, folder, place / "data/06_align")
    return load_labeler(folder)


def test_a_model_of_pixels_needs_no_encoder(place, tmp_path, monkeypatch):
    text = (place / "params.yaml").read_text()
    changed = yaml.safe_load(text)
    pixels = {"encoder": "resnet18", "weights": "none", "image_size": 64, "grid_size": 1}
    changed["classifiers"]["muse_sentiment"]["image"] |= pixels
    (place / "params.yaml").write_text(yaml.safe_dump(changed))
    try:
        labeler = make_untrained(tmp_path / "model", "muse_sentiment", "posts")
    finally:
        (place / "params.yaml").write_text(text)
    assert not (tmp_path / "model/encoder").exists()
    predictions = [
        labeler.label([build_input_from_text("the fox", content)])[0]
        for content in (RED_IMAGE, None)
    ]
    assert all(isinstance(prediction, SentimentPrediction) for prediction in predictions)
    assert predictions[0] != predictions[1]


def test_a_model_trained_without_images_does_not_use_them(place, tmp_path):
    labeler = make_untrained(tmp_path / "model", "muse_sentiment", "posts", images=False)
    first, second = labeler.label(
        [build_input_from_text("the fox", RED_IMAGE), build_input_from_text("the fox", None)]
    )
    assert first == second and not labeler.uses_images
    labeler.check_input(True, True, "it")
    with pytest.raises(InputError, match="it has no text, and this model does not use images"):
        labeler.check_input(False, True, "it")
