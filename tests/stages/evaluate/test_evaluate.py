import json
import os
import random
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from stages.evaluate import __main__ as evaluate
from stages.evaluate.__main__ import EvaluateConfig
from stages.shared.core import schemas
from stages.shared.core.config import build_config
from stages.shared.runtime.stage import InputError
from tests.support import generator_outputs

PARAMS = EvaluateConfig(
    tokenizers={"zh": ["characters"]},
    max_bertscore_samples=3,
    max_reward_samples=2,
    meteor_timeout=60.0,
    max_below_ceiling=0.05,
    max_above_ceiling_standard_errors=2.0,
    max_masked_fraction=0.5,
    max_attention_entropy=0.95,
    min_attention_spread=0.05,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a finished run; locks stay in it, Java is broken, and nothing is tracked."""
    java = tmp_path / "bin/java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{java.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(evaluate.tracking, "start_run", lambda **given: nullcontext(Mock()))
    generator_outputs.write_ingest(tmp_path / "ingest")
    generator_outputs.write_predictions(
        tmp_path / "predictions",
        generator_outputs.make_predictions(),
        generator_outputs.make_foil_rows(),
    )
    return tmp_path


def run(place: Path, params: EvaluateConfig = PARAMS) -> dict:
    folders = [place / "ingest", place / "predictions"]
    evaluate.main(params, generator_outputs.REWARDS_CONFIG, "run", folders, place / "target")
    return json.loads((place / "target/metrics.json").read_text())


def test_the_final_phase_stands_on_top_and_sft_beneath(place):
    found = run(place)
    assert found["phase"] == "preference"
    assert found["rouge_l"] == 1 > found["sft"]["rouge_l"]
    assert found["items"] == 6 and found["records"] == 3
    assert {f"bleu_{n}" for n in range(1, 5)} | {"cider", "bert_score"} <= found.keys()
    assert found["measured_by"]["tokenizer"] == "en: words"


def test_a_run_without_preference_has_sft_on_top(place):
    rows = [row for row in generator_outputs.make_predictions() if row["phase"] == "sft"]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    found = run(place)
    assert found["phase"] == "sft"
    assert "sft" not in found and "foils" not in found


def test_grounding_skill_and_their_error_by_hand(place):
    """SFT says the wrong place in one of six texts: 11 of 12 slots.

    Deviations of the articles' sums: a and c 2/12, b -4/12; so the error is
    sqrt(3/2 (4 + 16 + 4) / 144) / 6 = .5 / 6. Skill: (11/12 - 3/4) / (1 - 3/4) = 2/3.
    """
    sft = run(place)["sft"]
    assert sft["grounding"]["total"] == pytest.approx(11 / 12, abs=1e-6)
    assert sft["grounding"]["by_slot"] == pytest.approx({"goal": 1, "place": 5 / 6}, abs=1e-6)
    assert sft["grounding"]["standard_error"] == pytest.approx(0.5 / 6, abs=1e-6)
    assert sft["skill"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert sft["skill"]["standard_error"] == pytest.approx(4 * 0.5 / 6, abs=1e-6)
    assert sft["ceilings"]["topic"] == {"expected": 0.75, "realised": 0.75}


def test_one_modality_is_judged_between_its_ceiling_and_two_standard_errors(place):
    """The topic alone gets each goal and half of the places: .75, its ceiling. The picture alone
    gets no goal and each place: .5, under its ceiling of .7."""
    single = run(place)["single_modality"]
    assert single["topic"]["grounding"] == single["topic"]["ceiling"] == 0.75
    assert single["topic"]["verdict"] == "inside"
    assert single["picture"]["grounding"] == 0.5
    assert single["picture"]["low"] == pytest.approx(0.65)
    assert single["picture"]["verdict"] == "below"


def test_foils_are_counted_for_each_phase(place):
    found = run(place)
    assert found["foils"] == {"error": 0.0, "items": 2, "by_slot": {"place": 0.0}}
    assert found["sft"]["foils"] == {"error": 0.5, "items": 2, "by_slot": {"place": 0.5}}


def test_foils_of_validation_do_not_count(place):
    rows = [
        row | {"record": "v"} for row in generator_outputs.make_foil_rows() if row["record"] == "b"
    ]
    kept = [row for row in generator_outputs.make_foil_rows() if row["record"] == "a"]
    generator_outputs.write_predictions(
        place / "predictions", generator_outputs.make_predictions(), kept + rows
    )
    assert run(place)["sft"]["foils"]["items"] == 1


FUSED = {"correlation": [0.25, 0.75], "entropy": 0.1}


def write_traces(place, spreads: dict[str, float]) -> None:
    """A gate that masks each training item, a fusion by phase, a look at the beach of item a 0."""
    gates = [
        {"record": "a", "position": 0, "split": split, "use": use, "mode": mode}
        | {"sigma": 0.5, "mask_probability": 0.5, "passed": passed}
        for use, split, mode, passed in [
            ("train", "train", "sample", 0.0),
            ("predict", "test", "always_pass", 1.0),
        ]
    ]
    schemas.write_parquet(place / "predictions/gates.parquet", gates, schemas.GATES)
    fusions = [
        {"record": "a", "position": 0, "phase": phase, "spread": spread} | FUSED
        for phase, spread in spreads.items()
    ]
    schemas.write_parquet(place / "predictions/fusions.parquet", fusions, schemas.FUSIONS)
    text = "Ada hums at the beach"
    row = {"record": "a", "position": 0, "phase": "preference", "text": text, "tokens": ["t"]}
    looks = [0.25] * 4 + [0.1, 0.2, 0.3, 0.4]
    row |= {"fusion": [1.0] * 4, "ends": [15, len(text)], "decoder": looks}
    schemas.write_parquet(place / "predictions/attentions.parquet", [row], schemas.ATTENTIONS)
    corner = {"left": 0.5, "top": 0.5, "right": 1.0, "bottom": 1.0}
    box = {"record": "a", "position": 0, "slot": "place"} | corner
    schemas.write_parquet(place / "ingest/boxes.parquet", [box], schemas.BOXES)


def test_gate_fusion_and_attention_have_their_figures_and_what_is_odd_a_warning(place):
    write_traces(place, {"sft": 0.01, "preference": 0.6})
    found = run(place)
    assert found["gate"] == found["sft"]["gate"]
    assert found["gate"]["train"] == {"mode": "sample", "mask_rate": 1.0}
    assert found["gate"]["sigma"] == 0.5
    assert found["fusion"] == {
        "correlation": {"mean": 0.5, "deviation": 0.25},
        "entropy": 0.1,
        "spread": 0.6,
    }
    assert found["object_attention"] == {
        "mass": pytest.approx(0.4, abs=1e-3),  # stored in half precision
        "area": 0.25,
        "ratio": pytest.approx(1.6, abs=1e-3),
        "standard_error": "unavailable",  # of one record
        "items": 1,
    }
    assert found["warnings"].keys() == {"over_masking"}
    assert found["sft"]["warnings"].keys() == {"over_masking", "single_position"}
    assert "object_attention" not in found["sft"]


def test_a_run_without_traces_has_no_figures_of_them_and_no_warnings(place):
    found = run(place)
    for phase in (found, found["sft"]):
        assert not {"gate", "fusion", "object_attention", "warnings"} & phase.keys()


def test_a_gate_that_decided_nothing_is_unavailable_and_no_warning(place):
    gate = {"record": "a", "position": 0, "split": "train", "use": "train", "mode": "sample"}
    undecided = gate | {"sigma": None, "mask_probability": None, "passed": None}
    schemas.write_parquet(place / "predictions/gates.parquet", [undecided], schemas.GATES)
    found = run(place)
    assert found["gate"]["train"] == {"mode": "sample", "mask_rate": "unavailable"}
    assert not {"fusion", "warnings"} & found.keys()


def test_validation_has_only_what_is_cheap(place):
    found = run(place)["validation"]
    assert found.keys() == {"items", "rouge_l", "grounding", "skill", "rewards", "gain"}
    assert (found["items"], found["rouge_l"], found["skill"]["value"]) == (2, 1, 1)
    # A single article says nothing about how articles differ.
    assert found["grounding"]["standard_error"] == "unavailable"


def test_a_corpus_without_truth_has_text_scores_alone(place):
    for name in ("slots.json", "facts.parquet", "ceilings.json"):
        (place / "ingest" / name).unlink()
    found = run(place)
    assert found["rouge_l"] == 1
    assert not {"grounding", "skill", "ceilings", "single_modality"} & found.keys()


def test_captions_have_the_share_of_the_pictures_ceiling_that_they_reach(place):
    """11 of 12 slots, error .5 / 6 (see above); of a ceiling of .8."""
    shares = {"total": 0.8, "goal": 0.6, "place": 1.0}
    of_split = {"picture": {"expected": shares, "realised": shares}}
    content = {"rule": "a rule", "validation": of_split, "test": of_split}
    (place / "ingest/ceilings.json").write_text(json.dumps(content))
    sft = run(place)["sft"]
    assert sft["share_of_ceiling"]["value"] == pytest.approx(11 / 12 / 0.8, abs=1e-6)
    assert sft["share_of_ceiling"]["standard_error"] == pytest.approx(0.5 / 6 / 0.8, abs=1e-6)
    assert sft["ceilings"] == {"picture": {"expected": 0.8, "realised": 0.8}}
    assert sft["validation"]["share_of_ceiling"]["value"] == pytest.approx(1 / 0.8)
    # From the picture alone is from all there is, though the rows of it are there.
    assert not {"skill", "single_modality"} & sft.keys()


def test_without_texts_from_one_modality_there_is_no_such_figure(place):
    rows = [row for row in generator_outputs.make_predictions() if row["inputs"] == "both"]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    found = run(place)
    assert "single_modality" not in found and found["skill"]["value"] == 1


def test_slots_without_any_ceiling_have_grounding_alone(place):
    (place / "ingest/ceilings.json").unlink()
    found = run(place)
    assert found["grounding"]["total"] == 1
    assert not {"skill", "share_of_ceiling", "single_modality"} & found.keys()


def test_chinese_is_cut_into_characters_and_has_no_bert_score(place):
    rows = [
        row | {"language": "zh", "text": "加入白糖", "references": ["加入糖"]}
        for row in generator_outputs.make_predictions()
    ]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    found = run(place)
    assert found["bert_score"] == "unavailable"
    assert "zh" in found["measured_by"]["bert_score"]
    assert found["measured_by"]["tokenizer"] == "zh: characters"
    assert found["bleu_1"] == pytest.approx(3 / 4)


def test_the_tokenizer_of_params_is_used(place):
    rows = [
        row | {"language": "zh", "text": "加入白糖", "references": ["加入糖"]}
        for row in generator_outputs.make_predictions()
    ]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    found = run(place, replace(PARAMS, tokenizers={"zh": ["words"]}))
    assert found["measured_by"]["tokenizer"] == "zh: words"
    assert found["bleu_1"] == 0


def test_each_further_tokenizer_has_a_block_of_its_own(place):
    """加入白糖 beside 加入糖: 3 of 4 characters, but of the words 加入 白糖 only one of two."""
    rows = [
        row | {"language": "zh", "text": "加入白糖", "references": ["加入糖"]}
        for row in generator_outputs.make_predictions()
    ]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    found = run(place, replace(PARAMS, tokenizers={"zh": ["characters", "jieba"]}))
    assert found["bleu_1"] == pytest.approx(3 / 4)
    assert found["measured_by"]["tokenizer"] == "zh: characters"
    (name, block), *others = found["by_tokenizer"].items()
    assert (name, others) == ("jieba", [])
    assert block["bleu_1"] == pytest.approx(1 / 2)
    assert block["measured_by"]["tokenizer"] == "zh: jieba"
    assert "nltk" in block["measured_by"]["meteor_exact_stem"]
    assert "bert_score" not in block  # has its own tokens
    assert "by_tokenizer" in found["sft"] and "by_tokenizer" not in found["validation"]


def test_a_tokenizer_of_a_language_that_is_not_there_has_no_block(place):
    found = run(place, replace(PARAMS, tokenizers={"zh": ["characters", "jieba"]}))
    assert "by_tokenizer" not in found


def test_a_language_without_tokenizer_is_said():
    values = asdict(PARAMS) | {"tokenizers": {"zh": []}}
    with pytest.raises(InputError, match=r"^params.yaml: evaluate: tokenizers.zh is empty: name"):
        build_config(EvaluateConfig, values, "evaluate")


def test_without_java_meteor_is_not_called_meteor(place):
    found = run(place)
    assert "meteor" not in found
    assert found["meteor_exact_stem"] > 0.9
    rows = schemas.read_parquet(place / "target/items.parquet", schemas.ITEM_SCORES)
    assert all(row["meteor"] is None for row in rows)


def test_the_items_average_to_the_corpus_scores(place):
    found = run(place)["sft"]
    rows = schemas.read_parquet(place / "target/items.parquet", schemas.ITEM_SCORES)
    rows = [row for row in rows if (row["phase"], row["split"]) == ("sft", "test")]
    both = [row for row in rows if row["inputs"] == "both"]
    for name in ("rouge_l", "cider", "meteor_exact_stem"):
        mean = sum(row[name] for row in both) / len(both)
        assert mean == pytest.approx(found[name], abs=1e-6)
    (wrong,) = [row for row in both if row["wrong"]]
    assert (wrong["record"], wrong["position"]) == ("b", 1)
    assert (wrong["right"], wrong["wrong"], wrong["grounding"]) == (["goal"], ["place"], 0.5)
    # PARAMS asks for 3 of the 6 items.
    assert [row["bert_score"] is not None for row in both] == [True, False] * 3


def test_rewards_are_of_whole_articles_and_their_gain_by_pairs(place):
    """PARAMS asks for 2 of the 3 articles: a and b. SFT writes "at the beach" for "in the city" in
    one chunk of b: 7 edits, and its article has 2 x 53 characters and a line break. So b gains
    7 / 107, a nothing; the deviations are half of that, and the error sqrt(2 x 2 d^2) / 2 = d."""
    found = run(place)
    text = "\n".join([generator_outputs.make_sentence("beach")] * 2)
    assert len(text) == 107
    assert found["rewards"] == {"literal": 1, "semantic": pytest.approx(1), "articles": 2}
    assert found["sft"]["rewards"]["literal"] == pytest.approx(1 - 7 / 107 / 2, abs=1e-6)
    assert found["gain"]["literal"] == pytest.approx(
        {"value": 7 / 107 / 2, "standard_error": 7 / 107 / 2}, abs=1e-6
    )
    assert 0 < found["gain"]["semantic"]["value"] < 0.5
    # 1 of 12 slots; deviations of the articles as of grounding above.
    assert found["gain"]["grounding"]["value"] == pytest.approx(1 / 12, abs=1e-6)
    assert found["gain"]["grounding"]["standard_error"] == pytest.approx(0.5 / 6, abs=1e-6)
    assert found["measured_by"].keys() >= {"literal", "semantic"}
    rows = schemas.read_parquet(place / "target/rewards.parquet", schemas.REWARDS)
    (mistaken,) = [row for row in rows if row["literal"] < 0.99]
    assert [mistaken[name] for name in ("record", "split", "phase")] == ["b", "test", "sft"]


def test_validation_has_rewards_and_gains_of_its_own(place):
    found = run(place)["validation"]
    assert found["rewards"]["articles"] == 1
    assert found["gain"]["literal"] == {"value": 0, "standard_error": "unavailable"}


def test_a_run_without_preference_has_rewards_and_no_gain(place):
    rows = [row for row in generator_outputs.make_predictions() if row["phase"] == "sft"]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    found = run(place)
    assert found["rewards"]["literal"] < 1 and "gain" not in found


def test_meaning_that_nobody_reads_is_unavailable_with_its_reason(place):
    rows = [row | {"language": "zh"} for row in generator_outputs.make_predictions()]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    found = run(place)
    assert found["rewards"]["semantic"] == "unavailable"
    assert found["gain"].keys() == {"literal", "grounding"}
    assert found["measured_by"]["semantic"] == "unavailable: MiniLM does not read the texts"


def test_the_order_of_predictions_changes_no_figure(place):
    straight = run(place, replace(PARAMS, max_bertscore_samples=6))
    rows = random.Random(0).sample(
        generator_outputs.make_predictions(), len(generator_outputs.make_predictions())
    )
    generator_outputs.write_predictions(
        place / "predictions", rows, generator_outputs.make_foil_rows()[::-1]
    )
    assert run(place, replace(PARAMS, max_bertscore_samples=6)) == straight


def test_the_same_input_gives_the_same_bytes(place):
    run(place)
    first = [path.read_bytes() for path in sorted((place / "target").iterdir())]
    run(place)
    assert [path.read_bytes() for path in sorted((place / "target").iterdir())] == first


def test_every_figure_is_a_plain_number_of_six_digits_or_a_word(place):
    def leaves(value):
        return (
            [x for v in value.values() for x in leaves(v)] if isinstance(value, dict) else [value]
        )

    for leaf in leaves(run(place)):
        assert isinstance(leaf, int | float | str)
        assert not isinstance(leaf, float) or leaf == round(leaf, 6)


def test_figures_are_tracked_under_dotted_names_and_the_file_by_its_final_path(place, monkeypatch):
    tracked = Mock()
    monkeypatch.setattr(evaluate.tracking, "start_run", lambda **given: nullcontext(tracked))
    run(place)
    (logged,) = tracked.log_metrics.call_args.args
    assert logged["sft.grounding.by_slot.place"] == pytest.approx(5 / 6, abs=1e-6)
    assert all(isinstance(value, float) for value in logged.values())
    tracked.log_artifact_hash.assert_called_once_with(place / "target/metrics.json", "metrics.json")


def test_no_test_item_is_said_in_one_sentence(place):
    rows = [row for row in generator_outputs.make_predictions() if row["split"] == "validation"]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    with pytest.raises(InputError, match="no test item"):
        run(place)
    assert not (place / "target").exists()


def test_the_command_names_a_missing_file_without_a_traceback(place):
    options = ["--run", "run", "--ingest", place / "ingest", "--predictions", place / "nowhere"]
    options += ["--output", place / "target"]
    command = [sys.executable, "-m", "stages.evaluate", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr
