"""What MM-ORIENT labels: every item, every task it learned, whatever the batch."""

import json
from math import log

import pytest
import torch

from stages.classify import __main__ as stage
from stages.classify import mm_orient as label
from stages.classify.batching import INPUT_MODES
from stages.classify.config import ClassifyConfig
from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
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

SIZE = 3  # items of a batch: not a divisor of 7
GRAPHS = ("tt", "ii", "ti", "it")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(**changes): a trained reader's folder and those of its corpus."""
    known = {}

    def make(changes: dict):
        key = json.dumps(changes)
        if key not in known:
            folder = tmp_path_factory.mktemp("memes")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("POLYMUSE_HOME", str(folder / "home"))
                mm_orient_corpus.create_project(folder, changes)
                patch.chdir(folder)
                given = mm_orient_corpus.write_meme_corpus(folder)
                _, model = mm_orient_corpus.save_trained_classifier(folder, given)
            known[key] = folder, given, model
        return known[key]

    return make


@pytest.fixture
def made(models, monkeypatch):
    """made(**changes): such a reader as `restore` gives it, and the items of its splits."""

    def make(**changes):
        network = {f"models.{RUN_NAME}.network.{key}": value for key, value in changes.items()}
        folder, (pictures, records, embed), model = models(network)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))
        reader, rows = mm_orient_checkpoint.restore(model), meme_dataset.load_splits(records)
        known = feature_store.read_features(embed)
        return reader, {
            split: reader.build_dataset(rows[split], known, pictures)
            for split in label.CLASSIFIED_SPLITS
        }

    return make


@pytest.fixture
def labelled(models, monkeypatch, tmp_path):
    """labelled(change, size): the tables that the stage writes of a corpus changed like this."""

    def run(change=lambda row: row, splits=tuple(SPLITS), size=SIZE):
        folder, _, model = models({})
        monkeypatch.chdir(folder)
        monkeypatch.setenv("POLYMUSE_HOME", str(folder / "home"))
        place = tmp_path / f"corpus {len(list(tmp_path.iterdir()))}"
        given = [*mm_orient_corpus.write_meme_corpus(place, splits, change=change), model]
        monkeypatch.setattr(label, "load_config", lambda *key: Size(size))
        stage.main(
            RUN_NAME, label, given, "memes", load_config(ClassifyConfig, "classify"), place / "out"
        )
        assert json.loads((place / "out/parameters.json").read_text())["trained"] > 0
        return {
            name: schemas.read_parquet(place / "out" / f"{name}.parquet", schema)
            for name, schema in label.TABLES.items()
        }

    return run


class Size:
    def __init__(self, eval_batch_size: int):
        self.eval_batch_size = eval_batch_size


def by_key(rows: list[dict], *names: str) -> dict[tuple, dict]:
    """The rows by some of their columns, none twice."""
    found = {tuple(row[name] for name in names): row for row in rows}
    assert len(found) == len(rows)
    return found


def without(row: dict, split: str) -> dict:
    return row | {"labels": []} if row["split"] == split else row


def test_every_item_has_a_row_of_each_task_that_was_learned_from_each_of_its_inputs(labelled):
    rows = labelled()["labels"]
    keys = by_key(rows, "record", "split", "inputs", "task").keys()
    assert keys == {
        (f"{split}-{number}", split, inputs, task)
        for split in ("validation", "test")
        for number in range(SPLITS[split])
        for inputs in (INPUT_MODES if split == "test" else INPUT_MODES[:1])
        for task in LEARNED_TASKS
    }


def test_gold_is_what_somebody_judged_and_empty_where_nobody_did(labelled):
    rows = by_key(labelled()["labels"], "record", "inputs", "task")
    assert rows["test-0", "both", "humour"]["gold"] == ["funny"]
    assert rows["test-1", "text", "sentiment"]["gold"] == ["negative"]
    unjudged = {key for key, row in rows.items() if not row["gold"]}
    assert unjudged == {
        (f"{split}-{UNLABELED}", inputs, "humour")
        for split in ("validation", "test")
        for inputs in (INPUT_MODES if split == "test" else INPUT_MODES[:1])
    }
    assert all(row["predicted"][0] in LEARNED_TASKS[task] for (_, _, task), row in rows.items())


@pytest.mark.parametrize("inputs", INPUT_MODES)
def test_labels_are_what_the_model_decides_of_these_inputs(labelled, made, inputs):
    reader, splits = made()
    items = splits["test"]
    batch = items.batch(list(range(len(items))))
    hidden = {"text": "has_picture", "picture": "has_text"}.get(inputs)
    if hidden:
        batch[hidden] = torch.zeros(len(items), dtype=torch.bool)
    decided = reader.paper.predict(reader.model, batch)
    found = by_key(labelled()["labels"], "record", "inputs", "task")
    for task, names in LEARNED_TASKS.items():
        for index, row in enumerate(items.rows):
            one, given = found[row["id"], inputs, task], decided.probabilities[task][index]
            assert one["predicted"] == [names[given.argmax()]]
            assert one["probability"] == pytest.approx([given.max().item()], abs=1e-6)


def test_the_batch_changes_no_label_and_no_probability(labelled):
    key = ("record", "inputs", "task")
    first, *others = (by_key(labelled(size=size)["labels"], *key) for size in (1, 2, 100))
    for other in others:
        assert other.keys() == first.keys()
        for name, row in other.items():
            assert row["predicted"] == first[name]["predicted"]
            assert row["probability"] == pytest.approx(first[name]["probability"], abs=1e-6)


def test_without_a_test_split_validation_is_scored_from_each_input_and_shown(labelled):
    found = labelled(splits=["train", "validation"])
    assert {(row["split"], row["inputs"]) for row in found["labels"]} == {
        ("validation", inputs) for inputs in INPUT_MODES
    }
    assert {row["record"].split("-")[0] for row in found["looks"]} == {"validation"}
    assert {row["split"] for row in found["behaviour"]} == {"validation"}


def test_where_nobody_judged_a_test_item_validation_is_scored_and_test_is_labelled_all_the_same(
    labelled,
):
    found = labelled(lambda row: without(row, "test"))
    counts = {(split, "both"): SPLITS[split] for split in ("validation", "test")}
    counts |= {("validation", inputs): SPLITS["validation"] for inputs in INPUT_MODES[1:]}
    rows = found["labels"]
    assert {
        key: sum((row["split"], row["inputs"]) == key for row in rows) / len(LEARNED_TASKS)
        for key in {(row["split"], row["inputs"]) for row in rows}
    } == counts
    assert {row["split"] for row in found["behaviour"]} == {"validation"}


def test_without_pictures_nothing_is_labelled_from_one_input(labelled):
    rows = labelled(lambda row: row | {"image": None})["labels"]
    assert {row["inputs"] for row in rows} == {"both"}
    assert len(rows) == len(LEARNED_TASKS) * (SPLITS["validation"] + SPLITS["test"])


def test_looks_have_a_weight_for_each_piece_and_each_region(labelled):
    rows = by_key(labelled()["looks"], "record", "modality")
    shown = {record for record, _ in rows}  # evenly spaced: items 0, 1, 3 and 5
    assert shown == {f"test-{number}" for number in (0, 1, 3, 5)}
    assert (f"test-{WITHOUT_TEXT}", "text") not in rows
    for (record, modality), row in rows.items():
        if modality == "text":
            assert row["tokens"][1] in ("fox", "lamp") and row["tokens"][0] == "the", record
            assert len(row["weights"]) == len(row["tokens"])
        else:
            assert row["tokens"] == [] and len(row["weights"]) == NUM_CELLS
        assert sum(row["weights"]) == pytest.approx(1, abs=1e-2)


def test_a_model_that_reads_no_regions_looks_at_no_picture(made):
    reader, splits = made(inputs="text_only")
    with torch.inference_mode():
        rows = label.attention_rows(reader, splits["test"], [0, WITHOUT_TEXT], SIZE)
    assert [(row["record"], row["modality"]) for row in rows] == [("test-0", "text")]


def test_what_an_item_lacks_has_no_figure_of_behaviour(labelled, made):
    rows = by_key(labelled()["behaviour"], "record", "name")
    names = {f"{what}_{graph}" for what in ("density", "isolated") for graph in GRAPHS}
    names |= {"evenness_words", "evenness_regions"}
    assert {name for _, name in rows} == names
    of_text = {"density_tt", "isolated_tt", "density_it", "isolated_it", "evenness_words"}
    of_item = {
        number: {name for record, name in rows if record == f"test-{number}"}
        for number in range(SPLITS["test"])
    }
    assert of_item[WITHOUT_TEXT] == names - of_text
    assert of_item[WITHOUT_IMAGE] == of_text
    assert all(of_item[number] == names for number in (0, 3, 4, 5, 6))
    assert all(0 <= row["value"] <= 1 + 1e-6 for row in rows.values())


def test_evenness_is_the_entropy_of_the_weights_that_are_shown(labelled):
    found = labelled()
    behaviour = by_key(found["behaviour"], "record", "name")
    (look,) = [
        row for row in found["looks"] if (row["record"], row["modality"]) == ("test-5", "text")
    ]
    entropy = -sum(weight * log(weight) for weight in look["weights"] if weight)
    expected = entropy / log(len(look["weights"]))
    assert behaviour["test-5", "evenness_words"]["value"] == pytest.approx(expected, abs=2e-3)


def test_places_are_evenly_spaced_and_no_more_than_there_are():
    assert evenly_spaced_indices(7, 4) == [0, 1, 3, 5]
    assert evenly_spaced_indices(2, 4) == [0, 1]
    assert evenly_spaced_indices(5, 0) == evenly_spaced_indices(0, 5) == []
