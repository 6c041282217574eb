"""The headline of a run is the same few keys for every model."""

import math

from stages.shared.metrics.common import round_metrics
from stages.shared.metrics.headline import TRACKED_METRICS, select_headline, select_tracked

DIFFERENCE = {"value": -0.25, "standard_error": 0.0625}
BASELINES = {
    "score": "cider",
    "model": {"value": 1.5, "standard_error": 0.125},
    "comparison": {"baseline": "consensus", "difference": DIFFERENCE, "verdict": "worse"},
}


def test_a_generator_is_scored_by_grounding_and_without_ceilings_by_the_score_of_its_baselines():
    metrics = {"rouge_l": 0.5, "baselines": BASELINES}
    assert select_headline(metrics) == {
        "metric": "cider",
        "score": 1.5,
        "se": 0.125,
        "lead": -0.25,
    }
    metrics |= {
        "grounding": {"total": 0.123456, "standard_error": 0.01, "by_slot": {"place": 1.0}},
        "ceilings": {"both": {"expected": 0.5, "realised": 0.75}},
        "skill": {"value": 0.625, "standard_error": 0.1},
    }
    assert select_headline(metrics) == {
        "metric": "grounding",
        "score": 0.1235,
        "se": 0.01,
        "ceiling": 0.75,
        "skill": 0.625,
        "lead": -0.25,
    }


def test_a_classifier_is_scored_by_its_main_score_and_captions_by_their_share_of_the_ceiling():
    score = {"metric": "f1", "rule": "strict", "value": 0.5, "standard_error": 0.02}
    assert select_headline({"score": score}) == {"metric": "f1", "score": 0.5, "se": 0.02}
    captions = {
        "grounding": {"total": 0.5, "standard_error": 0.02},
        "ceilings": {"picture": {"expected": 1.0, "realised": 1.0}},
        "share_of_ceiling": {"value": 0.5, "standard_error": 0.02},
    }
    assert select_headline(captions)["skill"] == 0.5
    assert select_headline(captions)["ceiling"] == 1.0


def test_values_that_could_not_be_computed_are_left_out():
    score = {"metric": "accuracy", "value": 0.5, "standard_error": math.nan}
    skill = {"value": math.nan, "standard_error": math.nan}
    metrics = round_metrics({"score": score, "skill": skill})
    assert select_headline(metrics) == {"metric": "accuracy", "score": 0.5}


def test_mlflow_gets_the_headline_and_the_named_metrics_only():
    metrics = {"score": {"metric": "f1", "value": 0.5}, "lenient": {"f1": 0.75, "right": 3}}
    assert select_tracked(metrics) == {"score": 0.5, "lenient.f1": 0.75}
    everything: dict = {}
    for name in TRACKED_METRICS:
        *above, last = name.split(".")
        section = everything
        for key in above:
            section = section.setdefault(key, {})
        section[last] = 1.0
    assert set(TRACKED_METRICS) <= select_tracked(everything).keys()
