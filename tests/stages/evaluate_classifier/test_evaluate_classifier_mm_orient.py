"""Metrics of memes by hand: each task on its labeled items, and the mean over tasks.

Four test items: all are predicted funny, which is correct for three; sentiment, unlabeled for b, is
correct for two of three. Both validation items are correct.
"""

import json
import random
from contextlib import nullcontext
from math import sqrt
from pathlib import Path
from unittest.mock import Mock

import pytest

from stages.evaluate_classifier import __main__ as stage
from stages.evaluate_classifier import mm_orient
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.shared.core import schemas
from stages.shared.runtime.stage import InputError
from tests.support import baseline_outputs

CONFIG = EvaluateClassifierConfig(
    entity_rule="lenient",
    num_bootstrap_samples=50,
    seed=0,
    max_below_ceiling=0.05,
    max_above_ceiling_standard_errors=2.0,
)
SPLITS = dict.fromkeys("abcd", "test") | dict.fromkeys("vw", "validation")
TASKS = ("humour", "sentiment")
GOLD = {
    "humour": dict.fromkeys("abcvw", "funny") | {"d": "not_funny"},
    "sentiment": {"a": "good", "c": "bad", "d": "neutral", "v": "good", "w": "bad"},
}
WRONG_PREDICTIONS = {  # by inputs; other predictions equal GOLD
    "both": {("d", "humour"): "funny", ("c", "sentiment"): "good"},
    "text": {(record, "humour"): "not_funny" for record in "ab"},
    "picture": {(record, "sentiment"): "none" for record in "acd"},
}
ROOM = {"humour": 0.5, "sentiment": 0.25}  # ceiling of both inputs minus the best of one input
CEILINGS = {
    "humour": {"text": 0.5, "picture": 0.25, "both": 1.0},
    "sentiment": {"text": 0.25, "picture": 0.5, "both": 0.75},
    "sarcasm": {"text": 0.5, "picture": 0.5, "both": 1.0},  # not learned
}
DIAGNOSTICS = [("a", "density_tt", 0.25), ("b", "density_tt", 0.75), ("a", "evenness_words", 0.5)]


def make_labels() -> list[dict]:
    """Rows of labels.parquet: validation from both inputs, test also from each single input."""
    return [
        {
            "record": record,
            "split": split,
            "inputs": inputs,
            "task": task,
            "gold": [GOLD[task][record]] if record in GOLD[task] else [],
            "predicted": [
                WRONG_PREDICTIONS[inputs].get((record, task), GOLD[task].get(record, "good"))
            ],
            "probability": [0.75],
            "cut": 2 if record == "b" else 0,
        }
        for inputs in ("both", "text", "picture")
        for record, split in SPLITS.items()
        if split == "test" or inputs == "both"
        for task in TASKS
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with its own work folder; tracking is disabled."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stage.tracking, "start_run", lambda **options: nullcontext(Mock()))
    return tmp_path


def evaluate(folder: Path, rows: list[dict], ceilings: dict | None = CEILINGS) -> dict:
    """metrics.json of these predictions; ceilings: those of the corpus."""
    schemas.write_parquet(folder / "labels/labels.parquet", rows, schemas.LABEL_PREDICTIONS)
    diagnostics = [
        dict(zip(schemas.DIAGNOSTICS.names, (r, "test", *x), strict=True)) for r, *x in DIAGNOSTICS
    ]
    schemas.write_parquet(folder / "labels/behaviour.parquet", diagnostics, schemas.DIAGNOSTICS)
    (folder / "labels/parameters.json").write_text(json.dumps({"trained": 12, "frozen": 0}))
    (folder / "ingest").mkdir(exist_ok=True)
    if ceilings is not None:
        task_ceilings = {
            task: {
                inputs: {"expected": value + 0.01, "realised": value}
                for inputs, value in values.items()
            }
            for task, values in ceilings.items()
        }
        content = {
            "rule": "a rule",
            "metric": "accuracy",
            "validation": task_ceilings,
            "test": task_ceilings,
        }
        (folder / "ingest/ceilings.json").write_text(json.dumps(content))
    baseline_outputs.write_baselines(folder / "baselines", rows)
    paths = (folder / name for name in ("ingest", "labels", "baselines", "target"))
    stage.main("mm_orient", mm_orient, CONFIG, *paths)
    return json.loads((folder / "target/metrics.json").read_text())


def error_by_hand(rows: list[dict], room: dict[str, float]) -> float:
    """Clustered standard error of the mean over tasks of accuracy / room."""
    labeled = [row for row in rows if row["gold"] and row["inputs"] == "both"]
    labeled = [row for row in labeled if row["split"] == "test"]
    contributions = dict.fromkeys({row["record"] for row in labeled}, 0.0)
    for task in TASKS:
        rows = [row for row in labeled if row["task"] == task]
        accuracy = sum(row["gold"] == row["predicted"] for row in rows) / len(rows)
        for row in rows:
            residual = (row["gold"] == row["predicted"]) - accuracy
            contributions[row["record"]] += residual / (len(TASKS) * len(rows) * room[task])
    n = len(contributions)
    return sqrt(n / (n - 1) * sum(value**2 for value in contributions.values()))


def approx(value: float):
    return pytest.approx(value, abs=2e-6)  # metrics are rounded to six digits


def test_the_metrics_of_each_task_equal_those_by_hand(folder):
    """Humour: F1 of funny is 2 x .75 / 1.75 = 6/7, of not_funny 0. Sentiment: 2/3, 0, 1."""
    metrics = evaluate(folder, make_labels())
    assert (metrics["task"], metrics["split"], metrics["items"]) == ("memes", "test", 4)
    humour, sentiment = (metrics["tasks"][task] for task in TASKS)
    assert (humour["items"], sentiment["items"]) == (4, 3)
    assert humour["score"] == {"metric": "accuracy", "value": 0.75, "standard_error": 0.25}
    assert humour["weighted_f1"]["value"] == approx(0.75 * 6 / 7)
    assert humour["macro_f1"]["value"] == approx(3 / 7)
    assert sentiment["accuracy"]["value"] == approx(2 / 3)
    assert sentiment["weighted_f1"]["value"] == sentiment["macro_f1"]["value"] == approx(5 / 9)
    assert humour["confusion"]["not_funny"]["funny"] == 1


def test_the_means_over_tasks_equal_those_by_hand(folder):
    metrics = evaluate(folder, make_labels())
    assert metrics["score"]["metric"] == "accuracy"
    assert metrics["score"]["value"] == metrics["accuracy"]["value"] == approx(17 / 24)
    assert metrics["weighted_f1"]["value"] == approx((9 / 14 + 5 / 9) / 2)
    assert metrics["macro_f1"]["value"] == approx((3 / 7 + 5 / 9) / 2)


def test_the_standard_error_of_the_mean_is_clustered_by_item(folder):
    """Contributions: a (1/4)/8 + (1/3)/6, b (1/4)/8, c (1/4)/8 - (2/3)/6, d -(3/4)/8 + (1/3)/6."""
    metrics = evaluate(folder, make_labels())
    contributions = [1 / 32 + 1 / 18, 1 / 32, 1 / 32 - 1 / 9, -3 / 32 + 1 / 18]
    assert sum(contributions) == pytest.approx(0)
    by_hand = sqrt(4 / 3 * sum(value**2 for value in contributions))
    assert metrics["score"]["standard_error"] == approx(by_hand)
    assert error_by_hand(make_labels(), dict.fromkeys(TASKS, 1.0)) == pytest.approx(by_hand)


def test_the_skill_of_each_task_and_the_mean_equal_those_by_hand(folder):
    """(.75 - .5) / .5 = 1/2 and (2/3 - .5) / .25 = 2/3."""
    metrics = evaluate(folder, make_labels())
    skills = [metrics["tasks"][task]["skill"]["value"] for task in TASKS]
    assert skills == [approx(1 / 2), approx(2 / 3)]
    assert metrics["tasks"]["humour"]["skill"]["standard_error"] == approx(0.25 / 0.5)
    assert metrics["skill"]["value"] == approx(7 / 12)
    assert metrics["skill"]["standard_error"] == approx(error_by_hand(make_labels(), ROOM))
    assert metrics["ceilings"]["text"] == {"expected": 0.385, "realised": 0.375}
    assert metrics["ceilings"]["both"]["realised"] == 0.875


def test_the_standard_error_equals_the_loop_for_random_predictions(folder):
    generator = random.Random(0)
    rows = [
        row | {"predicted": [generator.choice([*row["gold"], "other"])]} if row["gold"] else row
        for row in make_labels()
    ]
    metrics = evaluate(folder, rows)
    assert metrics["score"]["standard_error"] == approx(
        error_by_hand(rows, dict.fromkeys(TASKS, 1.0))
    )
    assert metrics["skill"]["standard_error"] == approx(error_by_hand(rows, ROOM))


def test_unlabeled_items_are_not_scored(folder):
    changed = [row | {"predicted": ["bad"]} if not row["gold"] else row for row in make_labels()]
    assert evaluate(folder, make_labels()) == evaluate(folder, changed)
    rows = schemas.read_parquet(folder / "target/items.parquet", schemas.LABEL_SCORES)
    assert len(rows) == 3 * 7 + 4
    assert {row["task"] for row in rows if row["record"] == "b"} == {"humour"}
    test_rows = [row for row in rows if (row["split"], row["inputs"]) == ("test", "both")]
    assert sum(row["right"] for row in test_rows) == 5
    assert {row["cut"] for row in test_rows if row["record"] == "b"} == {2}


def test_single_modality_scores_are_compared_to_ceilings_by_task_and_on_average(folder):
    """From the text, humour has accuracy 2/4 and sentiment 1: mean .75, ceiling .375."""
    metrics = evaluate(folder, make_labels())["single_modality"]
    text, image = metrics["text"], metrics["picture"]
    assert (text["tasks"]["humour"]["value"], text["tasks"]["humour"]["verdict"]) == (0.5, "inside")
    assert text["tasks"]["sentiment"]["verdict"] == "above"
    assert (text["value"], text["ceiling"]) == (0.75, 0.375)
    assert text["high"] == approx(0.375 + 2 * text["standard_error"])
    assert text["low"] == approx(0.325) and text["verdict"] == "above"
    assert (image["value"], image["tasks"]["sentiment"]["verdict"]) == (0.5, "below")


def test_a_corpus_without_ceilings_has_only_scores(folder):
    metrics = evaluate(folder, make_labels(), ceilings=None)
    assert not {"ceilings", "skill"} & (metrics.keys() | metrics["tasks"]["humour"].keys())
    assert metrics["single_modality"]["text"].keys() == {"value", "standard_error", "tasks"}


def test_without_ceilings_of_one_task_there_is_no_mean_skill(folder):
    metrics = evaluate(folder, make_labels(), ceilings={"humour": CEILINGS["humour"]})
    assert metrics["tasks"]["humour"]["skill"]["value"] == 0.5
    assert not {"ceilings", "skill"} & (metrics.keys() | metrics["tasks"]["sentiment"].keys())
    text = metrics["single_modality"]["text"]
    assert "verdict" in text["tasks"]["humour"]
    assert "verdict" not in text and "verdict" not in text["tasks"]["sentiment"]


def test_skill_is_unavailable_if_one_input_reaches_the_ceiling(folder):
    ceilings = CEILINGS | {"sentiment": {"text": 0.25, "picture": 0.75, "both": 0.75}}
    metrics = evaluate(folder, make_labels(), ceilings)
    unavailable = {"value": "unavailable", "standard_error": "unavailable"}
    assert metrics["skill"] == metrics["tasks"]["sentiment"]["skill"] == unavailable
    assert metrics["tasks"]["humour"]["skill"]["value"] == 0.5


def test_one_item_has_no_standard_error(folder):
    metrics = evaluate(folder, [row for row in make_labels() if row["record"] in "av"])
    assert metrics["score"] == {"metric": "accuracy", "value": 1, "standard_error": "unavailable"}
    assert metrics["skill"]["standard_error"] == "unavailable"


@pytest.mark.parametrize("has_test_rows", [True, False])
def test_without_labeled_test_items_validation_is_scored(folder, has_test_rows):
    rows = [row | {"gold": []} if row["split"] == "test" else row for row in make_labels()]
    metrics = evaluate(
        folder, [row for row in rows if has_test_rows or row["split"] == "validation"]
    )
    assert (metrics["split"], metrics["items"]) == ("validation", 2)
    assert metrics["score"]["value"] == 1 and "single_modality" not in metrics
    assert metrics["validation"]["score"] == metrics["score"]


def test_validation_has_the_same_metrics(folder):
    metrics = evaluate(folder, make_labels())["validation"]
    assert (metrics["items"], metrics["score"]["value"]) == (2, 1)
    assert metrics["skill"]["value"] == approx(((1 - 0.5) / 0.5 + (1 - 0.5) / 0.25) / 2)
    assert not {"split", "single_modality", "behaviour"} & metrics.keys()


def test_diagnostics_are_means_over_items_with_a_value(folder):
    metrics = evaluate(folder, make_labels())
    assert metrics["behaviour"] == {"density_tt": 0.5, "evenness_words": 0.5}
    assert metrics["parameters"] == {"trained": 12, "frozen": 0}


@pytest.mark.parametrize("rows", [[], [row | {"gold": []} for row in make_labels()]])
def test_predictions_without_a_labeled_item_are_rejected(folder, rows):
    with pytest.raises(InputError, match="neither a test nor a validation item with a label"):
        evaluate(folder, rows)
    assert not (folder / "target").exists()


def test_the_order_of_predictions_does_not_matter(folder):
    metrics = evaluate(folder, make_labels())
    assert evaluate(folder, random.Random(0).sample(make_labels(), len(make_labels()))) == metrics
