"""The stage evaluate on a small finished run, with values derived by hand."""

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
from stages.evaluate.bert_score import BertScoreConfig
from stages.shared.core import schemas
from stages.shared.core.config import build_config
from stages.shared.data.tokenization import tokenize_text
from stages.shared.pretrained import minilm
from stages.shared.runtime.stage import InputError
from tests.support import generator_outputs

CONFIG = EvaluateConfig(
    tokenizers={"zh": ["characters"]},
    bert_score=BertScoreConfig(model="minilm", num_layers=None),
    max_bertscore_samples=3,
    embedder="minilm",
    max_reward_samples=2,
    meteor_timeout=60.0,
    num_bootstrap_samples=40,
    seed=3,
    max_below_ceiling=0.05,
    max_above_ceiling_standard_errors=2.0,
    max_masked_fraction=0.5,
    max_attention_entropy=0.95,
    min_attention_spread=0.05,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a finished run, a work folder in it, a broken Java and no tracking."""
    java = tmp_path / "bin/java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{java.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("POLYMUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(evaluate.tracking, "start_run", lambda **kwargs: nullcontext(Mock()))
    generator_outputs.write_ingest(tmp_path / "ingest")
    generator_outputs.write_predictions(
        tmp_path / "predictions",
        generator_outputs.make_predictions(),
        generator_outputs.make_foil_rows(),
    )
    return tmp_path


def run(place: Path, config: EvaluateConfig = CONFIG) -> dict:
    """The content of metrics.json."""
    evaluate.main(
        config,
        generator_outputs.REWARDS_CONFIG,
        "run",
        place / "ingest",
        place / "predictions",
        place / "target",
    )
    return json.loads((place / "target/metrics.json").read_text())


def test_the_final_phase_is_at_the_top_level_and_sft_is_nested(place):
    metrics = run(place)
    assert metrics["phase"] == "preference"
    assert metrics["rouge_l"] == 1 > metrics["sft"]["rouge_l"]
    assert metrics["items"] == 6 and metrics["records"] == 3
    assert {f"bleu_{n}" for n in range(1, 5)} | {"cider", "bert_score"} <= metrics.keys()
    assert metrics["measured_by"]["tokenizer"] == "en: words"


def test_whole_articles_are_scored_beside_their_chunks(place):
    """An article is two chunks of n tokens; SFT replaces two tokens (in, city) in one of three.

    Its longest common subsequence with the reference has 2n - 2 of 2n tokens, which is precision,
    recall and therefore F: 1 - 1 / n.
    """
    metrics = run(place)
    assert metrics["level"] == "chunk"
    assert metrics["by_article"]["items"] == 3 and metrics["by_article"]["rouge_l"] == 1
    n = len(tokenize_text(generator_outputs.make_sentence("city"), "words").split())
    sft = metrics["sft"]["by_article"]
    assert sft["rouge_l"] == pytest.approx((2 + 1 - 1 / n) / 3, abs=1e-6)
    assert {"meteor_exact_stem", "cider", "bert_score"} <= sft.keys()
    assert sft["measured_by"]["tokenizer"] == "en: words"


def test_records_of_one_chunk_are_scored_once(place):
    rows = [row for row in generator_outputs.make_predictions() if row["position"] == 0]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    assert "by_article" not in run(place)


def test_a_run_without_preference_has_sft_at_the_top_level(place):
    rows = [row for row in generator_outputs.make_predictions() if row["phase"] == "sft"]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    metrics = run(place)
    assert metrics["phase"] == "sft"
    assert "sft" not in metrics and "foils" not in metrics


def test_grounding_and_skill_match_values_derived_by_hand(place):
    """SFT states the wrong place in one of six texts: 11 of 12 slots are correct.

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


def test_a_single_modality_is_compared_with_the_band_around_its_ceiling(place):
    """The topic alone states all goals and half of the places: .75, its ceiling.

    The image alone states no goal and all places: .5, below its ceiling of .7.
    """
    single = run(place)["single_modality"]
    assert single["topic"]["grounding"] == single["topic"]["ceiling"] == 0.75
    assert single["topic"]["verdict"] == "inside"
    assert single["picture"]["grounding"] == 0.5
    assert single["picture"]["low"] == pytest.approx(0.65)
    assert single["picture"]["verdict"] == "below"


def test_the_final_phase_is_compared_with_its_baselines(place):
    """Both texts of the model and of the nearest image equal the references; those of shuffled
    images have another place."""
    metrics = run(place)
    baselines = metrics["baselines"]
    assert "baselines" not in metrics["sft"]
    assert baselines["scores"].keys() == {"nearest_image", "shuffled_images"}
    assert baselines["scores"]["nearest_image"]["rouge_l"] == 1
    assert baselines["scores"]["shuffled_images"]["verdict"] == "better"
    assert baselines["comparison"]["baseline"] == "nearest_image"
    assert baselines["omitted"] == {"nearest_topic": "no topic"}


def test_foils_are_counted_for_each_phase(place):
    metrics = run(place)
    assert metrics["foils"] == {"error": 0.0, "items": 2, "by_slot": {"place": 0.0}}
    assert metrics["sft"]["foils"] == {"error": 0.5, "items": 2, "by_slot": {"place": 0.5}}


def test_foils_of_the_validation_split_are_ignored(place):
    rows = [
        row | {"record": "v"} for row in generator_outputs.make_foil_rows() if row["record"] == "b"
    ]
    kept = [row for row in generator_outputs.make_foil_rows() if row["record"] == "a"]
    generator_outputs.write_predictions(
        place / "predictions", generator_outputs.make_predictions(), kept + rows
    )
    assert run(place)["sft"]["foils"]["items"] == 1


FUSION_VALUES = {"correlation": [0.25, 0.75], "entropy": 0.1}


def write_traces(place, spreads: dict[str, float]) -> None:
    """A gate that masks each training item, a fusion per phase, and attention on the box of a 0."""
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
        {"record": "a", "position": 0, "phase": phase, "spread": spread} | FUSION_VALUES
        for phase, spread in spreads.items()
    ]
    schemas.write_parquet(place / "predictions/fusions.parquet", fusions, schemas.FUSIONS)
    text = "Ada hums at the beach"
    row = {"record": "a", "position": 0, "phase": "preference", "text": text, "tokens": ["t"]}
    weights = [0.25] * 4 + [0.1, 0.2, 0.3, 0.4]
    row |= {"fusion": [1.0] * 4, "ends": [15, len(text)], "decoder": weights}
    schemas.write_parquet(place / "predictions/attentions.parquet", [row], schemas.ATTENTIONS)
    corner = {"left": 0.5, "top": 0.5, "right": 1.0, "bottom": 1.0}
    box = {"record": "a", "position": 0, "slot": "place"} | corner
    schemas.write_parquet(place / "ingest/boxes.parquet", [box], schemas.BOXES)


def test_gate_fusion_and_attention_are_reported_with_warnings(place):
    write_traces(place, {"sft": 0.01, "preference": 0.6})
    metrics = run(place)
    assert metrics["gate"] == metrics["sft"]["gate"]
    assert metrics["gate"]["train"] == {"mode": "sample", "mask_rate": 1.0}
    assert metrics["gate"]["sigma"] == 0.5
    assert metrics["fusion"] == {
        "correlation": {"mean": 0.5, "deviation": 0.25},
        "entropy": 0.1,
        "spread": 0.6,
    }
    assert metrics["object_attention"] == {
        "mass": pytest.approx(0.4, abs=1e-3),  # stored in half precision
        "area": 0.25,
        "ratio": pytest.approx(1.6, abs=1e-3),
        "standard_error": "unavailable",  # for one record
        "items": 1,
    }
    assert metrics["warnings"].keys() == {"over_masking"}
    assert metrics["sft"]["warnings"].keys() == {"over_masking", "single_position"}
    assert "object_attention" not in metrics["sft"]


def test_a_run_without_traces_has_no_diagnostics_and_no_warnings(place):
    metrics = run(place)
    for phase in (metrics, metrics["sft"]):
        assert not {"gate", "fusion", "object_attention", "warnings"} & phase.keys()


def test_the_mask_rate_of_an_undecided_gate_is_unavailable_without_a_warning(place):
    gate = {"record": "a", "position": 0, "split": "train", "use": "train", "mode": "sample"}
    undecided = gate | {"sigma": None, "mask_probability": None, "passed": None}
    schemas.write_parquet(place / "predictions/gates.parquet", [undecided], schemas.GATES)
    metrics = run(place)
    assert metrics["gate"]["train"] == {"mode": "sample", "mask_rate": "unavailable"}
    assert not {"fusion", "warnings"} & metrics.keys()


def test_validation_only_has_cheap_metrics(place):
    metrics = run(place)["validation"]
    assert metrics.keys() == {"items", "rouge_l", "grounding", "skill", "rewards", "gain"}
    assert (metrics["items"], metrics["rouge_l"], metrics["skill"]["value"]) == (2, 1, 1)
    # A single article gives no estimate of the variance between articles.
    assert metrics["grounding"]["standard_error"] == "unavailable"


def test_a_corpus_without_ground_truth_only_has_text_scores(place):
    for name in ("slots.json", "facts.parquet", "ceilings.json"):
        (place / "ingest" / name).unlink()
    metrics = run(place)
    assert metrics["rouge_l"] == 1
    assert not {"grounding", "skill", "ceilings", "single_modality"} & metrics.keys()


def test_captions_are_scored_relative_to_the_ceiling_of_the_image(place):
    """11 of 12 slots, error .5 / 6 (see above), divided by the ceiling .8."""
    values = {"total": 0.8, "goal": 0.6, "place": 1.0}
    ceilings = {"picture": {"expected": values, "realised": values}}
    content = {"rule": "a rule", "validation": ceilings, "test": ceilings}
    (place / "ingest/ceilings.json").write_text(json.dumps(content))
    sft = run(place)["sft"]
    assert sft["share_of_ceiling"]["value"] == pytest.approx(11 / 12 / 0.8, abs=1e-6)
    assert sft["share_of_ceiling"]["standard_error"] == pytest.approx(0.5 / 6 / 0.8, abs=1e-6)
    assert sft["ceilings"] == {"picture": {"expected": 0.8, "realised": 0.8}}
    assert sft["validation"]["share_of_ceiling"]["value"] == pytest.approx(1 / 0.8)
    # The image is the only informative input, so the rows of the image alone are not compared.
    assert not {"skill", "single_modality"} & sft.keys()


def test_there_are_no_single_modality_metrics_without_texts_from_one_modality(place):
    rows = [row for row in generator_outputs.make_predictions() if row["inputs"] == "both"]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    metrics = run(place)
    assert "single_modality" not in metrics and metrics["skill"]["value"] == 1


def test_slots_without_ceilings_only_have_grounding(place):
    (place / "ingest/ceilings.json").unlink()
    metrics = run(place)
    assert metrics["grounding"]["total"] == 1
    assert not {"skill", "share_of_ceiling", "single_modality"} & metrics.keys()


def test_chinese_is_split_into_characters_and_has_no_bert_score(place):
    rows = [
        row | {"language": "zh", "text": "加入白糖", "references": ["加入糖"]}
        for row in generator_outputs.make_predictions()
    ]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    metrics = run(place)
    assert metrics["bert_score"] == "unavailable"
    assert "zh" in metrics["measured_by"]["bert_score"]
    assert metrics["measured_by"]["tokenizer"] == "zh: characters"
    assert metrics["bleu_1"] == pytest.approx(3 / 4)


def test_the_configured_tokenizer_is_used(place):
    rows = [
        row | {"language": "zh", "text": "加入白糖", "references": ["加入糖"]}
        for row in generator_outputs.make_predictions()
    ]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    metrics = run(place, replace(CONFIG, tokenizers={"zh": ["words"]}))
    assert metrics["measured_by"]["tokenizer"] == "zh: words"
    assert metrics["bleu_1"] == 0


def test_each_additional_tokenizer_has_scores_of_its_own(place):
    """加入白糖 against 加入糖: 3 of 4 characters match, but only one of the two words 加入 白糖."""
    rows = [
        row | {"language": "zh", "text": "加入白糖", "references": ["加入糖"]}
        for row in generator_outputs.make_predictions()
    ]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    metrics = run(place, replace(CONFIG, tokenizers={"zh": ["characters", "jieba"]}))
    assert metrics["bleu_1"] == pytest.approx(3 / 4)
    assert metrics["measured_by"]["tokenizer"] == "zh: characters"
    ((name, block),) = metrics["by_tokenizer"].items()
    assert name == "jieba"
    assert block["bleu_1"] == pytest.approx(1 / 2)
    assert block["measured_by"]["tokenizer"] == "zh: jieba"
    assert "nltk" in block["measured_by"]["meteor_exact_stem"]
    assert "bert_score" not in block  # has a tokenizer of its own
    assert "by_tokenizer" in metrics["sft"] and "by_tokenizer" not in metrics["validation"]


def test_an_additional_tokenizer_of_an_absent_language_has_no_scores(place):
    metrics = run(place, replace(CONFIG, tokenizers={"zh": ["characters", "jieba"]}))
    assert "by_tokenizer" not in metrics


def test_a_language_without_a_tokenizer_is_rejected():
    values = asdict(CONFIG) | {"tokenizers": {"zh": []}}
    message = r"^config/evaluation.yaml: evaluate: tokenizers.zh is empty: name"
    with pytest.raises(InputError, match=message):
        build_config(EvaluateConfig, values, "evaluate")


def test_without_java_meteor_is_not_called_meteor(place):
    metrics = run(place)
    assert "meteor" not in metrics
    assert metrics["meteor_exact_stem"] > 0.9
    rows = schemas.read_parquet(place / "target/items.parquet", schemas.ITEM_SCORES)
    assert all(row["meteor"] is None for row in rows)


def test_the_items_average_to_the_corpus_scores(place):
    metrics = run(place)["sft"]
    rows = schemas.read_parquet(place / "target/items.parquet", schemas.ITEM_SCORES)
    rows = [row for row in rows if (row["phase"], row["split"]) == ("sft", "test")]
    both = [row for row in rows if row["inputs"] == "both"]
    for name in ("rouge_l", "cider", "meteor_exact_stem"):
        mean = sum(row[name] for row in both) / len(both)
        assert mean == pytest.approx(metrics[name], abs=1e-6)
    (error,) = [row for row in both if row["wrong"]]
    assert (error["record"], error["position"]) == ("b", 1)
    assert (error["right"], error["wrong"], error["grounding"]) == (["goal"], ["place"], 0.5)
    # CONFIG limits BERTScore to 3 of the 6 items.
    assert [row["bert_score"] is not None for row in both] == [True, False] * 3


def test_rewards_are_those_of_whole_articles_and_gains_are_paired(place):
    """CONFIG limits rewards to 2 of the 3 articles: a and b.

    SFT generates "at the beach" instead of "in the city" in one chunk of b: 7 edits, and the
    article has 2 x 53 characters and a line break. So b gains 7 / 107 and a gains 0; the deviations
    d are half of that, and the error is sqrt(2 x 2 d^2) / 2 = d.
    """
    metrics = run(place)
    text = "\n".join([generator_outputs.make_sentence("beach")] * 2)
    assert len(text) == 107
    assert metrics["rewards"] == {"literal": 1, "semantic": pytest.approx(1), "articles": 2}
    assert metrics["sft"]["rewards"]["literal"] == pytest.approx(1 - 7 / 107 / 2, abs=1e-6)
    assert metrics["gain"]["literal"] == pytest.approx(
        {"value": 7 / 107 / 2, "standard_error": 7 / 107 / 2}, abs=1e-6
    )
    assert 0 < metrics["gain"]["semantic"]["value"] < 0.5
    # 1 of 12 slots; the deviations of the articles are those of grounding above.
    assert metrics["gain"]["grounding"]["value"] == pytest.approx(1 / 12, abs=1e-6)
    assert metrics["gain"]["grounding"]["standard_error"] == pytest.approx(0.5 / 6, abs=1e-6)
    assert metrics["measured_by"].keys() >= {"literal", "semantic"}
    rows = schemas.read_parquet(place / "target/rewards.parquet", schemas.REWARDS)
    (error,) = [row for row in rows if row["literal"] < 0.99]
    assert [error[name] for name in ("record", "split", "phase")] == ["b", "test", "sft"]


def test_the_outcome_of_the_preference_phase_is_a_sentence_about_the_gains(place):
    assert run(place)["preference_outcome"].startswith("mscDPO changed the literal reward")
    summary = json.loads((place / "predictions/summary.json").read_text())
    summary["preference"] |= {"kept_sft_weights": True, "without_gain": "its loss never fell"}
    (place / "predictions/summary.json").write_text(json.dumps(summary))
    outcome = "mscDPO kept SFT's weights: its loss never fell."
    assert run(place)["preference_outcome"] == outcome


def test_validation_has_rewards_and_gains_of_its_own(place):
    metrics = run(place)["validation"]
    assert metrics["rewards"]["articles"] == 1
    assert metrics["gain"]["literal"] == {"value": 0, "standard_error": "unavailable"}


def test_a_run_without_preference_has_rewards_and_no_gain(place):
    rows = [row for row in generator_outputs.make_predictions() if row["phase"] == "sft"]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    metrics = run(place)
    assert metrics["rewards"]["literal"] < 1 and "gain" not in metrics


def test_the_semantic_reward_of_an_unsupported_language_is_unavailable_with_a_reason(place):
    rows = [row | {"language": "zh"} for row in generator_outputs.make_predictions()]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    metrics = run(place)
    assert metrics["rewards"]["semantic"] == "unavailable"
    assert metrics["gain"].keys() == {"literal", "grounding"}
    assert metrics["measured_by"]["semantic"] == (
        "unavailable: minilm does not support the language of the texts"
    )


def test_a_chinese_corpus_is_scored_with_models_that_params_name(place):
    rows = [row | {"language": "zh"} for row in generator_outputs.make_predictions()]
    generator_outputs.write_predictions(place / "predictions", rows, [])
    model = f"hf:{minilm.get_model_dir()}"  # any folder will do
    scorer = BertScoreConfig(model=model, num_layers=3)
    config = replace(CONFIG, embedder=model, bert_score=scorer, max_bertscore_samples=6)
    metrics = run(place, config)
    assert metrics["bert_score"] == pytest.approx(1, abs=1e-5)
    assert metrics["sft"]["bert_score"] < 0.99
    assert metrics["rewards"]["semantic"] == pytest.approx(1, abs=1e-5)
    assert metrics["measured_by"]["bert_score"].startswith("BERTScore, model layer 3")
    assert "of hf:model;" in metrics["measured_by"]["semantic"]
    assert str(minilm.get_model_dir()) not in json.dumps(metrics)


def test_the_order_of_predictions_does_not_change_the_metrics(place):
    expected = run(place, replace(CONFIG, max_bertscore_samples=6))
    rows = random.Random(0).sample(
        generator_outputs.make_predictions(), len(generator_outputs.make_predictions())
    )
    generator_outputs.write_predictions(
        place / "predictions", rows, generator_outputs.make_foil_rows()[::-1]
    )
    assert run(place, replace(CONFIG, max_bertscore_samples=6)) == expected


def test_the_same_input_gives_the_same_bytes(place):
    run(place)
    first = [path.read_bytes() for path in sorted((place / "target").iterdir())]
    run(place)
    assert [path.read_bytes() for path in sorted((place / "target").iterdir())] == first


def test_every_metric_is_a_string_or_a_number_with_six_decimals(place):
    def leaves(value):
        if isinstance(value, dict):
            return [leaf for child in value.values() for leaf in leaves(child)]
        return [value]

    for leaf in leaves(run(place)):
        assert isinstance(leaf, int | float | str)
        assert not isinstance(leaf, float) or leaf == round(leaf, 6)


def test_metrics_are_tracked_under_dotted_names_and_the_file_by_its_final_path(place, monkeypatch):
    tracked = Mock()
    monkeypatch.setattr(evaluate.tracking, "start_run", lambda **kwargs: nullcontext(tracked))
    run(place)
    logged, _ = tracked.log_table.call_args.args
    assert logged["sft.grounding.by_slot.place"] == pytest.approx(5 / 6, abs=1e-6)
    assert all(isinstance(value, float) for value in logged.values())
    (compared,) = tracked.log_metrics.call_args.args
    assert compared["score"] == round(logged["grounding.total"], 4) and len(compared) <= 15
    headline = json.loads((place / "target/headline.json").read_text())
    assert headline.pop("metric") == "grounding" and headline.items() <= compared.items()
    tracked.log_artifact_hash.assert_called_once_with(place / "target/metrics.json", "metrics.json")


def test_predictions_without_a_test_item_are_rejected(place):
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
