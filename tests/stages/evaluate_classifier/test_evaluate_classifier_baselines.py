"""The comparison of a classifier with its baselines: by hand, and the bootstrap as a loop."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from stages.evaluate_classifier.baselines import (
    choose_baseline,
    compute_baselines,
    describe_baseline,
)
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.shared.core import schemas
from stages.shared.metrics.classification import extract_lenient_entities
from stages.shared.metrics.common import describe_difference, judge_difference
from stages.shared.runtime.stage import InputError
from tests.support import baseline_outputs, mm_orient_outputs, muse_outputs

CONFIG = EvaluateClassifierConfig(
    entity_rule="lenient",
    num_bootstrap_samples=40,
    seed=3,
    max_below_ceiling=0.05,
    max_above_ceiling_standard_errors=2.0,
)


def write_and_compare(folder: Path, rows: list[dict], **baselines) -> dict:
    schemas.write_parquet(folder / "labels/labels.parquet", rows, schemas.LABEL_PREDICTIONS)
    baseline_outputs.write_baselines(folder / "baselines", rows, **baselines)
    return compare(folder)


def compare(folder: Path) -> dict:
    return compute_baselines(folder / "labels", folder / "baselines", "test", "MuSE", CONFIG)


def read_baselines(folder: Path) -> list[dict]:
    return schemas.read_parquet(folder / "baselines/labels.parquet", schemas.BASELINE_PREDICTIONS)


def write_baselines(folder: Path, rows: list[dict]) -> None:
    schemas.write_parquet(folder / "baselines/labels.parquet", rows, schemas.BASELINE_PREDICTIONS)


def count_f1(rows: list[dict]) -> float:
    """F1 of entities, or accuracy, as slow loops."""
    if rows[0]["task"] != "entities":
        return sum(row["gold"] == row["predicted"] for row in rows) / len(rows)
    correct = total = 0
    for row in rows:
        gold, predicted = (extract_lenient_entities(row[key]) for key in ("gold", "predicted"))
        correct, total = correct + len(gold & predicted), total + len(gold) + len(predicted)
    return 2 * correct / total if total else 0.0


def bootstrap_by_loops(model: list[dict], baseline: list[dict]) -> tuple[float, float]:
    """Mean over tasks of the model's score minus the baseline's, and its standard error."""
    records = sorted({row["record"] for row in model})

    def difference(drawn: list[str]) -> float:
        means = []
        for rows in (model, baseline):
            by_task = defaultdict(list)
            for record in drawn:
                for row in rows:
                    if row["record"] == record:
                        by_task[row["task"]].append(row)
            means.append(np.mean([count_f1(part) for part in by_task.values()]))
        return float(means[0] - means[1])

    generator, samples = np.random.default_rng(CONFIG.seed), []
    for _ in range(CONFIG.num_bootstrap_samples):
        drawn = generator.integers(len(records), size=len(records))
        samples.append(difference([records[index] for index in drawn]))
    return difference(records), float(np.std(samples, ddof=1))


@pytest.mark.parametrize("task", ["entities", "sentiment", "memes"])
def test_the_paired_bootstrap_equals_one_with_loops(tmp_path, task):
    if task == "memes":
        rows = [row for row in mm_orient_outputs.make_label_rows() if row["gold"]]
    else:
        rows = muse_outputs.make_label_rows(task)
    result = write_and_compare(tmp_path, rows)
    model = [row for row in rows if (row["split"], row["inputs"]) == ("test", "both")]
    for baseline in ("majority", "crf" if task == "entities" else "logistic_regression"):
        for inputs, score in result["scores"][baseline].items():
            key = baseline, inputs, "test"
            other = [
                row
                for row in read_baselines(tmp_path)
                if (row["baseline"], row["inputs"], row["split"]) == key
            ]
            value, error = bootstrap_by_loops(model, other)
            assert score["difference"]["value"] == pytest.approx(value)
            if len({row["task"] for row in model}) == 1:  # a drawn task without items is left out
                assert score["difference"]["standard_error"] == pytest.approx(error)


def test_scores_equal_those_by_hand(tmp_path):
    """3 of 4 correct by the model; 1 of 4 is negative, which the majority predicts."""
    result = write_and_compare(tmp_path, muse_outputs.make_label_rows("sentiment"))
    majority = result["scores"]["majority"]["none"]
    assert (majority["value"], majority["difference"]["value"]) == (0.25, 0.5)
    same = result["scores"]["logistic_regression"]["both"]
    assert (same["value"], same["difference"]) == (0.75, {"value": 0, "standard_error": 0})
    assert (same["verdict"], result["comparison"]["verdict"]) == ("unclear", "unclear")
    assert result["comparison"]["sentence"] == (
        "MuSE does not differ surely from logistic regression on the same features: +0.000 (0.000)."
    )


def test_a_better_baseline_is_named_in_words(tmp_path):
    rows = muse_outputs.make_label_rows("sentiment")
    wrong = [row | {"predicted": ["none"]} for row in rows]
    write_and_compare(tmp_path, wrong)
    fitted = [
        row | {"predicted": row["gold"] if row["inputs"] == "both" else row["predicted"]}
        for row in read_baselines(tmp_path)
    ]
    write_baselines(tmp_path, fitted)
    comparison = compare(tmp_path)["comparison"]
    assert comparison["verdict"] == "worse" and comparison["difference"]["value"] == -1
    assert comparison["sentence"] == (
        "MuSE is below logistic regression on the same features by 1.000 (0.000)."
    )


def test_the_tasks_of_memes_have_their_own_scores(tmp_path):
    rows = mm_orient_outputs.make_label_rows()
    result = write_and_compare(tmp_path, rows)
    tasks = {row["task"] for row in rows if row["gold"]}
    score = result["scores"]["logistic_regression"]["text"]
    assert set(score["tasks"]) == tasks
    assert np.mean([task["value"] for task in score["tasks"].values()]) == pytest.approx(
        score["value"]
    )


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.5, 0.25, "unclear"),
        (0.5, 0.2, "better"),
        (-0.5, 0.2, "worse"),
        (0.0, 0.0, "unclear"),
        (0.5, float("nan"), "unclear"),
    ],
)
def test_a_difference_is_sure_above_two_standard_errors(value, error, verdict):
    assert judge_difference({"value": value, "standard_error": error}) == verdict


def test_differences_in_words():
    beats = describe_difference("MuSE", "it", {"value": 0.012, "standard_error": 0.0055})
    assert beats == "MuSE beats it by 0.012 (0.005)."
    single = describe_difference("MuSE", "it", {"value": 0.0, "standard_error": float("nan")})
    assert single == "MuSE cannot be compared with it: there is only one item."


def test_the_baseline_on_both_inputs_is_compared_and_without_it_the_one_on_one_input():
    model, majority = ("model", "both"), ("majority", "none")
    fitted = [("logistic_regression", inputs) for inputs in ("picture", "text", "both")]
    assert choose_baseline([model, majority, *fitted]) == ("logistic_regression", "both")
    assert choose_baseline([model, majority, *fitted[:1]]) == ("logistic_regression", "picture")
    assert choose_baseline([model, majority]) == majority
    assert describe_baseline(fitted[0], True) == "logistic regression on the image features"
    assert describe_baseline(fitted[2], False) == "logistic regression on frozen features"
    assert describe_baseline(majority, True) == "the majority class"


def test_the_reasons_for_omitted_inputs_are_kept(tmp_path):
    rows = muse_outputs.make_label_rows("entities")
    result = write_and_compare(tmp_path, rows, omitted={"picture": "no words"})
    assert result["omitted"] == {"picture": "no words"}


def test_baselines_of_other_items_are_refused(tmp_path):
    write_and_compare(tmp_path, muse_outputs.make_label_rows("sentiment"))
    rows = read_baselines(tmp_path)
    for changed in (rows[3:], [rows[0] | {"gold": ["other"]}, *rows[1:]]):
        write_baselines(tmp_path, changed)
        with pytest.raises(InputError, match="has other items than the predictions of the model"):
            compare(tmp_path)


def test_missing_baselines_are_named(tmp_path):
    write_and_compare(tmp_path, muse_outputs.make_label_rows("sentiment"))
    (tmp_path / "baselines/summary.json").unlink()
    with pytest.raises(InputError, match=r"summary\.json is missing: run `dvc repro`"):
        compare(tmp_path)


def test_the_comparison_is_json(tmp_path):
    comparison = write_and_compare(tmp_path, muse_outputs.make_label_rows("entities"))
    assert json.loads(json.dumps(comparison)) == comparison
