"""The comparison of a generator with its baselines: by hand, and the bootstrap as a loop."""

import numpy as np
import pytest

from stages.evaluate.baselines import (
    BaselineTexts,
    choose_compared_score,
    compare_systems,
    compute_baselines,
)
from stages.evaluate.text_metrics import CorpusScore, MeteorJar
from stages.evaluate.text_scores import compute_token_scores
from stages.shared.runtime.stage import InputError

DRAWS, SEED = 40, 3
ANIMALS = ("dog", "cat", "horse", "red bird")


def make_rows(texts) -> list[dict]:
    return [
        {"record": f"r{number}", "position": 0, "language": "en"}
        | {"references": [f"a {animal} runs on grass"], "text": text}
        for number, (animal, text) in enumerate(zip(ANIMALS, texts, strict=True))
    ]


MODEL_ROWS = make_rows(f"a {animal} runs on grass" for animal in ANIMALS)


def compare(*baselines: tuple[str, list[dict]], omitted=None) -> dict:
    rows = [row | {"baseline": name} for name, part in baselines for row in part]
    with MeteorJar(60) as jar:
        jar.is_broken = True  # METEOR of nltk is enough here
        scores = compute_token_scores(MODEL_ROWS, {}, jar)
        texts = BaselineTexts("TIPPo", rows, omitted or {})
        return compute_baselines(texts, MODEL_ROWS, scores, {}, jar, DRAWS, SEED)


def test_the_paired_bootstrap_equals_one_with_loops():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(9, 2))
    records = ["a", "b", "b", "c", "d", "d", "d", "e", "f"]

    def difference(drawn: list[str]) -> float:
        rows = [row for record in drawn for row, name in enumerate(records) if name == record]
        return float(np.mean(scores[rows, 0]) - np.mean(scores[rows, 1]))

    names, samples = sorted(set(records)), []
    generator = np.random.default_rng(SEED)
    for _ in range(DRAWS):
        drawn = generator.integers(len(names), size=len(names))
        samples.append(difference([names[index] for index in drawn]))
    model, other = compare_systems(scores, records, DRAWS, SEED)
    assert model["value"] == pytest.approx(scores[:, 0].mean())
    assert model["difference"] == {"value": 0, "standard_error": 0}
    assert other["difference"]["value"] == pytest.approx(scores[:, 0].mean() - scores[:, 1].mean())
    assert other["difference"]["standard_error"] == pytest.approx(np.std(samples, ddof=1))


def test_a_model_with_all_references_beats_wrong_texts_and_not_the_same_texts():
    """CIDEr of a text that equals its reference is 10, without a common word 0."""
    wrong = make_rows(["no word of it"] * len(ANIMALS))
    result = compare(("consensus", wrong), ("nearest_image", MODEL_ROWS), omitted={"x": "why"})
    assert result["score"] == "cider" and result["omitted"] == {"x": "why"}
    assert result["model"]["value"] == pytest.approx(10)
    assert result["scores"]["consensus"]["cider"] == 0
    assert result["scores"]["consensus"]["sentence"] == (
        "TIPPo beats the consensus of the nearest training images in CIDEr by 10.000 (0.000)."
    )
    assert result["scores"]["nearest_image"]["verdict"] == "unclear"
    assert result["comparison"] == {
        "baseline": "nearest_image",
        "difference": {"value": 0, "standard_error": 0},
        "verdict": "unclear",
        "sentence": "TIPPo does not differ surely from the nearest training text by image in "
        "CIDEr: +0.000 (0.000).",
    }


def test_the_order_of_the_baseline_rows_changes_nothing():
    texts = ["a dog sits", "a cat runs", "a horse", "a red bird runs on grass"]
    rows = make_rows(texts)
    assert compare(("consensus", rows)) == compare(("consensus", rows[::-1]))


def test_other_items_than_those_of_the_model_are_refused():
    with pytest.raises(InputError, match="other items"):
        compare(("consensus", MODEL_ROWS[1:]))


def test_without_baselines_only_the_reasons_are_reported():
    assert compare(omitted={"consensus": "no image"}) == {
        "scores": {},
        "omitted": {"consensus": "no image"},
    }


def test_rouge_l_is_compared_where_cider_is_unavailable():
    rouge, none = CorpusScore(0.5, [0.5], ""), CorpusScore(None, [None], "")
    assert choose_compared_score([{"cider": none, "rouge_l": rouge}]) == "rouge_l"
    assert choose_compared_score([{"cider": rouge, "rouge_l": rouge}]) == "cider"
