import math
import os
import random
import shutil
import stat
import time

import pytest

from stages.evaluate import text_metrics
from stages.evaluate.text_metrics import TokenizedPrediction
from stages.shared.metrics.common import (
    clustered_standard_error,
    compare_to_ceiling,
    compute_skill,
    round_metrics,
)

CAT = TokenizedPrediction("the cat sat on the mat", ["the cat is on the mat"])
DOG = TokenizedPrediction("a dog runs", ["a big dog runs fast", "dogs run"])
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR's jar needs Java")


@pytest.mark.parametrize(
    ("text", "tokenizer", "tokens"),
    [
        ("The Cat's mat, 2nd\n one!", "words", "the cat ' s mat , 2nd one !"),
        ("Zoë isst Äpfel.", "words", "zoë isst äpfel ."),
        ("加入白糖200ml、搅拌。", "characters", "加 入 白 糖 200ml 、 搅 拌 。"),
        ("ケーキを焼く cake", "characters", "ケ ー キ を 焼 く cake"),
        ("加入白糖、 搅拌。", "jieba", "加入 白糖 、 搅拌 。"),
        ("  ", "words", ""),
    ],
)
def test_a_text_is_cut_by_the_tokenizer_that_was_named(text, tokenizer, tokens):
    assert text_metrics.tokenize_text(text, tokenizer) == tokens


def test_bleu_by_hand():
    """5 of 6 words; 3 of 5, 1 of 4, 0 of 3 longer n-grams; equal lengths: no penalty."""
    found = text_metrics.compute_bleu([CAT])
    assert found["bleu_1"].value == pytest.approx(5 / 6)
    assert found["bleu_2"].value == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    assert found["bleu_3"].value == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))
    assert found["bleu_4"].value == pytest.approx(0, abs=1e-3)


def test_bleu_punishes_a_text_shorter_than_its_closest_reference():
    """3 words of 3 are there, the closer reference has 2: none. Against 5 alone: e^(1 - 5/3)."""
    assert text_metrics.compute_bleu([DOG])["bleu_1"].value == pytest.approx(1)
    alone = TokenizedPrediction(DOG.text, DOG.references[:1])
    assert text_metrics.compute_bleu([alone])["bleu_1"].value == pytest.approx(math.exp(1 - 5 / 3))


def test_rouge_l_by_hand():
    """Longest common subsequence 5 of 6 and 6; and 3 of 3 and 5: F = 2.44 P R / (R + 1.44 P)."""
    found = text_metrics.compute_rouge_l([CAT, DOG])
    dog = 2.44 * 1 * 0.6 / (0.6 + 1.44 * 1)
    assert found.item_scores == pytest.approx([5 / 6, dog])
    assert found.value == pytest.approx((5 / 6 + dog) / 2)


def test_cider_of_texts_equal_to_their_references_is_ten_and_of_strangers_zero():
    same = [
        TokenizedPrediction(f"{word} five tokens long here", [f"{word} five tokens long here"])
        for word in "ab"
    ]
    # Only n-grams with the one word that tells the two apart have weight; all of them match.
    assert text_metrics.compute_cider(same).value == pytest.approx(10)
    strangers = [
        TokenizedPrediction("x y z w", ["a b c d"]),
        TokenizedPrediction("p q r s", ["e f g h"]),
    ]
    assert text_metrics.compute_cider(strangers).value == 0


def test_cider_of_one_item_is_unavailable_with_the_reason():
    found = text_metrics.compute_cider([CAT])
    assert found.value is None and found.item_scores == [None]
    assert "two items" in found.measured_by


def test_the_order_of_items_changes_no_score():
    items = [
        TokenizedPrediction(f"{'a ' * n}b c {n}", [f"a b {'c ' * n}{n}", "b c"])
        for n in range(1, 9)
    ]
    mixed = random.Random(0).sample(range(8), 8)
    for score in (
        text_metrics.compute_rouge_l,
        text_metrics.compute_cider,
        lambda i: text_metrics.compute_bleu(i)["bleu_2"],
    ):
        straight, turned = score(items), score([items[i] for i in mixed])
        assert turned.value == pytest.approx(straight.value)
        assert turned.item_scores == pytest.approx([straight.item_scores[i] for i in mixed])


def test_empty_texts_score_zero():
    empty = [TokenizedPrediction("", ["a b"]), TokenizedPrediction("", ["c d"])]
    scores = [
        text_metrics.compute_rouge_l(empty),
        text_metrics.compute_cider(empty),
        text_metrics.compute_bleu(empty)["bleu_1"],
    ]
    scores.append(text_metrics._compute_meteor_exact_stem(empty))
    assert [score.value for score in scores] == pytest.approx([0, 0, 0, 0])


def test_meteor_exact_stem_by_hand():
    """5 of 6 words match in 2 runs: F = 5/6, penalty .5 (2/5)^3; `runs` matches `run` by stem."""
    cat, runs = (
        TokenizedPrediction(CAT.text, CAT.references),
        TokenizedPrediction("he runs", ["he run"]),
    )
    found = text_metrics._compute_meteor_exact_stem([cat, runs])
    assert found.item_scores == pytest.approx(
        [5 / 6 * (1 - 0.5 * (2 / 5) ** 3), 1 - 0.5 * (1 / 2) ** 3]
    )
    assert found.value == pytest.approx(sum(found.item_scores) / 2)


def test_meteor_without_java_has_a_name_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    name, score = text_metrics.compute_meteor([CAT], "en", seconds=5)
    assert name == "meteor_exact_stem"
    assert score == text_metrics._compute_meteor_exact_stem([CAT])


@pytest.mark.parametrize(
    "script",
    ["echo broken; exit 1", "exit 0", "sleep 100", "while read line; do echo; done"],
    ids=["prints and fails", "says nothing", "hangs in a child", "answers nonsense"],
)
def test_a_broken_java_neither_stops_nor_holds_the_stage(monkeypatch, tmp_path, script):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(java.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    start = time.monotonic()
    name, _ = text_metrics.compute_meteor([CAT] * 500, "en", seconds=2)
    assert name == "meteor_exact_stem"
    assert time.monotonic() - start < 20


@needs_java
def test_meteor_equals_the_wrapper_of_pycocoevalcap():
    from pycocoevalcap.meteor.meteor import Meteor

    items = [CAT, DOG, TokenizedPrediction("", ["a"])]
    name, ours = text_metrics.compute_meteor(items, "en", seconds=120)
    value, scores = Meteor().compute_score(*text_metrics._to_coco_format(items))
    assert name == "meteor"
    assert ours.value == pytest.approx(value)
    assert ours.item_scores == pytest.approx(scores)


@needs_java
def test_meteor_of_a_language_without_resources_matches_exact_words_and_says_so():
    name, found = text_metrics.compute_meteor(
        [TokenizedPrediction("加 入 糖", ["加 入 糖"])], "zh", seconds=60
    )
    assert (name, found.value) == ("meteor", pytest.approx(1))
    assert "exact matches only" in found.measured_by


def test_bert_score_is_one_for_equal_texts_and_zero_for_empty_ones():
    texts = ["A girl bakes bread.", "", "Rain falls on the city."]
    references = [["A girl bakes bread.", "No."], ["Something."], ["A cat sleeps."]]
    found = text_metrics.compute_bert_score(texts, references, ["en"] * 3)
    assert found.item_scores[:2] == pytest.approx([1, 0], abs=1e-5)
    assert 0 < found.item_scores[2] < 0.9
    assert found.value == pytest.approx(sum(found.item_scores) / 3)


def test_bert_score_is_unavailable_for_a_language_that_the_model_does_not_read():
    found = text_metrics.compute_bert_score(
        ["糖", "盐", "a"], [["糖"], ["盐"], ["a"]], ["zh", "zh", "en"]
    )
    assert found.value is None and found.item_scores == [None] * 3
    assert "unavailable" in found.measured_by and "zh" in found.measured_by


def test_a_stray_text_in_another_language_is_left_out_of_bert_score():
    found = text_metrics.compute_bert_score(
        ["a cat", "糖", "a dog"], [["a cat"], ["糖"], ["a dog"]], ["en", "zh", "en"]
    )
    assert found.item_scores[1] is None
    assert found.value == pytest.approx(1, abs=1e-5)
    assert "2 items" in found.measured_by


def foil(record, slot, log_prob):
    return {"record": record, "position": 0, "slot": slot, "log_prob": log_prob}


def test_an_item_is_wrong_if_any_foil_reaches_its_reference():
    """a: above both. b: ties with x. c: under y. So 2 of 3; of the slot `x` 1 of 3, of `y` too."""
    rows = [foil("a", "", -1), foil("a", "x", -2), foil("a", "y", -3)]
    rows += [foil("b", "x", -1), foil("b", "", -1), foil("b", "y", -3)]
    rows += [foil("c", "x", -9), foil("c", "", -5), foil("c", "y", -4)]
    found = text_metrics.compute_foil_error(rows)
    assert (found["error"], found["items"]) == (pytest.approx(2 / 3), 3)
    assert found["by_slot"] == pytest.approx({"x": 1 / 3, "y": 1 / 3})
    assert text_metrics.compute_foil_error(rows[::-1]) == found


def test_the_standard_error_counts_articles_and_not_chunks():
    """Written again as loops; equal to s / sqrt(n) where each item is a cluster of its own."""
    values, clusters = [1.0, 1.0, 0.0, 0.5, 0.25, 0.0], list("aabbbc")
    mean = sum(values) / 6
    squares = 0.0
    for name in "abc":
        squares += sum(v - mean for v, c in zip(values, clusters, strict=True) if c == name) ** 2
    expected = (3 / 2 * squares) ** 0.5 / 6
    assert clustered_standard_error(values, clusters) == pytest.approx(expected)
    alone = clustered_standard_error(values, list("abcdef"))
    spread = (sum((v - mean) ** 2 for v in values) / 5) ** 0.5
    assert alone == pytest.approx(spread / 6**0.5)


def test_five_copies_of_each_item_in_its_cluster_leave_the_standard_error():
    values, clusters = [0.1, 0.4, 0.9], list("abc")
    once = clustered_standard_error(values, clusters)
    assert clustered_standard_error(values * 5, clusters * 5) == pytest.approx(once)
    assert math.isnan(clustered_standard_error(values, list("aaa")))


def test_skill_by_hand():
    """(.94 - .7) / (1 - .7) = .8; the error .03 is scaled by 1 / .3."""
    found = compute_skill(0.94, 0.03, {"topic": 0.5, "picture": 0.7, "both": 1.0})
    assert found == pytest.approx({"value": 0.8, "standard_error": 0.1})
    assert compute_skill(0.7, 0.0, {"text": 0.7, "picture": 0.5, "both": 1.0})["value"] == 0


def test_where_one_input_allows_all_there_is_no_skill():
    found = compute_skill(0.9, 0.1, {"text": 1.0, "picture": 0.5, "both": 1.0})
    assert round_metrics(found) == {"value": "unavailable", "standard_error": "unavailable"}


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.64, "below"), (0.66, "inside"), (0.73, "inside"), (0.75, "above")]
)
def test_above_the_ceiling_something_leaks(value, verdict):
    """Ceiling .7: inside means .65 to .7 + 2 x .02."""
    found = compare_to_ceiling(value, 0.02, 0.7, below=0.05, above=2.0)
    assert (found["low"], found["high"]) == (pytest.approx(0.65), pytest.approx(0.74))
    assert found["verdict"] == verdict
