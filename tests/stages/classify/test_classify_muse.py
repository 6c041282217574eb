from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.classify import __main__ as stage
from stages.classify import muse as label
from stages.classify.config import ClassifyConfig
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from tests.support import muse_corpus
from tests.support.article_corpus import read_files
from tests.support.muse_corpus import CORPUS_KINDS

SIZE = 3  # items of a batch: not a divisor of 5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(name, changes, pictures, splits): a trained reader and the folders of its corpus."""
    known = {}

    def make(name, changes=None, pictures=True, splits=tuple(muse_corpus.SPLITS)):
        key = str((name, changes, pictures, splits))
        if key not in known:
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("POLYMUSE_HOME", str(folder / "home"))
                muse_corpus.create_project(folder, changes)
                patch.chdir(folder)
                given = muse_corpus.write_corpus(folder, CORPUS_KINDS[name], pictures, splits)
                muse_corpus.save_trained_classifier(name, folder, given)
            known[key] = folder, given
        return known[key]

    return make


@pytest.fixture
def made(models, monkeypatch):
    """made(name, ...): such a reader as `restore` gives it, its splits and the params of label."""

    def make(name, *more, **changes):
        folder, (ingest, clean, embed) = models(name, *more, **changes)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))
        reader = muse_checkpoint.restore(folder / "models" / name)
        rows, cached = (
            muse_dataset.load_splits(clean, CORPUS_KINDS[name]),
            feature_store.read_features(embed),
        )
        splits = {
            split: reader.build_dataset(rows[split], cached, ingest)
            for split in label.CLASSIFIED_SPLITS
        }
        return reader, splits, load_config(ClassifyConfig, "classify")

    return make


def tables_of(reader, splits, params, size=SIZE):
    with torch.inference_mode():
        return label.build_tables(reader, splits, params, size)


def by_key(rows: list[dict], *names: str) -> dict[tuple, dict]:
    """The rows by some of their columns, none twice."""
    found = {tuple(row[name] for name in names): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("name", CORPUS_KINDS)
def test_every_item_is_labelled_once_from_each_of_its_inputs(made, name):
    reader, splits, params = made(name)
    rows = tables_of(reader, splits, params)["labels"]
    keys = by_key(rows, "record", "split", "inputs").keys()
    sizes = muse_corpus.SPLITS
    of_test = {(f"test-{n}", "test", i) for n in range(sizes["test"]) for i in label.INPUT_MODES}
    assert keys == of_test | {
        (f"validation-{n}", "validation", "both") for n in range(sizes["validation"])
    }
    assert {row["task"] for row in rows} == {muse_dataset.TASK_BY_CORPUS_KIND[CORPUS_KINDS[name]]}


@pytest.mark.parametrize("name", CORPUS_KINDS)
@pytest.mark.parametrize("inputs", label.INPUT_MODES)
def test_labels_are_what_the_model_decides_of_these_inputs(made, name, inputs):
    reader, splits, params = made(name)
    items = splits["test"]
    everything = list(range(len(items)))
    batch = items.batch(everything)
    hidden = {"text": "has_picture", "picture": "has_text"}.get(inputs)
    if hidden:
        batch[hidden] = torch.zeros(len(items), dtype=torch.bool)
    decided = reader.paper.predict(reader.model, batch)
    found = by_key(tables_of(reader, splits, params)["labels"], "record", "inputs")
    wanted = reader.decode_labels(decided.labels, items, everything)
    for index, row in enumerate(items.rows):
        one = found[row["id"], inputs]
        assert one["predicted"] == wanted[index]
        assert one["probability"] == pytest.approx(decided.probability[index], rel=1e-4)
        assert one["gold"] == muse_dataset.get_gold_labels(row)


def test_the_batch_changes_no_label(made):
    reader, splits, params = made("muse_entities")
    found = [tables_of(reader, splits, params, size)["labels"] for size in (1, 2, 100)]
    keyed = [by_key(rows, "record", "inputs") for rows in found]
    assert keyed[0] == keyed[1] == keyed[2]


def test_words_beyond_the_limit_are_outside_and_counted(made):
    reader, splits, params = made("muse_entities")
    rows = by_key(tables_of(reader, splits, params)["labels"], "record", "inputs")
    words = len(splits["test"].rows[muse_corpus.TOO_LONG]["words"])
    for inputs in label.INPUT_MODES:
        long = rows[f"test-{muse_corpus.TOO_LONG}", inputs]
        assert long["cut"] == words - muse_corpus.MAX_SUBWORDS > 0
        assert len(long["predicted"]) == len(long["gold"]) == words
        assert set(long["predicted"][muse_corpus.MAX_SUBWORDS :]) == {"O"}
        assert {rows[f"test-{n}", inputs]["cut"] for n in range(1, 5)} == {0}


@pytest.mark.parametrize(
    ("name", "new"), [("muse_entities", "B-NEW"), ("muse_sentiment", "neutral")]
)
def test_a_label_that_train_never_showed_is_gold_and_never_predicted(made, name, new):
    reader, splits, params = made(name)
    rows = tables_of(reader, splits, params)["labels"]
    assert {row["record"] for row in rows if new in row["gold"]} == {
        f"test-{muse_corpus.UNSEEN_LABEL}"
    }
    assert not [row for row in rows if new in row["predicted"]]


def test_probabilities_are_those_of_labels_and_none_of_tags(made):
    rows = tables_of(*made("muse_sentiment"))["labels"]
    assert all(len(row["predicted"]) == 1 and 0.5 <= row["probability"][0] <= 1 for row in rows)
    assert all(row["probability"] == [] for row in tables_of(*made("muse_entities"))["labels"])


def test_without_a_test_split_validation_is_scored_from_each_input_and_shown(made):
    reader, splits, params = made("muse_sentiment", splits=("train", "validation"))
    found = tables_of(reader, splits, params)
    assert {(row["split"], row["inputs"]) for row in found["labels"]} == {
        ("validation", inputs) for inputs in label.INPUT_MODES
    }
    assert len(found["labels"]) == 3 * muse_corpus.SPLITS["validation"]
    for table in ("exchanges", "drawn", "embeddings", "regularised"):
        assert {row["record"].split("-")[0] for row in found[table]} == {"validation"}


def test_without_validation_test_is_labelled_alone(made):
    found = tables_of(*made("muse_sentiment", splits=("train", "test")))
    assert {row["split"] for row in found["labels"]} == {"test"}
    assert len(found["labels"]) == 3 * muse_corpus.SPLITS["test"]


def test_a_corpus_without_pictures_is_labelled_and_has_nothing_to_show(made):
    reader, splits, params = made("muse_entities", pictures=False)
    found = tables_of(reader, splits, params)
    assert len(found["labels"]) == muse_corpus.SPLITS["test"] + muse_corpus.SPLITS["validation"]
    assert {row["inputs"] for row in found["labels"]} == {"both"}  # which is the text
    assert found["exchanges"] == found["drawn"] == found["embeddings"] == []
    of_items = {
        (row["caption_nats"], row["drawing_bits"], row["caption"]) for row in found["regularised"]
    }
    assert of_items == {(None, None, None)}


def test_the_plain_tagger_labels_and_shows_nothing_else(made):
    parts = {"fusion": "text", "use_captioning": False, "use_image_generation": False}
    changes = {f"models.muse.network.{key}": value for key, value in parts.items()}
    found = tables_of(*made("muse_entities", changes))
    assert len(found["labels"]) == 3 * muse_corpus.SPLITS["test"] + muse_corpus.SPLITS["validation"]
    assert all(found[name] == [] for name in label.TABLES.keys() - {"labels"})


def test_exchanges_are_those_of_the_model_cut_to_what_an_item_holds(made):
    reader, splits, params = made("muse_entities")
    items = splits["test"]
    places = label.select_examples(items, params.num_examples)
    assert len(places) == 3 and muse_corpus.WITHOUT_IMAGE not in places
    found = by_key(tables_of(reader, splits, params)["exchanges"], "record", "layer", "modality")
    assert len(found) == len(places) * 2 * 2  # of two layers and modalities
    for place in places:
        for trace in reader.paper.attention_maps(
            reader.model, items.batch([place])
        ):  # no padding beside it
            text, picture = (
                found[items.rows[place]["id"], trace.layer, modality]
                for modality in ("text", "picture")
            )
            assert text["tokens"] == items.subwords[place].tokens and picture["tokens"] == []
            for row, weights, changed in zip(
                (text, picture), trace.weights, trace.exchanged, strict=True
            ):
                assert row["weights"] == pytest.approx(weights[0].tolist(), rel=1e-3)
                assert row["exchanged"] == [n for n, yes in enumerate(changed[0]) if yes]
                assert len(row["exchanged"]) >= 1


def test_what_the_regularisers_say_is_that_of_the_model_and_null_without_picture(made):
    reader, splits, params = made("muse_sentiment")
    found = by_key(tables_of(reader, splits, params)["regularised"], "record", "split")
    assert len(found) == muse_corpus.SPLITS["test"] + muse_corpus.SPLITS["validation"]
    for split, items in splits.items():
        for place, row in enumerate(items.rows):
            one = found[row["id"], split]
            if place == muse_corpus.WITHOUT_IMAGE:
                assert one["caption_nats"] is one["drawing_bits"] is one["caption"] is None
                continue
            said = reader.paper.evaluate_regularizers(reader.model, items.batch([place]))
            for name in ("caption_nats", "drawing_bits"):
                assert one[name] == pytest.approx(said[name].item(), rel=1e-3)


def test_some_pictures_of_the_split_that_is_scored_have_a_written_caption(made):
    reader, splits, params = made("muse_sentiment")
    items = splits["test"]
    places = label.select_examples(items, params.num_examples)
    written = {
        row["record"]: row["caption"] for row in tables_of(reader, splits, params)["regularised"]
    }
    told = {name for name, caption in written.items() if caption is not None}
    assert told == {items.rows[place]["id"] for place in places}
    for place in places:
        (ids,) = reader.paper.generate_captions(reader.model, items.batch([place]))
        assert written[items.rows[place]["id"]] == " ".join(reader.codec.vocabulary.decode(ids))


def test_embeddings_are_those_of_the_model_before_and_after_the_projection(made):
    reader, splits, params = made("muse_sentiment")
    items = splits["test"]
    places = label.select_examples(items, params.num_projection_samples)
    rows = by_key(tables_of(reader, splits, params)["embeddings"], "record", "modality", "where")
    assert len(rows) == len(places) * 2 * 2
    for place in places:
        for where, pair in reader.paper.pooled_embeddings(
            reader.model, items.batch([place])
        ).items():
            for modality, vectors in zip(("text", "picture"), pair, strict=True):
                one = rows[items.rows[place]["id"], modality, where]
                assert one["vector"] == pytest.approx(vectors[0].tolist(), abs=1e-4)


def test_drawings_are_samples_of_the_model_of_the_first_examples(made):
    reader, splits, params = made("muse_entities")
    items = splits["test"]
    places = label.select_examples(items, params.num_examples)[: params.num_generation_examples]
    found = tables_of(reader, splits, params)["drawn"]
    names = [(items.rows[place]["id"], number) for place in places for number in (0, 1)]
    assert [(row["record"], row["number"]) for row in found] == names
    generator = torch.Generator().manual_seed(params.seed)
    twice = items.batch([place for place in places for _ in range(2)])
    for row, drawn in zip(
        found, reader.paper.generate_images(reader.model, twice, generator), strict=True
    ):
        pixels = np.asarray(Image.open(BytesIO(row["picture"])))
        assert pixels.shape == (4, 4, 3)
        assert np.abs(pixels / 127.5 - 1 - drawn.permute(1, 2, 0).numpy()).max() < 1 / 255
    assert found[0]["picture"] != found[1]["picture"]


def test_a_model_without_decoders_draws_and_writes_nothing(made):
    parts = {"use_captioning": False, "use_image_generation": False}
    changes = {f"models.muse.network.{key}": value for key, value in parts.items()}
    found = tables_of(*made("muse_sentiment", changes))
    assert found["drawn"] == [] and found["exchanges"] != []
    assert {row["where"] for row in found["embeddings"]} == {"before"}
    said = {
        (row["caption_nats"], row["drawing_bits"], row["caption"]) for row in found["regularised"]
    }
    assert said == {(None, None, None)}


@pytest.mark.parametrize(
    ("count", "places"), [(0, []), (2, [0, 3]), (4, [0, 2, 3, 4]), (9, [0, 2, 3, 4])]
)
def test_chosen_items_are_evenly_spaced_and_have_a_picture(made, count, places):
    _, splits, _ = made("muse_entities")
    assert label.select_examples(splits["test"], count) == places


@pytest.mark.parametrize("name", CORPUS_KINDS)
def test_the_stage_writes_every_table_and_twice_the_same_bytes(models, monkeypatch, name):
    folder, given = models(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))

    def main(target: str) -> Path:
        sources = [*given, folder / "models" / name]
        params = load_config(ClassifyConfig, "classify")
        stage.main(name, label, sources, CORPUS_KINDS[name], params, folder / target)
        return folder / target

    first = main("first")
    assert read_files(main("second")) == read_files(first)
    assert {path.name for path in first.iterdir()} == {
        *(f"{table}.parquet" for table in label.TABLES),
        "parameters.json",
    }
    rows = {
        t: schemas.read_parquet(first / f"{t}.parquet", schema)
        for t, schema in label.TABLES.items()
    }
    assert all(rows.values())
    reader = muse_checkpoint.restore(folder / "models" / name)
    counts = schemas.read_json(first / "parameters.json")
    assert counts["trained"] > 0 and counts["frozen"] > 0
    assert sum(counts.values()) == sum(w.numel() for w in reader.model.parameters())
