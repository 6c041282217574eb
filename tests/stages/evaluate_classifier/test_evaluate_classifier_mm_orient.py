"""Scores of memes by hand: each task by what somebody judged, and the mean over tasks.

Of four test items humour is right three times, all are said to be funny; sentiment, which nobody
judged of b, twice of three. Two validation items are right.
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

PARAMS = EvaluateClassifierConfig(
    num_bootstrap_samples=50, seed=0, max_below_ceiling=0.05, max_above_ceiling_standard_errors=2.0
)
SPLITS = dict.fromkeys("abcd", "test") | dict.fromkeys("vw", "validation")
TASKS = ("humour", "sentiment")
GOLD = {
    "humour": dict.fromkeys("abcvw", "funny") | {"d": "not_funny"},
    "sentiment": {"a": "good", "c": "bad", "d": "neutral", "v": "good", "w": "bad"},
}
WRONG = {  # what was predicted instead, by inputs
    "both": {("d", "humour"): "funny", ("c", "sentiment"): "good"},
    "text": {(record, "humour"): "not_funny" for record in "ab"},
    "picture": {(record, "sentiment"): "none" for record in "acd"},
}
ROOM = {"humour": 0.5, "sentiment": 0.25}  # between the best ceiling of one input and both
CEILINGS = {
    "humour": {"text": 0.5, "picture": 0.25, "both": 1.0},
    "sentiment": {"text": 0.25, "picture": 0.5, "both": 0.75},
    "sarcasm": {"text": 0.5, "picture": 0.5, "both": 1.0},  # which was not learned
}
BEHAVIOUR = [("a", "density_tt", 0.25), ("b", "density_tt", 0.75), ("a", "evenness_words", 0.5)]


def labels() -> list[dict]:
    """Rows of labels.parquet: of validation from both inputs, of test from each as well."""
    return [
        {
            "record": record,
            "split": split,
            "inputs": inputs,
            "task": task,
            "gold": [GOLD[task][record]] if record in GOLD[task] else [],
            "predicted": [WRONG[inputs].get((record, task), GOLD[task].get(record, "good"))],
            "probability": [0.75],
            "cut": 2 if record == "b" else 0,
        }
        for inputs in ("both", "text", "picture")
        for record, split in SPLITS.items()
        if split == "test" or inputs == "both"
        for task in TASKS
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose locks stay in it, and nothing is tracked."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stage.tracking, "start_run", lambda **given: nullcontext(Mock()))
    return tmp_path


def run(place: Path, rows: list[dict], ceilings: dict | None = CEILINGS) -> dict:
    """metrics.json of a reader that labelled like this; ceilings: what the corpus knows."""
    schemas.write_parquet(place / "labels/labels.parquet", rows, schemas.LABEL_PREDICTIONS)
    behaviour = [
        dict(zip(schemas.DIAGNOSTICS.names, (r, "test", *x), strict=True)) for r, *x in BEHAVIOUR
    ]
    schemas.write_parquet(place / "labels/behaviour.parquet", behaviour, schemas.DIAGNOSTICS)
    (place / "labels/parameters.json").write_text(json.dumps({"trained": 12, "frozen": 0}))
    (place / "ingest").mkdir(exist_ok=True)
    if ceilings is not None:
        known = {
            task: {
                inputs: {"expected": value + 0.01, "realised": value}
                for inputs, value in of_task.items()
            }
            for task, of_task in ceilings.items()
        }
        content = {"rule": "a rule", "metric": "accuracy", "validation": known, "test": known}
        (place / "ingest/ceilings.json").write_text(json.dumps(content))
    stage.main("reader", mm_orient, PARAMS, place / "ingest", place / "labels", place / "target")
    return json.loads((place / "target/metrics.json").read_text())


def error_again(rows: list[dict], room: dict[str, float]) -> float:
    """What each item adds to the mean of right_t / room_t over the tasks, squared and summed."""
    judged = [row for row in rows if row["gold"] and row["inputs"] == "both"]
    judged = [row for row in judged if row["split"] == "test"]
    added = dict.fromkeys({row["record"] for row in judged}, 0.0)
    for task in TASKS:
        of_task = [row for row in judged if row["task"] == task]
        accuracy = sum(row["gold"] == row["predicted"] for row in of_task) / len(of_task)
        for row in of_task:
            off = (row["gold"] == row["predicted"]) - accuracy
            added[row["record"]] += off / (len(TASKS) * len(of_task) * room[task])
    return sqrt(len(added) / (len(added) - 1) * sum(value**2 for value in added.values()))


def close(value: float):
    return pytest.approx(value, abs=2e-6)  # six digits are written


def test_each_task_by_hand(place):
    """Humour: F1 of funny is 2 x .75 / 1.75 = 6/7, of not_funny 0. Sentiment: 2/3, 0, 1."""
    found = run(place, labels())
    assert (found["task"], found["split"], found["items"]) == ("memes", "test", 4)
    humour, sentiment = (found["tasks"][task] for task in TASKS)
    assert (humour["items"], sentiment["items"]) == (4, 3)
    assert humour["score"] == {"metric": "accuracy", "value": 0.75, "standard_error": 0.25}
    assert humour["weighted_f1"]["value"] == close(0.75 * 6 / 7)
    assert humour["macro_f1"]["value"] == close(3 / 7)
    assert sentiment["accuracy"]["value"] == close(2 / 3)
    assert sentiment["weighted_f1"]["value"] == sentiment["macro_f1"]["value"] == close(5 / 9)
    assert humour["confusion"]["not_funny"]["funny"] == 1


def test_the_means_over_tasks_by_hand(place):
    found = run(place, labels())
    assert found["score"]["metric"] == "accuracy"
    assert found["score"]["value"] == found["accuracy"]["value"] == close(17 / 24)
    assert found["weighted_f1"]["value"] == close((9 / 14 + 5 / 9) / 2)
    assert found["macro_f1"]["value"] == close((3 / 7 + 5 / 9) / 2)


def test_the_error_of_the_mean_knows_that_tasks_share_their_items(place):
    """By hand: a adds (1/4)/8 + (1/3)/6, b (1/4)/8, c (1/4)/8 - (2/3)/6, d -(3/4)/8 + (1/3)/6."""
    found = run(place, labels())
    added = [1 / 32 + 1 / 18, 1 / 32, 1 / 32 - 1 / 9, -3 / 32 + 1 / 18]
    assert sum(added) == pytest.approx(0)
    by_hand = sqrt(4 / 3 * sum(value**2 for value in added))
    assert found["score"]["standard_error"] == close(by_hand)
    assert error_again(labels(), dict.fromkeys(TASKS, 1.0)) == pytest.approx(by_hand)


def test_skill_of_each_task_and_their_mean(place):
    """(.75 - .5) / .5 = 1/2 and (2/3 - .5) / .25 = 2/3."""
    found = run(place, labels())
    skills = [found["tasks"][task]["skill"]["value"] for task in TASKS]
    assert skills == [close(1 / 2), close(2 / 3)]
    assert found["tasks"]["humour"]["skill"]["standard_error"] == close(0.25 / 0.5)
    assert found["skill"]["value"] == close(7 / 12)
    assert found["skill"]["standard_error"] == close(error_again(labels(), ROOM))
    assert found["ceilings"]["text"] == {"expected": 0.385, "realised": 0.375}
    assert found["ceilings"]["both"]["realised"] == 0.875


def test_errors_are_those_of_any_labels(place):
    chance = random.Random(0)
    rows = [
        row | {"predicted": [chance.choice([*row["gold"], "other"])]} if row["gold"] else row
        for row in labels()
    ]
    found = run(place, rows)
    assert found["score"]["standard_error"] == close(error_again(rows, dict.fromkeys(TASKS, 1.0)))
    assert found["skill"]["standard_error"] == close(error_again(rows, ROOM))


def test_what_nobody_judged_is_not_scored(place):
    changed = [row | {"predicted": ["bad"]} if not row["gold"] else row for row in labels()]
    assert run(place, labels()) == run(place, changed)
    rows = schemas.read_parquet(place / "target/items.parquet", schemas.LABEL_SCORES)
    assert len(rows) == 3 * 7 + 4
    assert {row["task"] for row in rows if row["record"] == "b"} == {"humour"}
    of_test = [row for row in rows if (row["split"], row["inputs"]) == ("test", "both")]
    assert sum(row["right"] for row in of_test) == 5
    assert {row["cut"] for row in of_test if row["record"] == "b"} == {2}


def test_one_input_is_compared_with_its_ceiling_by_task_and_on_average(place):
    """From the text humour is right twice of four, sentiment always: .75, the ceiling .375."""
    found = run(place, labels())["single_modality"]
    text, picture = found["text"], found["picture"]
    assert (text["tasks"]["humour"]["value"], text["tasks"]["humour"]["verdict"]) == (0.5, "inside")
    assert text["tasks"]["sentiment"]["verdict"] == "above"
    assert (text["value"], text["ceiling"]) == (0.75, 0.375)
    assert text["high"] == close(0.375 + 2 * text["standard_error"])
    assert text["low"] == close(0.325) and text["verdict"] == "above"
    assert (picture["value"], picture["tasks"]["sentiment"]["verdict"]) == (0.5, "below")


def test_a_corpus_that_knows_no_ceilings_has_scores_alone(place):
    found = run(place, labels(), ceilings=None)
    assert not {"ceilings", "skill"} & (found.keys() | found["tasks"]["humour"].keys())
    assert found["single_modality"]["text"].keys() == {"value", "standard_error", "tasks"}


def test_where_one_task_has_no_ceilings_there_is_no_mean_skill(place):
    found = run(place, labels(), ceilings={"humour": CEILINGS["humour"]})
    assert found["tasks"]["humour"]["skill"]["value"] == 0.5
    assert not {"ceilings", "skill"} & (found.keys() | found["tasks"]["sentiment"].keys())
    text = found["single_modality"]["text"]
    assert "verdict" in text["tasks"]["humour"]
    assert "verdict" not in text and "verdict" not in text["tasks"]["sentiment"]


def test_where_one_input_allows_all_there_is_no_skill(place):
    ceilings = CEILINGS | {"sentiment": {"text": 0.25, "picture": 0.75, "both": 0.75}}
    found = run(place, labels(), ceilings)
    nothing = {"value": "unavailable", "standard_error": "unavailable"}
    assert found["skill"] == found["tasks"]["sentiment"]["skill"] == nothing
    assert found["tasks"]["humour"]["skill"]["value"] == 0.5


def test_one_item_has_no_error(place):
    found = run(place, [row for row in labels() if row["record"] in "av"])
    assert found["score"] == {"metric": "accuracy", "value": 1, "standard_error": "unavailable"}
    assert found["skill"]["standard_error"] == "unavailable"


@pytest.mark.parametrize("there", [True, False])
def test_where_no_test_item_was_judged_validation_is_scored_and_named_so(place, there):
    rows = [row | {"gold": []} if row["split"] == "test" else row for row in labels()]
    found = run(place, [row for row in rows if there or row["split"] == "validation"])
    assert (found["split"], found["items"]) == ("validation", 2)
    assert found["score"]["value"] == 1 and "single_modality" not in found
    assert found["validation"]["score"] == found["score"]


def test_validation_has_the_same_figures_to_choose_settings_by(place):
    found = run(place, labels())["validation"]
    assert (found["items"], found["score"]["value"]) == (2, 1)
    assert found["skill"]["value"] == close(((1 - 0.5) / 0.5 + (1 - 0.5) / 0.25) / 2)
    assert not {"split", "single_modality", "behaviour"} & found.keys()


def test_behaviour_is_the_mean_over_items_with_a_figure(place):
    found = run(place, labels())
    assert found["behaviour"] == {"density_tt": 0.5, "evenness_words": 0.5}
    assert found["parameters"] == {"trained": 12, "frozen": 0}


@pytest.mark.parametrize("rows", [[], [row | {"gold": []} for row in labels()]])
def test_nothing_to_score_is_one_sentence(place, rows):
    with pytest.raises(InputError, match="neither a test nor a validation item with a label"):
        run(place, rows)
    assert not (place / "target").exists()


def test_the_order_of_labels_changes_no_figure(place):
    straight = run(place, labels())
    assert run(place, random.Random(0).sample(labels(), len(labels()))) == straight
