from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.classify import __main__ as stage
from stages.classify import muse as classify_muse
from stages.classify.batching import INPUT_MODES
from stages.classify.config import ClassifyConfig
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse import model as muse_model
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from tests.support import muse_corpus, tiny_muse
from tests.support.article_corpus import read_files
from tests.support.muse_corpus import CORPUS_KINDS

SIZE = 3  # batch size; does not divide 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(name, changes, ...): the project of a trained classifier and its corpus folders."""
    trained = {}

    def make(name, changes=None, with_images=True, splits=tuple(muse_corpus.SPLITS)):
        key = str((name, changes, with_images, splits))
        if key not in trained:
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("POLYMUSE_HOME", str(folder / "home"))
                muse_corpus.create_project(folder, changes)
                patch.chdir(folder)
                corpus = muse_corpus.write_corpus(folder, CORPUS_KINDS[name], with_images, splits)
                muse_corpus.save_trained_classifier(name, folder, corpus)
            trained[key] = folder, corpus
        return trained[key]

    return make


@pytest.fixture
def load_run(models, monkeypatch):
    """load_run(name, ...): a restored classifier, the dataset of each split, and the config."""

    def make(name, *more, **changes):
        folder, (ingest, clean, embed) = models(name, *more, **changes)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))
        classifier = muse_checkpoint.restore(folder / "models" / name)
        rows = muse_dataset.load_splits(clean, CORPUS_KINDS[name])
        features = feature_store.read_features(embed)
        splits = {
            split: classifier.build_dataset(rows[split], features, ingest)
            for split in classify_muse.CLASSIFIED_SPLITS
        }
        return classifier, splits, load_config(ClassifyConfig, "classify")

    return make


def build_tables(classifier, splits, config, size=SIZE):
    with torch.inference_mode():
        return classify_muse.build_tables(classifier, splits, list(INPUT_MODES), config, size)


def by_key(rows: list[dict], *names: str) -> dict[tuple, dict]:
    """The rows by the values of these columns, which must be unique."""
    keyed = {tuple(row[name] for name in names): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


@pytest.mark.parametrize(
    ("drop_probs", "train_rows", "expected"),
    [
        ((0.0, 0.0), [{"text": "a b", "image": "x"}], ["both"]),
        ((0.1, 0.0), [{"text": "a b", "image": "x"}], ["both", "text"]),
        ((0.0, 0.1), [{"text": "a b", "image": "x"}], ["both", "picture"]),
        ((0.0, 0.0), [{"words": ["a"], "image": None}], ["both", "text"]),
        ((0.0, 0.0), [{"text": "", "image": "x"}], ["both", "picture"]),
    ],
)
def test_one_input_is_enough_if_training_lacked_the_other(drop_probs, train_rows, expected):
    image_prob, text_prob = drop_probs
    network = tiny_muse.build_model_config(image_drop_prob=image_prob, text_drop_prob=text_prob)
    assert classify_muse.trained_input_modes(network, train_rows) == expected


@pytest.mark.parametrize("name", CORPUS_KINDS)
def test_every_item_is_classified_once_from_each_input_mode(load_run, name):
    classifier, splits, config = load_run(name)
    rows = build_tables(classifier, splits, config)["labels"]
    keys = by_key(rows, "record", "split", "inputs").keys()
    sizes = muse_corpus.SPLITS
    test_keys = {(f"test-{n}", "test", i) for n in range(sizes["test"]) for i in INPUT_MODES}
    assert keys == test_keys | {
        (f"validation-{n}", "validation", "both") for n in range(sizes["validation"])
    }
    assert {row["task"] for row in rows} == {muse_dataset.TASK_BY_CORPUS_KIND[CORPUS_KINDS[name]]}


@pytest.mark.parametrize("name", CORPUS_KINDS)
@pytest.mark.parametrize("inputs", INPUT_MODES)
def test_labels_equal_the_predictions_of_the_model_for_each_input_mode(load_run, name, inputs):
    classifier, splits, config = load_run(name)
    items = splits["test"]
    indices = list(range(len(items)))
    batch = items.batch(indices)
    masked = {"text": "has_picture", "picture": "has_text"}.get(inputs)
    if masked:
        batch[masked] = torch.zeros(len(items), dtype=torch.bool)
    predictions = classifier.paper.predict(classifier.model, batch)
    rows = by_key(build_tables(classifier, splits, config)["labels"], "record", "inputs")
    expected = classifier.decode_labels(predictions.labels, items, indices)
    for index, row in enumerate(items.rows):
        output = rows[row["id"], inputs]
        assert output["predicted"] == expected[index]
        assert output["probability"] == pytest.approx(predictions.probability[index], rel=1e-4)
        assert output["gold"] == muse_dataset.get_gold_labels(row)


def test_labels_do_not_depend_on_the_batch_size(load_run):
    classifier, splits, config = load_run("muse_entities")
    tables = [build_tables(classifier, splits, config, size) for size in (1, 2, 100)]
    keyed = [by_key(table["labels"], "record", "inputs") for table in tables]
    assert keyed[0] == keyed[1] == keyed[2]


def test_words_beyond_the_limit_are_tagged_outside_and_counted(load_run):
    classifier, splits, config = load_run("muse_entities")
    rows = by_key(build_tables(classifier, splits, config)["labels"], "record", "inputs")
    words = len(splits["test"].rows[muse_corpus.TOO_LONG]["words"])
    for inputs in INPUT_MODES:
        truncated = rows[f"test-{muse_corpus.TOO_LONG}", inputs]
        assert truncated["cut"] == words - muse_corpus.MAX_SUBWORDS > 0
        assert len(truncated["predicted"]) == len(truncated["gold"]) == words
        assert set(truncated["predicted"][muse_corpus.MAX_SUBWORDS :]) == {"O"}
        assert {rows[f"test-{n}", inputs]["cut"] for n in range(1, 5)} == {0}


@pytest.mark.parametrize(
    ("name", "unseen_label"), [("muse_entities", "B-NEW"), ("muse_sentiment", "neutral")]
)
def test_a_label_that_is_not_in_the_train_split_is_gold_and_never_predicted(
    load_run, name, unseen_label
):
    classifier, splits, config = load_run(name)
    rows = build_tables(classifier, splits, config)["labels"]
    assert {row["record"] for row in rows if unseen_label in row["gold"]} == {
        f"test-{muse_corpus.UNSEEN_LABEL}"
    }
    assert not [row for row in rows if unseen_label in row["predicted"]]


def test_labels_have_a_probability_and_tags_have_none(load_run):
    rows = build_tables(*load_run("muse_sentiment"))["labels"]
    assert all(len(row["predicted"]) == 1 and 0.5 <= row["probability"][0] <= 1 for row in rows)
    assert all(
        row["probability"] == [] for row in build_tables(*load_run("muse_entities"))["labels"]
    )


def test_without_a_test_split_all_tables_are_of_validation(load_run):
    classifier, splits, config = load_run("muse_sentiment", splits=("train", "validation"))
    tables = build_tables(classifier, splits, config)
    assert {(row["split"], row["inputs"]) for row in tables["labels"]} == {
        ("validation", inputs) for inputs in INPUT_MODES
    }
    assert len(tables["labels"]) == 3 * muse_corpus.SPLITS["validation"]
    for table in ("exchanges", "drawn", "embeddings", "regularised"):
        assert {row["record"].split("-")[0] for row in tables[table]} == {"validation"}


def test_without_validation_only_test_is_classified(load_run):
    tables = build_tables(*load_run("muse_sentiment", splits=("train", "test")))
    assert {row["split"] for row in tables["labels"]} == {"test"}
    assert len(tables["labels"]) == 3 * muse_corpus.SPLITS["test"]


def test_a_corpus_without_images_has_labels_and_no_other_rows(load_run):
    classifier, splits, config = load_run("muse_entities", with_images=False)
    tables = build_tables(classifier, splits, config)
    assert len(tables["labels"]) == muse_corpus.SPLITS["test"] + muse_corpus.SPLITS["validation"]
    assert {row["inputs"] for row in tables["labels"]} == {"both"}  # only the text exists
    assert tables["exchanges"] == tables["drawn"] == tables["embeddings"] == []
    values = {
        (row["caption_nats"], row["drawing_bits"], row["caption"]) for row in tables["regularised"]
    }
    assert values == {(None, None, None)}


def test_fusion_text_writes_labels_only(load_run):
    parts = {"fusion": "text", "use_captioning": False, "use_image_generation": False}
    changes = {f"models.muse.network.{key}": value for key, value in parts.items()}
    tables = build_tables(*load_run("muse_entities", changes))
    assert (
        len(tables["labels"]) == 3 * muse_corpus.SPLITS["test"] + muse_corpus.SPLITS["validation"]
    )
    assert all(tables[name] == [] for name in classify_muse.TABLES.keys() - {"labels"})


def test_exchanges_are_those_of_the_model_without_padding(load_run):
    classifier, splits, config = load_run("muse_entities")
    items = splits["test"]
    examples = classify_muse.select_examples(items, config.num_examples)
    assert len(examples) == 3 and muse_corpus.WITHOUT_IMAGE not in examples
    exchanges = build_tables(classifier, splits, config)["exchanges"]
    rows = by_key(exchanges, "record", "layer", "modality")
    assert len(rows) == len(examples) * 2 * 2  # of two layers and modalities
    for index in examples:
        batch = items.batch([index])  # without padding
        for trace in muse_model.attention_maps(classifier.model, batch):
            text, image = (
                rows[items.rows[index]["id"], trace.layer, modality]
                for modality in ("text", "picture")
            )
            assert text["tokens"] == items.subwords[index].tokens and image["tokens"] == []
            for row, weights, changed in zip(
                (text, image), trace.weights, trace.exchanged, strict=True
            ):
                assert row["weights"] == pytest.approx(weights[0].tolist(), rel=1e-3)
                assert row["exchanged"] == [n for n, yes in enumerate(changed[0]) if yes]
                assert len(row["exchanged"]) >= 1


def test_regularizer_outputs_are_those_of_the_model_and_null_without_image(load_run):
    classifier, splits, config = load_run("muse_sentiment")
    rows = by_key(build_tables(classifier, splits, config)["regularised"], "record", "split")
    assert len(rows) == muse_corpus.SPLITS["test"] + muse_corpus.SPLITS["validation"]
    for split, items in splits.items():
        for index, row in enumerate(items.rows):
            output = rows[row["id"], split]
            if index == muse_corpus.WITHOUT_IMAGE:
                assert output["caption_nats"] is output["drawing_bits"] is output["caption"] is None
                continue
            outputs = muse_model.evaluate_regularizers(classifier.model, items.batch([index]))
            for name in ("caption_nats", "drawing_bits"):
                assert output[name] == pytest.approx(outputs[name].item(), rel=1e-3)


def test_examples_of_the_scored_split_have_a_generated_caption(load_run):
    classifier, splits, config = load_run("muse_sentiment")
    items = splits["test"]
    examples = classify_muse.select_examples(items, config.num_examples)
    captions = {
        row["record"]: row["caption"]
        for row in build_tables(classifier, splits, config)["regularised"]
    }
    captioned = {name for name, caption in captions.items() if caption is not None}
    assert captioned == {items.rows[index]["id"] for index in examples}
    for index in examples:
        (ids,) = muse_model.generate_captions(classifier.model, items.batch([index]))
        assert captions[items.rows[index]["id"]] == " ".join(
            classifier.codec.vocabulary.decode(ids)
        )


def test_embeddings_are_those_of_the_model_before_and_after_the_projection(load_run):
    classifier, splits, config = load_run("muse_sentiment")
    items = splits["test"]
    examples = classify_muse.select_examples(items, config.num_projection_samples)
    rows = by_key(
        build_tables(classifier, splits, config)["embeddings"], "record", "modality", "where"
    )
    assert len(rows) == len(examples) * 2 * 2
    for index in examples:
        for where, pair in muse_model.pooled_embeddings(
            classifier.model, items.batch([index])
        ).items():
            for modality, vectors in zip(("text", "picture"), pair, strict=True):
                output = rows[items.rows[index]["id"], modality, where]
                assert output["vector"] == pytest.approx(vectors[0].tolist(), abs=1e-4)


def test_images_are_sampled_by_the_model_for_the_first_examples(load_run):
    classifier, splits, config = load_run("muse_entities")
    items = splits["test"]
    examples = classify_muse.select_examples(items, config.num_examples)
    examples = examples[: config.num_generation_examples]
    rows = build_tables(classifier, splits, config)["drawn"]
    names = [(items.rows[index]["id"], number) for index in examples for number in (0, 1)]
    assert [(row["record"], row["number"]) for row in rows] == names
    generator = torch.Generator().manual_seed(config.seed)
    twice = items.batch([index for index in examples for _ in range(2)])
    images = classifier.paper.generate_images(classifier.model, twice, generator)
    for row, image in zip(rows, images, strict=True):
        pixels = np.asarray(Image.open(BytesIO(row["picture"])))
        assert pixels.shape == (4, 4, 3)
        assert np.abs(pixels / 127.5 - 1 - image.permute(1, 2, 0).numpy()).max() < 1 / 255
    assert rows[0]["picture"] != rows[1]["picture"]


def test_a_model_without_decoders_generates_nothing(load_run):
    parts = {"use_captioning": False, "use_image_generation": False}
    changes = {f"models.muse.network.{key}": value for key, value in parts.items()}
    tables = build_tables(*load_run("muse_sentiment", changes))
    assert tables["drawn"] == [] and tables["exchanges"] != []
    assert {row["where"] for row in tables["embeddings"]} == {"before"}
    outputs = {
        (row["caption_nats"], row["drawing_bits"], row["caption"]) for row in tables["regularised"]
    }
    assert outputs == {(None, None, None)}


@pytest.mark.parametrize(
    ("count", "examples"), [(0, []), (2, [0, 3]), (4, [0, 2, 3, 4]), (9, [0, 2, 3, 4])]
)
def test_examples_are_evenly_spaced_and_have_an_image(load_run, count, examples):
    _, splits, _ = load_run("muse_entities")
    assert classify_muse.select_examples(splits["test"], count) == examples


@pytest.mark.parametrize("name", CORPUS_KINDS)
def test_the_stage_writes_every_table_and_is_reproducible(models, monkeypatch, name):
    folder, corpus = models(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))

    def main(output: str) -> Path:
        stage.main(
            classify_muse,
            CorpusFolders(*corpus),
            folder / "models" / name,
            CORPUS_KINDS[name],
            load_config(ClassifyConfig, "classify"),
            SIZE,
            folder / output,
        )
        return folder / output

    first = main("first")
    assert read_files(main("second")) == read_files(first)
    assert {path.name for path in first.iterdir()} == {
        *(f"{table}.parquet" for table in classify_muse.TABLES),
        "parameters.json",
    }
    rows = {
        t: schemas.read_parquet(first / f"{t}.parquet", schema)
        for t, schema in classify_muse.TABLES.items()
    }
    assert all(rows.values())
    classifier = muse_checkpoint.restore(folder / "models" / name)
    counts = schemas.read_json(first / "parameters.json")
    assert counts["trained"] > 0 and counts["frozen"] > 0
    assert sum(counts.values()) == sum(w.numel() for w in classifier.model.parameters())
