"""Predictions, diagnostics and attention maps of MM-ORIENT."""

import json
from math import log

import pytest
import torch

from stages.classify import __main__ as stage
from stages.classify import mm_orient as classify_mm_orient
from stages.classify.batching import INPUT_MODES
from stages.classify.config import ClassifyConfig
from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from stages.shared.metrics.common import evenly_spaced_indices
from tests.support import mm_orient_corpus
from tests.support.mm_orient_corpus import (
    LEARNED_TASKS,
    NUM_CELLS,
    RUN_NAME,
    SPLITS,
    UNLABELED,
    WITHOUT_IMAGE,
    WITHOUT_TEXT,
)

SIZE = 3  # batch size; does not divide 7
GRAPHS = ("tt", "ii", "ti", "it")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(changes): the project of a trained classifier, its corpus folders and its model."""
    trained = {}

    def make(changes: dict):
        key = json.dumps(changes)
        if key not in trained:
            folder = tmp_path_factory.mktemp("memes")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("POLYMUSE_HOME", str(folder / "home"))
                mm_orient_corpus.create_project(folder, changes)
                patch.chdir(folder)
                corpus = mm_orient_corpus.write_meme_corpus(folder)
                _, model = mm_orient_corpus.save_trained_classifier(folder, corpus)
            trained[key] = folder, corpus, model
        return trained[key]

    return make


@pytest.fixture
def load_run(models, monkeypatch):
    """load_run(**changes): a restored classifier and the dataset of each split."""

    def make(**changes):
        network = {f"models.{RUN_NAME}.network.{key}": value for key, value in changes.items()}
        folder, (images, records, embed), model = models(network)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))
        classifier, rows = mm_orient_checkpoint.restore(model), meme_dataset.load_splits(records)
        features = feature_store.read_features(embed)
        return classifier, {
            split: classifier.build_dataset(rows[split], features, images)
            for split in classify_mm_orient.CLASSIFIED_SPLITS
        }

    return make


@pytest.fixture
def run_stage(models, monkeypatch, tmp_path):
    """run_stage(change, splits, size): the tables of a corpus whose rows are changed."""

    def run(change=lambda row: row, splits=tuple(SPLITS), size=SIZE):
        folder, _, model = models({})
        monkeypatch.chdir(folder)
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))
        root = tmp_path / f"corpus {len(list(tmp_path.iterdir()))}"
        stage.main(
            classify_mm_orient,
            CorpusFolders(*mm_orient_corpus.write_meme_corpus(root, splits, change=change)),
            model,
            "memes",
            load_config(ClassifyConfig, "classify"),
            size,
            root / "out",
        )
        assert json.loads((root / "out/parameters.json").read_text())["trained"] > 0
        return {
            name: schemas.read_parquet(root / "out" / f"{name}.parquet", schema)
            for name, schema in classify_mm_orient.TABLES.items()
        }

    return run


def by_key(rows: list[dict], *names: str) -> dict[tuple, dict]:
    """The rows by the values of these columns, which must be unique."""
    keyed = {tuple(row[name] for name in names): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def remove_labels(row: dict, split: str) -> dict:
    return row | {"labels": []} if row["split"] == split else row


def test_every_item_has_a_row_for_each_learned_task_and_input_mode(run_stage):
    rows = run_stage()["labels"]
    keys = by_key(rows, "record", "split", "inputs", "task").keys()
    assert keys == {
        (f"{split}-{number}", split, inputs, task)
        for split in ("validation", "test")
        for number in range(SPLITS[split])
        for inputs in (INPUT_MODES if split == "test" else INPUT_MODES[:1])
        for task in LEARNED_TASKS
    }


def test_gold_is_the_label_of_an_item_and_empty_without_one(run_stage):
    rows = by_key(run_stage()["labels"], "record", "inputs", "task")
    assert rows["test-0", "both", "humour"]["gold"] == ["funny"]
    assert rows["test-1", "text", "sentiment"]["gold"] == ["negative"]
    unlabeled = {key for key, row in rows.items() if not row["gold"]}
    assert unlabeled == {
        (f"{split}-{UNLABELED}", inputs, "humour")
        for split in ("validation", "test")
        for inputs in (INPUT_MODES if split == "test" else INPUT_MODES[:1])
    }
    assert all(row["predicted"][0] in LEARNED_TASKS[task] for (_, _, task), row in rows.items())


@pytest.mark.parametrize("inputs", INPUT_MODES)
def test_labels_equal_the_predictions_of_the_model_for_each_input_mode(run_stage, load_run, inputs):
    classifier, splits = load_run()
    items = splits["test"]
    batch = items.batch(list(range(len(items))))
    masked = {"text": "has_picture", "picture": "has_text"}.get(inputs)
    if masked:
        batch[masked] = torch.zeros(len(items), dtype=torch.bool)
    predictions = classifier.paper.predict(classifier.model, batch)
    rows = by_key(run_stage()["labels"], "record", "inputs", "task")
    for task, names in LEARNED_TASKS.items():
        for index, row in enumerate(items.rows):
            output = rows[row["id"], inputs, task]
            probabilities = predictions.probabilities[task][index]
            assert output["predicted"] == [names[probabilities.argmax()]]
            assert output["probability"] == pytest.approx([probabilities.max().item()], abs=1e-6)


def test_labels_and_probabilities_do_not_depend_on_the_batch_size(run_stage):
    key = ("record", "inputs", "task")
    first, *other_sizes = (by_key(run_stage(size=size)["labels"], *key) for size in (1, 2, 100))
    for other in other_sizes:
        assert other.keys() == first.keys()
        for name, row in other.items():
            assert row["predicted"] == first[name]["predicted"]
            assert row["probability"] == pytest.approx(first[name]["probability"], abs=1e-6)


def test_without_a_test_split_all_tables_are_of_validation(run_stage):
    tables = run_stage(splits=["train", "validation"])
    assert {(row["split"], row["inputs"]) for row in tables["labels"]} == {
        ("validation", inputs) for inputs in INPUT_MODES
    }
    assert {row["record"].split("-")[0] for row in tables["looks"]} == {"validation"}
    assert {row["split"] for row in tables["behaviour"]} == {"validation"}


def test_with_an_unlabeled_test_split_validation_is_scored_and_test_is_classified(
    run_stage,
):
    tables = run_stage(lambda row: remove_labels(row, "test"))
    counts = {(split, "both"): SPLITS[split] for split in ("validation", "test")}
    counts |= {("validation", inputs): SPLITS["validation"] for inputs in INPUT_MODES[1:]}
    rows = tables["labels"]
    assert {
        key: sum((row["split"], row["inputs"]) == key for row in rows) / len(LEARNED_TASKS)
        for key in {(row["split"], row["inputs"]) for row in rows}
    } == counts
    assert {row["split"] for row in tables["behaviour"]} == {"validation"}


def test_without_images_nothing_is_classified_from_one_input(run_stage):
    rows = run_stage(lambda row: row | {"image": None})["labels"]
    assert {row["inputs"] for row in rows} == {"both"}
    assert len(rows) == len(LEARNED_TASKS) * (SPLITS["validation"] + SPLITS["test"])


def test_attention_maps_have_a_weight_for_each_subword_and_each_region(run_stage):
    rows = by_key(run_stage()["looks"], "record", "modality")
    examples = {record for record, _ in rows}  # evenly spaced: items 0, 1, 3 and 5
    assert examples == {f"test-{number}" for number in (0, 1, 3, 5)}
    assert (f"test-{WITHOUT_TEXT}", "text") not in rows
    for (record, modality), row in rows.items():
        if modality == "text":
            assert row["tokens"][1] in ("fox", "lamp") and row["tokens"][0] == "the", record
            assert len(row["weights"]) == len(row["tokens"])
        else:
            assert row["tokens"] == [] and len(row["weights"]) == NUM_CELLS
        assert sum(row["weights"]) == pytest.approx(1, abs=1e-2)


def test_a_model_without_regions_has_no_attention_map_of_the_image(load_run):
    classifier, splits = load_run(inputs="text_only")
    with torch.inference_mode():
        rows = classify_mm_orient.attention_rows(
            classifier, splits["test"], [0, WITHOUT_TEXT], SIZE
        )
    assert [(row["record"], row["modality"]) for row in rows] == [("test-0", "text")]


def test_a_missing_modality_has_no_diagnostics(run_stage, load_run):
    rows = by_key(run_stage()["behaviour"], "record", "name")
    names = {f"{what}_{graph}" for what in ("density", "isolated") for graph in GRAPHS}
    names |= {"evenness_words", "evenness_regions"}
    assert {name for _, name in rows} == names
    text_names = {"density_tt", "isolated_tt", "density_it", "isolated_it", "evenness_words"}
    item_names = {
        number: {name for record, name in rows if record == f"test-{number}"}
        for number in range(SPLITS["test"])
    }
    assert item_names[WITHOUT_TEXT] == names - text_names
    assert item_names[WITHOUT_IMAGE] == text_names
    assert all(item_names[number] == names for number in (0, 3, 4, 5, 6))
    assert all(0 <= row["value"] <= 1 + 1e-6 for row in rows.values())


def test_evenness_is_the_normalized_entropy_of_the_attention_map(run_stage):
    tables = run_stage()
    diagnostics = by_key(tables["behaviour"], "record", "name")
    (attention,) = [
        row for row in tables["looks"] if (row["record"], row["modality"]) == ("test-5", "text")
    ]
    entropy = -sum(weight * log(weight) for weight in attention["weights"] if weight)
    expected = entropy / log(len(attention["weights"]))
    assert diagnostics["test-5", "evenness_words"]["value"] == pytest.approx(expected, abs=2e-3)


def test_indices_are_evenly_spaced_and_not_more_than_the_items():
    assert evenly_spaced_indices(7, 4) == [0, 1, 3, 5]
    assert evenly_spaced_indices(2, 4) == [0, 1]
    assert evenly_spaced_indices(5, 0) == evenly_spaced_indices(0, 5) == []
