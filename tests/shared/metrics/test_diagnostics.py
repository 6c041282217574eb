import math

import numpy as np
import pytest

from stages.shared.core import schemas
from stages.shared.metrics import diagnostics
from stages.shared.metrics.grounding import SceneSlots

LIMITS = diagnostics.WarningThresholds(over_masking=0.5, uniform_entropy=0.95, single_spread=0.05)
SLOTS = SceneSlots({}, {"object": {"ball": ["a ball", "a striped globe"], "kite": ["a kite"]}})
QUARTER = (0.5, 0.0, 1.0, 0.5)  # the upper right patch of four


def gates(use: str, split: str, passed: list[float | None], sigma: float | None = 0.25):
    mode = {"train": "sample", "predict": "threshold"}[use]
    return [
        {"use": use, "split": split, "mode": mode, "sigma": sigma, "passed": share}
        for share in passed
    ]


def test_mask_rates_are_of_what_was_trained_on_and_of_what_is_tested():
    rows = gates("train", "train", [1, 0, None, 0, 1]) + gates("train", "test", [0, 0])
    rows += gates("predict", "train", [0]) + gates("predict", "test", [1, 1, 0, 1, None])
    assert diagnostics.summarize_gate(rows) == {
        "train": {"mode": "sample", "mask_rate": 0.5},
        "predict": {"mode": "threshold", "mask_rate": 0.25},
        "sigma": 0.25,
    }


def test_without_sigma_its_mean_is_no_number():
    rows = gates("train", "train", [1], None) + gates("predict", "test", [1], None)
    found = diagnostics.summarize_gate(rows)
    assert math.isnan(found["sigma"]) and found["train"]["mask_rate"] == 0


def test_the_fusion_is_averaged_over_items_and_channels():
    """lambda .2 .4 .6 .8: mean .5, deviation sqrt((.09 + .01 + .01 + .09) / 4) = sqrt(.05)."""
    rows = [
        {"correlation": [0.2, 0.4], "entropy": 0.1, "spread": 0.5},
        {"correlation": [0.6, 0.8], "entropy": 0.3, "spread": None},
    ]
    found = diagnostics.summarize_fusion(rows)
    assert found["correlation"] == pytest.approx({"mean": 0.5, "deviation": math.sqrt(0.05)})
    assert (found["entropy"], found["spread"]) == (pytest.approx(0.2), 0.5)
    assert math.isnan(diagnostics.summarize_fusion([])["entropy"])


def written(record: str, text: str, looks: dict[str, list[float]], patches: int = 4) -> dict:
    """A row of attentions: a token a word; words that are not in `looks` look everywhere alike."""
    words = text.split(" ")
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    decoder = [looks.get(word, [1 / patches] * patches) for word in words]
    key = {"record": record, "position": 0}
    return key | {"text": text, "ends": ends.tolist(), "decoder": np.concatenate(decoder)}


def test_attention_to_an_object_is_that_of_the_last_word_of_its_phrase():
    """globe: .7 of it inside the box, kite: .1; area .25. Deviations +-.3, so the error is
    sqrt(2 / 1 (.09 + .09)) / 2 = .3."""
    rows = [
        written("a", "a striped globe and a kite", {"globe": [0.1, 0.7, 0.1, 0.1]}),
        written("b", "here a kite flies", {"kite": [0.5, 0.1, 0.2, 0.2]}),
        written("c", "a ball of another kind", {"ball": [1, 0, 0, 0]}),  # is a kite, never stated
        written("d", "a ball without a box", {"ball": [1, 0, 0, 0]}),
    ]
    things = {"a": "ball", "b": "kite", "c": "kite", "d": "ball"}
    facts = {(record, 0): {"object": thing} for record, thing in things.items()}
    boxes = {(record, 0): {"object": QUARTER} for record in "abc"}
    found = diagnostics.compute_object_attention(rows, SLOTS, facts, boxes)
    assert found == pytest.approx(
        {"mass": 0.4, "area": 0.25, "ratio": 1.6, "standard_error": 0.3, "items": 2}
    )


def test_without_boxes_or_without_a_grid_nothing_is_said_of_objects():
    facts = {("a", 0): {"object": "ball"}}
    boxes = {("a", 0): {"object": QUARTER}}
    assert (
        diagnostics.compute_object_attention([written("a", "a ball", {})], SLOTS, facts, {}) is None
    )
    no_grid = [written("a", "a ball", {}, patches=6)]
    assert diagnostics.compute_object_attention(no_grid, SLOTS, facts, boxes) is None


def fine() -> tuple[dict, dict]:
    gate = {"train": {"mode": "sample", "mask_rate": 0.5}, "sigma": 0.1}
    gate["predict"] = {"mode": "threshold", "mask_rate": 0.0}
    return gate, {"entropy": 0.95, "spread": 0.05}


def test_what_is_within_its_limits_is_no_warning_and_nor_is_what_is_unknown():
    gate, fusion = fine()
    assert diagnostics.build_warnings(gate, fusion, LIMITS) == {}
    gate["train"]["mask_rate"] = fusion["entropy"] = fusion["spread"] = math.nan
    assert diagnostics.build_warnings(gate, fusion, LIMITS) == {}


def test_a_run_without_gate_or_fusion_is_warned_of_what_it_has():
    gate, fusion = fine()
    gate["train"]["mask_rate"] = fusion["entropy"] = 1.0
    assert diagnostics.build_warnings(None, None, LIMITS) == {}
    assert diagnostics.build_warnings(gate, None, LIMITS).keys() == {"over_masking"}
    assert diagnostics.build_warnings(None, fusion, LIMITS).keys() == {"uniform_attention"}


@pytest.mark.parametrize(
    ("part", "name", "value", "warning", "said"),
    [
        ("train", "mask_rate", 0.51, "over_masking", "51% of the topics in training (mode sample)"),
        ("predict", "mask_rate", 1.0, "over_masking", "100% of the topics when writing"),
        ("fusion", "entropy", 0.96, "uniform_attention", "entropy 0.96 of 1"),
        ("fusion", "spread", 0.04, "single_position", "spread 0.04 of 1"),
    ],
)
def test_what_passes_its_limit_is_said_with_what_to_look_at(part, name, value, warning, said):
    gate, fusion = fine()
    (fusion if part == "fusion" else gate[part])[name] = value
    found = diagnostics.build_warnings(gate, fusion, LIMITS)
    assert found.keys() == {warning}
    assert said in found[warning] and "look at" in found[warning]


def test_a_gate_that_masks_too_much_both_times_is_said_of_both():
    gate, fusion = fine()
    gate["train"]["mask_rate"], gate["predict"]["mask_rate"] = 0.51, 1.0
    said = diagnostics.build_warnings(gate, fusion, LIMITS)["over_masking"]
    assert said.startswith(
        "msaGate masks 51% of the topics in training (mode sample) and 100% of the topics when "
        "writing (mode threshold), so titles"
    )


def test_boxes_are_read_by_item_and_slot_and_absent_where_nothing_was_drawn(tmp_path):
    assert diagnostics.load_boxes(tmp_path) == {}
    shares = dict(zip(("left", "top", "right", "bottom"), QUARTER, strict=True))
    row = {"record": "a", "position": 1, "slot": "object"} | shares
    schemas.write_parquet(tmp_path / "boxes.parquet", [row], schemas.BOXES)
    assert diagnostics.load_boxes(tmp_path) == {("a", 1): {"object": QUARTER}}
