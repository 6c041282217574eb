"""Statistics of gate, fusion and attention, and their warnings, derived by hand."""

import math

import numpy as np
import pytest

from stages.shared.core import schemas
from stages.shared.metrics import diagnostics
from stages.shared.metrics.grounding import SceneSlots

THRESHOLDS = diagnostics.WarningThresholds(
    over_masking=0.5, uniform_entropy=0.95, single_spread=0.05
)
SLOTS = SceneSlots({}, {"object": {"ball": ["a ball", "a striped globe"], "kite": ["a kite"]}})
QUARTER = (0.5, 0.0, 1.0, 0.5)  # the upper right of four patches


def gate_rows(use: str, split: str, passed: list[float | None], sigma: float | None = 0.25):
    mode = {"train": "sample", "predict": "threshold"}[use]
    return [
        {"use": use, "split": split, "mode": mode, "sigma": sigma, "passed": value}
        for value in passed
    ]


def test_mask_rates_are_those_of_the_train_split_in_training_and_of_the_test_split():
    rows = gate_rows("train", "train", [1, 0, None, 0, 1]) + gate_rows("train", "test", [0, 0])
    rows += gate_rows("predict", "train", [0]) + gate_rows("predict", "test", [1, 1, 0, 1, None])
    assert diagnostics.summarize_gate(rows) == {
        "train": {"mode": "sample", "mask_rate": 0.5},
        "predict": {"mode": "threshold", "mask_rate": 0.25},
        "sigma": 0.25,
    }


def test_the_mean_of_sigma_is_nan_without_sigma():
    rows = gate_rows("train", "train", [1], None) + gate_rows("predict", "test", [1], None)
    summary = diagnostics.summarize_gate(rows)
    assert math.isnan(summary["sigma"]) and summary["train"]["mask_rate"] == 0


def test_lambda_is_averaged_over_items_and_channels():
    """lambda .2 .4 .6 .8: mean .5, deviation sqrt((.09 + .01 + .01 + .09) / 4) = sqrt(.05)."""
    rows = [
        {"correlation": [0.2, 0.4], "entropy": 0.1, "spread": 0.5},
        {"correlation": [0.6, 0.8], "entropy": 0.3, "spread": None},
    ]
    summary = diagnostics.summarize_fusion(rows)
    assert summary["correlation"] == pytest.approx({"mean": 0.5, "deviation": math.sqrt(0.05)})
    assert (summary["entropy"], summary["spread"]) == (pytest.approx(0.2), 0.5)
    assert math.isnan(diagnostics.summarize_fusion([])["entropy"])


def attention_row(
    record: str, text: str, weights: dict[str, list[float]], patches: int = 4
) -> dict:
    """A row of ATTENTIONS: one token per word; words not in `weights` have uniform attention."""
    words = text.split(" ")
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    decoder = [weights.get(word, [1 / patches] * patches) for word in words]
    key = {"record": record, "position": 0}
    return key | {"text": text, "ends": ends.tolist(), "decoder": np.concatenate(decoder)}


def test_object_attention_is_that_of_the_last_word_of_the_phrase():
    """globe: .7 inside the box, kite: .1; area .25. The deviations are +-.3, so the error is
    sqrt(2 / 1 (.09 + .09)) / 2 = .3."""
    rows = [
        attention_row("a", "a striped globe and a kite", {"globe": [0.1, 0.7, 0.1, 0.1]}),
        attention_row("b", "here a kite flies", {"kite": [0.5, 0.1, 0.2, 0.2]}),
        attention_row(
            "c", "a ball of another kind", {"ball": [1, 0, 0, 0]}
        ),  # the object is a kite, which is not stated
        attention_row("d", "a ball without a box", {"ball": [1, 0, 0, 0]}),
    ]
    objects = {"a": "ball", "b": "kite", "c": "kite", "d": "ball"}
    facts = {(record, 0): {"object": value} for record, value in objects.items()}
    boxes = {(record, 0): {"object": QUARTER} for record in "abc"}
    result = diagnostics.compute_object_attention(rows, SLOTS, facts, boxes)
    assert result == pytest.approx(
        {"mass": 0.4, "area": 0.25, "ratio": 1.6, "standard_error": 0.3, "items": 2}
    )


def test_object_attention_is_none_without_boxes_or_without_a_grid():
    facts = {("a", 0): {"object": "ball"}}
    boxes = {("a", 0): {"object": QUARTER}}
    assert (
        diagnostics.compute_object_attention([attention_row("a", "a ball", {})], SLOTS, facts, {})
        is None
    )
    no_grid = [attention_row("a", "a ball", {}, patches=6)]
    assert diagnostics.compute_object_attention(no_grid, SLOTS, facts, boxes) is None


def values_within_thresholds() -> tuple[dict, dict]:
    gate = {"train": {"mode": "sample", "mask_rate": 0.5}, "sigma": 0.1}
    gate["predict"] = {"mode": "threshold", "mask_rate": 0.0}
    return gate, {"entropy": 0.95, "spread": 0.05}


def test_there_is_no_warning_for_values_within_thresholds_or_unknown_values():
    gate, fusion = values_within_thresholds()
    assert diagnostics.build_warnings(gate, fusion, THRESHOLDS) == {}
    gate["train"]["mask_rate"] = fusion["entropy"] = fusion["spread"] = math.nan
    assert diagnostics.build_warnings(gate, fusion, THRESHOLDS) == {}


def test_a_run_without_gate_or_fusion_only_has_warnings_about_the_other():
    gate, fusion = values_within_thresholds()
    gate["train"]["mask_rate"] = fusion["entropy"] = 1.0
    assert diagnostics.build_warnings(None, None, THRESHOLDS) == {}
    assert diagnostics.build_warnings(gate, None, THRESHOLDS).keys() == {"over_masking"}
    assert diagnostics.build_warnings(None, fusion, THRESHOLDS).keys() == {"uniform_attention"}


@pytest.mark.parametrize(
    ("part", "name", "value", "warning", "message"),
    [
        ("train", "mask_rate", 0.51, "over_masking", "51% of the topics in training (mode sample)"),
        ("predict", "mask_rate", 1.0, "over_masking", "100% of the topics in prediction"),
        ("fusion", "entropy", 0.96, "uniform_attention", "entropy 0.96 of 1"),
        ("fusion", "spread", 0.04, "single_position", "spread 0.04 of 1"),
    ],
)
def test_a_value_beyond_its_threshold_is_a_warning_with_a_hint(part, name, value, warning, message):
    gate, fusion = values_within_thresholds()
    (fusion if part == "fusion" else gate[part])[name] = value
    warnings = diagnostics.build_warnings(gate, fusion, THRESHOLDS)
    assert warnings.keys() == {warning}
    assert message in warnings[warning] and "look at" in warnings[warning]


def test_the_warning_names_both_uses_if_the_gate_masks_too_much_in_both():
    gate, fusion = values_within_thresholds()
    gate["train"]["mask_rate"], gate["predict"]["mask_rate"] = 0.51, 1.0
    warning = diagnostics.build_warnings(gate, fusion, THRESHOLDS)["over_masking"]
    assert warning.startswith(
        "msaGate masks 51% of the topics in training (mode sample) and 100% of the topics in "
        "prediction (mode threshold), so titles"
    )


def test_boxes_are_read_by_item_and_slot_and_empty_without_a_file(tmp_path):
    assert diagnostics.load_boxes(tmp_path) == {}
    edges = dict(zip(("left", "top", "right", "bottom"), QUARTER, strict=True))
    row = {"record": "a", "position": 1, "slot": "object"} | edges
    schemas.write_parquet(tmp_path / "boxes.parquet", [row], schemas.BOXES)
    assert diagnostics.load_boxes(tmp_path) == {("a", 1): {"object": QUARTER}}
