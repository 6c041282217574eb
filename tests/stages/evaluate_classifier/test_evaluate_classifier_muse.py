import json
import random
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from stages.evaluate_classifier import __main__ as stage
from stages.evaluate_classifier import muse
from stages.evaluate_classifier.common import EvaluateClassifierConfig
from stages.shared.core import schemas
from stages.shared.core.config import build_config
from stages.shared.metrics.alignment import compute_alignment
from stages.shared.runtime.stage import InputError
from tests.support import baseline_outputs, muse_outputs

CONFIG = EvaluateClassifierConfig(
    entity_rule="lenient",
    num_bootstrap_samples=50,
    seed=0,
    max_below_ceiling=0.05,
    max_above_ceiling_standard_errors=2.0,
)


@pytest.fixture(params=["entities", "sentiment"])
def task(request):
    return request.param


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with its own work folder; tracking is disabled."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stage.tracking, "start_run", lambda **options: nullcontext(Mock()))
    return tmp_path


def run_stage(folder: Path, config: EvaluateClassifierConfig) -> None:
    paths = (folder / name for name in ("ingest", "labels", "baselines", "target"))
    stage.main("muse", muse, config, *paths)


def evaluate(
    folder: Path,
    rows: list[dict],
    has_ceilings: bool = True,
    config: EvaluateClassifierConfig = CONFIG,
) -> dict:
    """metrics.json of these predictions; has_ceilings: whether the corpus has ceilings.json."""
    muse_outputs.write_classifier_outputs(
        folder / "labels",
        rows,
        muse_outputs.make_decoder_rows(),
        muse_outputs.make_embedding_rows(),
    )
    (folder / "ingest").mkdir(exist_ok=True)
    if has_ceilings:
        muse_outputs.write_ceilings(folder / "ingest", rows[0]["task"])
    baseline_outputs.write_baselines(folder / "baselines", rows)
    run_stage(folder, config)
    return json.loads((folder / "target/metrics.json").read_text())


def test_entity_metrics_equal_those_by_hand(folder):
    """3 of 4 gold entities are predicted. By the lenient rule 5 are predicted: the I- tag without
    B- in b and NEW in c are wrong; by the strict rule, the I- tag in b is not an entity."""
    metrics = evaluate(folder, muse_outputs.make_label_rows("entities"))
    lenient, strict = metrics["lenient"], metrics["strict"]
    assert (metrics["task"], metrics["split"], metrics["items"]) == ("entities", "test", 4)
    assert [lenient[name] for name in ("right", "predicted", "gold")] == [3, 5, 4]
    assert lenient["f1"] == metrics["score"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert [strict[name] for name in ("right", "predicted", "gold")] == [3, 4, 4]
    assert strict["f1"] == metrics["validation"]["strict"]["f1"] - 0.25 == 0.75
    assert (
        metrics["score"]["rule"] == "lenient" and "conlleval" in metrics["measured_by"]["lenient"]
    )
    assert lenient["by_type"]["NEW"]["precision"] == 0
    assert metrics["lenient"]["standard_error"] == metrics["score"]["standard_error"] > 0


def test_the_main_score_the_skill_and_the_baselines_follow_the_entity_rule(folder):
    """Strict F1 is .75; its skill is (.75 - .5) / (1 - .5)."""
    rows = muse_outputs.make_label_rows("entities")
    lenient, strict = (
        evaluate(folder, rows, config=replace(CONFIG, entity_rule=rule))
        for rule in ("lenient", "strict")
    )
    assert strict["score"] | {"standard_error": 0} == {
        "metric": "f1",
        "rule": "strict",
        "value": 0.75,
        "standard_error": 0,
    }
    assert strict["skill"]["value"] == 0.5
    assert [strict[rule]["f1"] for rule in ("lenient", "strict")] == [
        lenient[rule]["f1"] for rule in ("lenient", "strict")
    ]
    by_rule = [
        metrics["baselines"]["scores"]["crf"]["both"]["value"] for metrics in (lenient, strict)
    ]
    assert by_rule[0] == pytest.approx(2 / 3) and by_rule[1] == 0.75  # the model's predictions


def test_sentiment_metrics_equal_those_by_hand(folder):
    """3 of 4 correct: s^2 = .25, error .25; skill (.75 - .5) / (1 - .5), with twice the error.
    2 of 4 from the text, which is its ceiling; none from the image, below .25 - .05."""
    metrics = evaluate(folder, muse_outputs.make_label_rows("sentiment"))
    assert metrics["accuracy"] == {"value": 0.75, "standard_error": 0.25}
    assert metrics["score"] == {"metric": "accuracy", "value": 0.75, "standard_error": 0.25}
    assert metrics["skill"] == {"value": 0.5, "standard_error": 0.5}
    assert metrics["ceilings"]["text"] == {"expected": 0.51, "realised": 0.5}
    single = metrics["single_modality"]
    assert (single["text"]["value"], single["text"]["verdict"]) == (0.5, "inside")
    assert (single["picture"]["value"], single["picture"]["verdict"]) == (0, "below")
    assert single["picture"]["low"] == pytest.approx(0.2)
    assert metrics["by_class"]["neutral"]["f1"] == 1
    assert metrics["confusion"]["positive"] == {"negative": 1, "neutral": 0, "positive": 1}


def test_the_skill_of_entities_is_that_of_lenient_f1(folder):
    """(2/3 - 1/2) / (1 - 1/2) = 1/3."""
    metrics = evaluate(folder, muse_outputs.make_label_rows("entities"))
    assert metrics["skill"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    # From the text, PER of a and LOC of d: 2 of 4 predicted and of 4 gold entities are correct.
    assert metrics["single_modality"]["text"]["value"] == 0.5


def test_validation_has_the_same_metrics(folder, task):
    metrics = evaluate(folder, muse_outputs.make_label_rows(task))
    validation = metrics["validation"]
    assert validation["items"] == 2 and validation["score"]["value"] == 1
    assert validation["skill"]["value"] == 1
    assert validation["regularisers"]["caption_nats"]["value"] == 1
    assert not {"split", "single_modality", "alignment"} & validation.keys()


def test_without_test_items_validation_is_scored(folder, task):
    rows = [row for row in muse_outputs.make_label_rows(task) if row["split"] == "validation"]
    metrics = evaluate(folder, rows)
    assert (metrics["split"], metrics["items"]) == ("validation", 2)
    assert metrics["score"]["value"] == 1 and "single_modality" not in metrics
    assert metrics["validation"]["score"] == metrics["score"]
    assert (
        metrics["alignment"]["after"] == "unavailable: fewer than two items with text and picture"
    )


def test_predictions_of_neither_split_are_rejected(folder, task):
    rows = [row | {"split": "train"} for row in muse_outputs.make_label_rows(task)]
    with pytest.raises(InputError, match="neither a test nor a validation item"):
        evaluate(folder, rows)
    assert not (folder / "target").exists()


def test_every_test_item_is_scored_and_truncated_words_are_counted(folder, task):
    metrics = evaluate(folder, muse_outputs.make_label_rows(task))
    assert metrics["items"] == 4 and metrics["cut"] == {"items": 1, "words": 2}
    rows = schemas.read_parquet(folder / "target/items.parquet", schemas.LABEL_SCORES)
    assert len(rows) == 4 * 3 + 2
    test_rows = [row for row in rows if (row["split"], row["inputs"]) == ("test", "both")]
    correct, gold = (sum(row[name] for row in test_rows) for name in ("right", "gold"))
    assert (correct, gold) == (3, 4)  # for both tasks
    (b,) = [row for row in test_rows if row["record"] == "b"]
    counts = [b[name] for name in ("predicted", "strict_predicted", "span_right")]
    assert counts == ([1, 0, 0] if task == "entities" else [1, None, None])


def test_a_corpus_without_ceilings_has_only_scores(folder, task):
    metrics = evaluate(folder, muse_outputs.make_label_rows(task), has_ceilings=False)
    assert not {"ceilings", "skill"} & metrics.keys()
    assert metrics["single_modality"]["text"].keys() == {"value", "standard_error"}


def test_without_single_modality_predictions_there_are_no_such_metrics(folder, task):
    rows = [row for row in muse_outputs.make_label_rows(task) if row["inputs"] == "both"]
    assert "single_modality" not in evaluate(folder, rows)


def test_predictions_without_entities_have_score_zero(folder):
    rows = [
        row | {"predicted": ["O"] * len(row["gold"])}
        for row in muse_outputs.make_label_rows("entities")
    ]
    metrics = evaluate(folder, rows)
    assert metrics["score"]["value"] == metrics["strict"]["f1"] == metrics["spans"]["recall"] == 0
    assert metrics["confusion"]["PER"] == {"LOC": 0, "PER": 0, "(none)": 2}


def test_regularizers_are_means_over_items_with_an_image(folder, task):
    """Nats 2 and 4: mean 3, s^2 = 2, error 1; bits one more."""
    metrics = evaluate(folder, muse_outputs.make_label_rows(task))["regularisers"]
    assert metrics["caption_nats"] == {"items": 2, "value": 3, "standard_error": 1}
    assert metrics["drawing_bits"] == {"items": 2, "value": 4, "standard_error": 1}


def test_a_model_without_regularizers_has_no_regularizer_metrics(folder, task):
    rows = muse_outputs.make_label_rows(task)
    evaluate(folder, rows)
    muse_outputs.write_classifier_outputs(folder / "labels", rows, [], [])
    run_stage(folder, CONFIG)
    metrics = json.loads((folder / "target/metrics.json").read_text())
    assert metrics["regularisers"] == {} and "unavailable" in metrics["alignment"]["before"]


def test_alignment_uses_items_of_the_scored_split_with_text_and_image(folder, task):
    """An image equals the text of the other item before the projection, its own after. Item d has
    no image, v is in another split."""
    metrics = evaluate(folder, muse_outputs.make_label_rows(task))["alignment"]
    assert metrics["before"]["items"] == metrics["after"]["items"] == 2
    assert (metrics["before"]["matched"], metrics["before"]["mismatched"]) == (0, 1)
    assert metrics["after"]["difference"] == {"value": 1, "standard_error": 0}
    assert metrics["after"]["distance"] == 0


def test_alignment_metrics_equal_those_by_hand():
    """Texts (1, 0), (1, 2): centroid (1, 1), spread 1; images (4, 0), (4, 2): (4, 1), spread 1;
    distance 3. Cosines: 1 and 8 / sqrt(5 x 20) matched, 4 / sqrt(20) and 1 / sqrt(5) mismatched."""
    metrics = compute_alignment(np.array([[1.0, 0], [1, 2]]), np.array([[4.0, 0], [4, 2]]))
    assert metrics["distance"] == pytest.approx(3)
    assert metrics["matched"] == pytest.approx(0.9)
    assert metrics["mismatched"] == pytest.approx((4 / 20**0.5 + 1 / 5**0.5) / 2)
    difference = metrics["matched"] - metrics["mismatched"]
    assert metrics["difference"]["value"] == pytest.approx(difference)


def test_mismatched_pairs_equal_a_loop():
    generator = np.random.default_rng(0)
    texts, images = generator.normal(size=(2, 7, 3))
    cosine = [[t @ p / np.linalg.norm(t) / np.linalg.norm(p) for p in images] for t in texts]
    mismatched = [cosine[i][j] for i in range(7) for j in range(7) if i != j]
    assert compute_alignment(texts, images)["mismatched"] == pytest.approx(np.mean(mismatched))


def test_identical_vectors_have_no_distance(folder):
    vectors = np.ones((3, 2))
    assert np.isnan(compute_alignment(vectors, vectors)["distance"])


def test_the_parameter_counts_of_the_model_are_copied(folder, task):
    assert (
        evaluate(folder, muse_outputs.make_label_rows(task))["parameters"]
        == muse_outputs.PARAMETERS
    )


def test_the_order_of_predictions_does_not_matter(folder, task):
    rows = muse_outputs.make_label_rows(task)
    expected = evaluate(folder, rows)
    assert evaluate(folder, random.Random(0).sample(rows, len(rows))) == expected


def test_evaluation_is_reproducible_and_standard_errors_depend_on_the_seed(folder):
    def content() -> list[bytes]:
        return [path.read_bytes() for path in sorted((folder / "target").iterdir())]

    lenient = evaluate(folder, muse_outputs.make_label_rows("entities"))["lenient"]
    contents = content()
    evaluate(folder, muse_outputs.make_label_rows("entities"))
    assert content() == contents
    reseeded = evaluate(
        folder, muse_outputs.make_label_rows("entities"), config=replace(CONFIG, seed=1)
    )["lenient"]
    assert (
        reseeded["f1"] == lenient["f1"] and reseeded["standard_error"] != lenient["standard_error"]
    )


def test_metrics_are_tracked_with_dotted_names_and_the_file_with_its_final_path(
    folder, monkeypatch
):
    tracked = Mock()
    monkeypatch.setattr(stage.tracking, "start_run", lambda **options: nullcontext(tracked))
    evaluate(folder, muse_outputs.make_label_rows("sentiment"))
    logged, _ = tracked.log_table.call_args.args
    assert logged["single_modality.text.value"] == 0.5
    assert all(isinstance(value, float) for value in logged.values())
    (compared,) = tracked.log_metrics.call_args.args
    assert compared["score"] == round(logged["score.value"], 4) and len(compared) <= 15
    headline = json.loads((folder / "target/headline.json").read_text())
    assert headline.pop("metric") == "accuracy" and headline.items() <= compared.items()
    tracked.log_artifact_hash.assert_called_once_with(
        folder / "target/metrics.json", "metrics.json"
    )


def test_too_few_bootstrap_samples_are_rejected():
    with pytest.raises(InputError, match=r"num_bootstrap_samples is 1: give 2 or more"):
        build_config(
            EvaluateClassifierConfig, asdict(CONFIG) | {"num_bootstrap_samples": 1}, "evaluation"
        )


def test_the_command_reports_a_missing_file_without_a_traceback(folder):
    names = {"ingest": "ingest", "predictions": "nowhere", "baselines": "b", "output": "target"}
    options = [f"--{option}={folder / name}" for option, name in names.items()]
    command = [sys.executable, "-m", "stages.evaluate_classifier", "--run=muse_entities", *options]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert "nowhere" in process.stderr and "Traceback" not in process.stderr
