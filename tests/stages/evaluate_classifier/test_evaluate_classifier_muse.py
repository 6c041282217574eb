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
from tests.support import muse_outputs

PARAMS = EvaluateClassifierConfig(
    num_bootstrap_samples=50, seed=0, max_below_ceiling=0.05, max_above_ceiling_standard_errors=2.0
)


@pytest.fixture(params=["entities", "sentiment"])
def task(request):
    return request.param


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose locks stay in it, and nothing is tracked."""
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stage.tracking, "start_run", lambda **given: nullcontext(Mock()))
    return tmp_path


def run(
    place: Path, rows: list[dict], known: bool = True, params: EvaluateClassifierConfig = PARAMS
) -> dict:
    """metrics.json of a reader that labelled like this; known: the corpus knows its ceilings."""
    muse_outputs.write_classifier_outputs(
        place / "labels", rows, muse_outputs.make_decoder_rows(), muse_outputs.make_embedding_rows()
    )
    (place / "ingest").mkdir(exist_ok=True)
    if known:
        muse_outputs.write_ceilings(place / "ingest", rows[0]["task"])
    stage.main("reader", muse, params, place / "ingest", place / "labels", place / "target")
    return json.loads((place / "target/metrics.json").read_text())


def test_entities_by_hand_leniently_strictly_and_by_place(place):
    """3 of 4 gold entities are found. Leniently 5 are predicted: the orphan in b and the NEW of c
    are wrong; strictly the orphan is nobody's."""
    found = run(place, muse_outputs.make_label_rows("entities"))
    lenient, strict = found["lenient"], found["strict"]
    assert (found["task"], found["split"], found["items"]) == ("entities", "test", 4)
    assert [lenient[name] for name in ("right", "predicted", "gold")] == [3, 5, 4]
    assert lenient["f1"] == found["score"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert [strict[name] for name in ("right", "predicted", "gold")] == [3, 4, 4]
    assert strict["f1"] == found["validation"]["strict"]["f1"] - 0.25 == 0.75
    assert found["score"]["rule"] == "lenient" and "conlleval" in found["measured_by"]["lenient"]
    assert lenient["by_type"]["NEW"]["precision"] == 0
    assert found["lenient"]["standard_error"] == found["score"]["standard_error"] > 0


def test_sentiment_skill_and_verdicts_by_hand(place):
    """3 of 4 right: s^2 = .25, the error .25; skill (.75 - .5) / (1 - .5), its error doubled.
    From the text alone 2 of 4, its ceiling; from the picture none, below .25 - .05."""
    found = run(place, muse_outputs.make_label_rows("sentiment"))
    assert found["accuracy"] == {"value": 0.75, "standard_error": 0.25}
    assert found["score"] == {"metric": "accuracy", "value": 0.75, "standard_error": 0.25}
    assert found["skill"] == {"value": 0.5, "standard_error": 0.5}
    assert found["ceilings"]["text"] == {"expected": 0.51, "realised": 0.5}
    single = found["single_modality"]
    assert (single["text"]["value"], single["text"]["verdict"]) == (0.5, "inside")
    assert (single["picture"]["value"], single["picture"]["verdict"]) == (0, "below")
    assert single["picture"]["low"] == pytest.approx(0.2)
    assert found["by_class"]["neutral"]["f1"] == 1
    assert found["confusion"]["positive"] == {"negative": 1, "neutral": 0, "positive": 1}


def test_skill_of_entities_is_that_of_their_lenient_f1(place):
    """(2/3 - 1/2) / (1 - 1/2) = 1/3."""
    found = run(place, muse_outputs.make_label_rows("entities"))
    assert found["skill"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    # From the text PER of a and LOC of d: 2 of 4 predicted are right, of 4 gold.
    assert found["single_modality"]["text"]["value"] == 0.5


def test_validation_has_the_same_figures_to_choose_settings_by(place, task):
    found = run(place, muse_outputs.make_label_rows(task))
    validation = found["validation"]
    assert validation["items"] == 2 and validation["score"]["value"] == 1
    assert validation["skill"]["value"] == 1
    assert validation["regularisers"]["caption_nats"]["value"] == 1
    assert not {"split", "single_modality", "alignment"} & validation.keys()


def test_a_corpus_without_test_items_has_its_validation_scored_and_named_so(place, task):
    rows = [row for row in muse_outputs.make_label_rows(task) if row["split"] == "validation"]
    found = run(place, rows)
    assert (found["split"], found["items"]) == ("validation", 2)
    assert found["score"]["value"] == 1 and "single_modality" not in found
    assert found["validation"]["score"] == found["score"]
    assert found["alignment"]["after"] == "unavailable: fewer than two items with text and picture"


def test_labels_of_neither_split_are_said_in_one_sentence(place, task):
    rows = [row | {"split": "train"} for row in muse_outputs.make_label_rows(task)]
    with pytest.raises(InputError, match="neither a test nor a validation item"):
        run(place, rows)
    assert not (place / "target").exists()


def test_every_test_item_is_scored_and_the_words_beyond_the_limit_are_counted(place, task):
    found = run(place, muse_outputs.make_label_rows(task))
    assert found["items"] == 4 and found["cut"] == {"items": 1, "words": 2}
    rows = schemas.read_parquet(place / "target/items.parquet", schemas.LABEL_SCORES)
    assert len(rows) == 4 * 3 + 2
    of_test = [row for row in rows if (row["split"], row["inputs"]) == ("test", "both")]
    right, gold = (sum(row[name] for row in of_test) for name in ("right", "gold"))
    assert (right, gold) == (3, 4)  # of either task
    (b,) = [row for row in of_test if row["record"] == "b"]
    strictly = [b[name] for name in ("predicted", "strict_predicted", "span_right")]
    assert strictly == ([1, 0, 0] if task == "entities" else [1, None, None])


def test_a_corpus_that_knows_no_ceilings_has_scores_alone(place, task):
    found = run(place, muse_outputs.make_label_rows(task), known=False)
    assert not {"ceilings", "skill"} & found.keys()
    assert found["single_modality"]["text"].keys() == {"value", "standard_error"}


def test_without_labels_from_one_modality_there_is_no_such_figure(place, task):
    rows = [row for row in muse_outputs.make_label_rows(task) if row["inputs"] == "both"]
    assert "single_modality" not in run(place, rows)


def test_a_reader_that_finds_nothing_scores_nothing(place):
    rows = [
        row | {"predicted": ["O"] * len(row["gold"])}
        for row in muse_outputs.make_label_rows("entities")
    ]
    found = run(place, rows)
    assert found["score"]["value"] == found["strict"]["f1"] == found["spans"]["recall"] == 0
    assert found["confusion"]["PER"] == {"LOC": 0, "PER": 0, "(none)": 2}


def test_regularisers_are_means_of_the_items_that_have_a_picture(place, task):
    """Nats 2 and 4: mean 3, s^2 = 2, error 1; bits one more."""
    found = run(place, muse_outputs.make_label_rows(task))["regularisers"]
    assert found["caption_nats"] == {"items": 2, "value": 3, "standard_error": 1}
    assert found["drawing_bits"] == {"items": 2, "value": 4, "standard_error": 1}


def test_a_reader_without_regularisers_has_no_figure_of_them(place, task):
    rows = muse_outputs.make_label_rows(task)
    run(place, rows)
    muse_outputs.write_classifier_outputs(place / "labels", rows, [], [])
    stage.main("reader", muse, PARAMS, place / "ingest", place / "labels", place / "target")
    found = json.loads((place / "target/metrics.json").read_text())
    assert found["regularisers"] == {} and "unavailable" in found["alignment"]["before"]


def test_alignment_compares_items_of_the_split_that_have_both(place, task):
    """Before, each picture lies at the other's text; after, at its own. Item d has no picture, v
    is of another split."""
    found = run(place, muse_outputs.make_label_rows(task))["alignment"]
    assert found["before"]["items"] == found["after"]["items"] == 2
    assert (found["before"]["matched"], found["before"]["mismatched"]) == (0, 1)
    assert found["after"]["difference"] == {"value": 1, "standard_error": 0}
    assert found["after"]["distance"] == 0


def test_closeness_by_hand():
    """Texts (1, 0), (1, 2): centroid (1, 1), spread 1; pictures (4, 0), (4, 2): (4, 1), spread 1;
    so 3 apart. Cosines: 1 and 8 / sqrt(5 x 20) matched, 4 / sqrt(20) and 1 / sqrt(5) mismatched."""
    found = compute_alignment(np.array([[1.0, 0], [1, 2]]), np.array([[4.0, 0], [4, 2]]))
    assert found["distance"] == pytest.approx(3)
    assert found["matched"] == pytest.approx(0.9)
    assert found["mismatched"] == pytest.approx((4 / 20**0.5 + 1 / 5**0.5) / 2)
    both = found["matched"] - found["mismatched"]
    assert found["difference"]["value"] == pytest.approx(both)


def test_mismatched_pairs_as_slow_loops():
    generator = np.random.default_rng(0)
    texts, pictures = generator.normal(size=(2, 7, 3))
    cosine = [[t @ p / np.linalg.norm(t) / np.linalg.norm(p) for p in pictures] for t in texts]
    apart = [cosine[i][j] for i in range(7) for j in range(7) if i != j]
    assert compute_alignment(texts, pictures)["mismatched"] == pytest.approx(np.mean(apart))


def test_vectors_all_in_one_place_have_no_distance(place):
    same = np.ones((3, 2))
    assert np.isnan(compute_alignment(same, same)["distance"])


def test_the_parameters_of_the_model_are_handed_on(place, task):
    assert run(place, muse_outputs.make_label_rows(task))["parameters"] == muse_outputs.PARAMETERS


def test_the_order_of_labels_changes_no_figure(place, task):
    rows = muse_outputs.make_label_rows(task)
    straight = run(place, rows)
    assert run(place, random.Random(0).sample(rows, len(rows))) == straight


def test_the_same_input_gives_the_same_bytes_and_another_seed_other_errors(place):
    def content() -> list[bytes]:
        return [path.read_bytes() for path in sorted((place / "target").iterdir())]

    first = run(place, muse_outputs.make_label_rows("entities"))["lenient"]
    before = content()
    run(place, muse_outputs.make_label_rows("entities"))
    assert content() == before
    other = run(place, muse_outputs.make_label_rows("entities"), params=replace(PARAMS, seed=1))[
        "lenient"
    ]
    assert other["f1"] == first["f1"] and other["standard_error"] != first["standard_error"]


def test_figures_are_tracked_under_dotted_names_and_the_file_by_its_final_path(place, monkeypatch):
    tracked = Mock()
    monkeypatch.setattr(stage.tracking, "start_run", lambda **given: nullcontext(tracked))
    run(place, muse_outputs.make_label_rows("sentiment"))
    (logged,) = tracked.log_metrics.call_args.args
    assert logged["single_modality.text.value"] == 0.5
    assert all(isinstance(value, float) for value in logged.values())
    tracked.log_artifact_hash.assert_called_once_with(place / "target/metrics.json", "metrics.json")


def test_too_few_draws_are_said():
    with pytest.raises(InputError, match=r"num_bootstrap_samples is 1: give 2 or more"):
        build_config(
            EvaluateClassifierConfig, asdict(PARAMS) | {"num_bootstrap_samples": 1}, "evaluation"
        )


def test_the_command_names_a_missing_file_without_a_traceback(place):
    names = {"ingest": "ingest", "predictions": "nowhere", "output": "target"}
    options = [f"--{option}={place / name}" for option, name in names.items()]
    command = [sys.executable, "-m", "stages.evaluate_classifier", "--run=muse_entities", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr
