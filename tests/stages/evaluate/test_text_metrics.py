"""Scores of generated texts, with values derived by hand and the original scorers as oracles."""

import gzip
import math
import os
import random
import shutil
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.rouge.rouge import Rouge

from stages.evaluate import bert_score, text_metrics
from stages.evaluate.bert_score import BertScoreConfig
from stages.evaluate.paraphrases import list_words
from stages.evaluate.text_metrics import TokenizedPrediction
from stages.shared.data.tokenization import tokenize_text
from stages.shared.metrics.common import (
    clustered_standard_error,
    compare_to_ceiling,
    compute_skill,
    round_metrics,
)
from stages.shared.pretrained import minilm
from stages.shared.runtime.stage import InputError
from tests.support import tiny_bert

CAT = TokenizedPrediction("the cat sat on the mat", ["the cat is on the mat"])
DOG = TokenizedPrediction("a dog runs", ["a big dog runs fast", "dogs run"])

MINILM = bert_score.MiniLMScorer()
TOKENS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join)


def compute_meteor(items, language, timeout):
    with text_metrics.MeteorJar(timeout) as jar:
        return text_metrics.compute_meteor(items, language, jar)


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR's jar needs Java")


def test_bleu_matches_values_derived_by_hand():
    """5 of 6 words and 3 of 5, 1 of 4, 0 of 3 longer n-grams match; equal lengths: no penalty."""
    result = text_metrics.compute_bleu([CAT])
    assert result["bleu_1"].value == pytest.approx(5 / 6)
    assert result["bleu_2"].value == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    assert result["bleu_3"].value == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))
    assert result["bleu_4"].value == pytest.approx(0, abs=1e-3)


def test_bleu_penalizes_a_text_shorter_than_its_closest_reference():
    """3 of 3 words match; the closest reference has 2: no penalty. With only 5: e^(1 - 5/3)."""
    assert text_metrics.compute_bleu([DOG])["bleu_1"].value == pytest.approx(1)
    long_only = TokenizedPrediction(DOG.text, DOG.references[:1])
    assert text_metrics.compute_bleu([long_only])["bleu_1"].value == pytest.approx(
        math.exp(1 - 5 / 3)
    )


def test_rouge_l_matches_values_derived_by_hand():
    """Longest common subsequence: 5 of 6 and 6; 3 of 3 and 5. F = 2.44 P R / (R + 1.44 P)."""
    result = text_metrics.compute_rouge_l([CAT, DOG])
    dog = 2.44 * 1 * 0.6 / (0.6 + 1.44 * 1)
    assert result.item_scores == pytest.approx([5 / 6, dog])
    assert result.value == pytest.approx((5 / 6 + dog) / 2)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.builds(TokenizedPrediction, TOKENS, st.lists(TOKENS, min_size=1, max_size=3)),
        min_size=1,
    )
)
def test_rouge_l_equals_pycocoevalcap(items):
    references = dict(enumerate(item.references for item in items))
    texts = {i: [item.text] for i, item in enumerate(items)}
    value, scores = Rouge().compute_score(references, texts)
    result = text_metrics.compute_rouge_l(items)
    assert result.value == pytest.approx(value, rel=1e-12)
    assert result.item_scores == pytest.approx(scores.tolist(), rel=1e-12)


def test_cider_is_ten_for_texts_equal_to_their_references_and_zero_without_matches():
    equal = [
        TokenizedPrediction(f"{word} five tokens long here", [f"{word} five tokens long here"])
        for word in "ab"
    ]
    # Only n-grams with the word that differs between the items have weight; all of them match.
    assert text_metrics.compute_cider(equal).value == pytest.approx(10)
    different = [
        TokenizedPrediction("x y z w", ["a b c d"]),
        TokenizedPrediction("p q r s", ["e f g h"]),
    ]
    assert text_metrics.compute_cider(different).value == 0


def test_cider_of_one_item_is_unavailable_with_a_reason():
    result = text_metrics.compute_cider([CAT])
    assert result.value is None and result.item_scores == [None]
    assert "two items" in result.measured_by


def test_cider_of_items_with_the_same_references_is_unavailable():
    result = text_metrics.compute_cider([CAT, CAT])
    assert result.value is None and "different references" in result.measured_by


def test_sentences_without_a_common_word_have_no_bleu():
    tokens = [tokenize_text(text, "words") for text in ["यह रोटी है", "वे किताबें लिखते थे"]]
    score = text_metrics.compute_bleu([TokenizedPrediction(tokens[0], [tokens[1]])])["bleu_1"]
    assert score.value < 1e-6


def test_the_order_of_items_changes_no_score():
    items = [
        TokenizedPrediction(f"{'a ' * n}b c {n}", [f"a b {'c ' * n}{n}", "b c"])
        for n in range(1, 9)
    ]
    order = random.Random(0).sample(range(8), 8)
    for score in (
        text_metrics.compute_rouge_l,
        text_metrics.compute_cider,
        lambda i: text_metrics.compute_bleu(i)["bleu_2"],
    ):
        original, shuffled = score(items), score([items[i] for i in order])
        assert shuffled.value == pytest.approx(original.value)
        assert shuffled.item_scores == pytest.approx([original.item_scores[i] for i in order])


def test_empty_texts_score_zero():
    empty = [TokenizedPrediction("", ["a b"]), TokenizedPrediction("", ["c d"])]
    scores = [
        text_metrics.compute_rouge_l(empty),
        text_metrics.compute_cider(empty),
        text_metrics.compute_bleu(empty)["bleu_1"],
    ]
    scores.append(text_metrics._compute_meteor_exact_stem(empty))
    assert [score.value for score in scores] == pytest.approx([0, 0, 0, 0])


def test_meteor_exact_stem_matches_values_derived_by_hand():
    """5 of 6 words match in 2 chunks: F = 5/6, penalty .5 (2/5)^3; `runs` matches `run` by stem."""
    cat, runs = (
        TokenizedPrediction(CAT.text, CAT.references),
        TokenizedPrediction("he runs", ["he run"]),
    )
    result = text_metrics._compute_meteor_exact_stem([cat, runs])
    assert result.item_scores == pytest.approx(
        [5 / 6 * (1 - 0.5 * (2 / 5) ** 3), 1 - 0.5 * (1 / 2) ** 3]
    )
    assert result.value == pytest.approx(sum(result.item_scores) / 2)


def test_the_score_without_java_is_not_called_meteor(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    name, score = compute_meteor([CAT], "en", timeout=5)
    assert name == "meteor_exact_stem"
    assert score == text_metrics._compute_meteor_exact_stem([CAT])


@pytest.mark.parametrize(
    "script",
    ["echo broken; exit 1", "exit 0", "sleep 100", "while read line; do echo; done"],
    ids=["prints and fails", "prints nothing", "hangs in a child", "prints empty lines"],
)
def test_a_broken_java_neither_stops_nor_blocks_the_stage(monkeypatch, tmp_path, script):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(java.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    start = time.monotonic()
    name, _ = compute_meteor([CAT] * 500, "en", timeout=2)
    assert name == "meteor_exact_stem"
    assert time.monotonic() - start < 20


@pytest.mark.slow
@needs_java
def test_one_java_process_scores_several_corpora_alike():
    with text_metrics.MeteorJar(timeout=300) as jar:
        second, first, again = (jar.score(items, "en") for items in ([DOG, CAT], [CAT], [CAT]))
        assert len(jar._processes) == 1
    assert first == again
    assert second.item_scores[1] == first.item_scores[0]
    assert all(process.poll() is not None for process in jar._processes.values())


@needs_java
def test_java_starts_again_for_words_that_it_does_not_know():
    with text_metrics.MeteorJar(timeout=300, texts=[CAT.text, *CAT.references]) as jar:
        jar.score([CAT], "en")
        first = jar._processes[text_metrics.ENGLISH]
        jar.score([TokenizedPrediction("the mat sat", ["the cat"])], "en")
        assert first.poll() is None
        jar.score([DOG], "en")
        second = jar._processes[text_metrics.ENGLISH]
    assert first is not second
    assert first.poll() is not None and second.poll() is not None
    assert not Path(jar._folder.name).exists()


@pytest.mark.slow
@needs_java
def test_paraphrases_of_the_words_that_occur_give_the_scores_of_all_paraphrases(monkeypatch):
    """Texts from METEOR's own table, so that paraphrases of all kinds match."""
    table = gzip.decompress(
        (text_metrics._meteor_dir() / "data" / "paraphrase-en.gz").read_bytes()
    ).decode()
    lines = table.split("\n")
    draw = random.Random(0)
    edits = ["{}", "{} .", "{}, and so on", "({})", "-{}-", "{}'s", "can't {}", "U.S. {}", "é {}"]
    items = []
    for _ in range(600):
        pairs = [draw.randrange(len(lines) // 3) for _ in range(3)]
        edit = draw.choice(edits)
        text, reference = (
            edit.format(" ".join(lines[3 * pair + side] for pair in pairs)) for side in (1, 2)
        )
        items.append(TokenizedPrediction(text, [reference.title(), " ".join(text.split()[::-1])]))
    assert 1000 < len(list_words(item.text for item in items)) < text_metrics.MAX_WORDS
    _, ours = compute_meteor(items, "en", timeout=300)
    monkeypatch.setattr(text_metrics, "MAX_WORDS", 0)
    _, expected = compute_meteor(items, "en", timeout=300)
    assert (ours.value, ours.item_scores) == (expected.value, expected.item_scores)


@pytest.mark.slow
@needs_java
def test_meteor_equals_that_of_the_wrapper_of_pycocoevalcap():
    from pycocoevalcap.meteor.meteor import Meteor

    items = [CAT, DOG, TokenizedPrediction("", ["a"])]
    name, ours = compute_meteor(items, "en", timeout=300)
    value, scores = Meteor().compute_score(*text_metrics._to_coco_format(items))
    assert name == "meteor"
    assert ours.value == pytest.approx(value)
    assert ours.item_scores == pytest.approx(scores)


@needs_java
def test_meteor_without_resources_for_the_language_reports_exact_matches_only():
    name, result = compute_meteor([TokenizedPrediction("加 入 糖", ["加 入 糖"])], "zh", timeout=60)
    assert (name, result.value) == ("meteor", pytest.approx(1))
    assert "exact matches only" in result.measured_by


def test_bert_score_equals_that_of_the_package():
    from bert_score import BERTScorer

    texts = ["A girl bakes bread.", "Rain falls on the city.", "x" * 9, "a " * 600, " A cat! "]
    references = [
        ["A boy eats bread.", "No."],
        ["A cat sleeps.", "It rains on a town, and it rains."],
        ["A cat."],
        ["b " * 700],
        ["The cat sat."],
    ]
    scorer = BERTScorer(model_type=str(minilm.get_model_dir()), num_layers=6)
    _, _, expected = scorer.score(texts, references)
    assert MINILM.compute_f1(texts, references) == pytest.approx(expected.tolist(), abs=2e-6)


def test_bert_score_of_a_text_without_tokens_is_zero():
    assert MINILM.compute_f1(["", "a cat"], [["a cat"], [" ", "a cat"]]) == pytest.approx(
        [0, 1], abs=1e-6
    )
    assert MINILM.compute_f1(["a cat"], [[" "]]) == [0]


def test_bert_score_is_one_for_equal_texts_and_zero_for_empty_ones():
    texts = ["A girl bakes bread.", "", "Rain falls on the city."]
    references = [["A girl bakes bread.", "No."], ["Something."], ["A cat sleeps."]]
    result = text_metrics.compute_bert_score(texts, references, ["en"] * 3, MINILM)
    assert result.item_scores[:2] == pytest.approx([1, 0], abs=1e-5)
    assert 0 < result.item_scores[2] < 0.9
    assert result.value == pytest.approx(sum(result.item_scores) / 3)


def test_bert_score_is_unavailable_for_an_unsupported_language():
    result = text_metrics.compute_bert_score(
        ["糖", "盐", "a"], [["糖"], ["盐"], ["a"]], ["zh", "zh", "en"], MINILM
    )
    assert result.value is None and result.item_scores == [None] * 3
    assert "unavailable" in result.measured_by and "zh" in result.measured_by


def test_a_single_text_in_another_language_is_excluded_from_bert_score():
    result = text_metrics.compute_bert_score(
        ["a cat", "糖", "a dog"], [["a cat"], ["糖"], ["a dog"]], ["en", "zh", "en"], MINILM
    )
    assert result.item_scores[1] is None
    assert result.value == pytest.approx(1, abs=1e-5)
    assert "2 items" in result.measured_by


def test_bert_score_of_a_folder_equals_that_of_minilm_itself():
    config = BertScoreConfig(model=f"hf:{minilm.get_model_dir()}", num_layers=6)
    scorer = bert_score.load_scorer(config)
    assert scorer.name.startswith("model layer 6, bert-score ")  # the folder's name, not its path
    texts = ["A girl bakes bread.", "x" * 9, " A cat! "]
    references = [["A boy eats bread.", "No."], ["A cat."], ["The cat sat."]]
    assert scorer.compute_f1(texts, references) == pytest.approx(
        MINILM.compute_f1(texts, references), abs=2e-6
    )


def test_bert_score_of_a_model_by_name_is_available_in_any_language(tmp_path):
    tiny_bert.save_bert(tmp_path / "bert")
    scorer = bert_score.load_scorer(BertScoreConfig(model=f"hf:{tmp_path}/bert", num_layers=2))
    result = text_metrics.compute_bert_score(
        ["糖 the fox", "", "lamp"], [["糖 the fox"], ["盐"], ["fox", "sat"]], ["zh"] * 3, scorer
    )
    assert result.item_scores[:2] == pytest.approx([1, 0], abs=1e-5)
    assert result.item_scores[2] < 1
    assert result.measured_by.startswith("BERTScore, bert layer 2, bert-score ")


@pytest.mark.parametrize("save", [tiny_bert.save_bert, tiny_bert.save_roberta])
def test_bert_score_cuts_texts_at_the_positions_of_the_model(tmp_path, save):
    save(tmp_path / "model")
    scorer = bert_score.load_scorer(BertScoreConfig(model=f"hf:{tmp_path}/model", num_layers=2))
    long = "the fox " * 40
    assert scorer.compute_f1([long], [[f"{long}under the lamp"]]) == pytest.approx([1], abs=1e-5)


@pytest.mark.parametrize(
    ("model", "num_layers", "message"),
    [
        ("minilm", 3, "num_layers is 6 or null for minilm"),
        ("bert-base-chinese", 8, "give minilm or hf:NAME"),
        ("hf:", None, "give minilm or hf:NAME"),
        ("hf:/no/such", None, "bert-score knows no best layer of /no/such: give a number"),
        ("hf:/no/such", 4, "evaluate.bert_score.model hf:/no/such, layer 4, could not be loaded"),
        ("hf:BERT", 9, "layer 9, could not be loaded .*layer"),
    ],
)
def test_a_model_that_cannot_compute_bert_score_is_named(tmp_path, model, num_layers, message):
    tiny_bert.save_bert(tmp_path / "bert")
    model = model.replace("BERT", str(tmp_path / "bert"))
    with pytest.raises(InputError, match=message):
        bert_score.load_scorer(BertScoreConfig(model=model, num_layers=num_layers))


def foil_row(record, slot, log_prob):
    return {"record": record, "position": 0, "slot": slot, "log_prob": log_prob}


def test_an_item_is_an_error_if_any_foil_reaches_its_reference():
    """a: above both. b: ties with x. c: below y. So 2 of 3; 1 of 3 for each slot."""
    rows = [foil_row("a", "", -1), foil_row("a", "x", -2), foil_row("a", "y", -3)]
    rows += [foil_row("b", "x", -1), foil_row("b", "", -1), foil_row("b", "y", -3)]
    rows += [foil_row("c", "x", -9), foil_row("c", "", -5), foil_row("c", "y", -4)]
    result = text_metrics.compute_foil_error(rows)
    assert (result["error"], result["items"]) == (pytest.approx(2 / 3), 3)
    assert result["by_slot"] == pytest.approx({"x": 1 / 3, "y": 1 / 3})
    assert text_metrics.compute_foil_error(rows[::-1]) == result


def test_the_standard_error_is_clustered_by_article():
    """Reimplemented as loops; equal to s / sqrt(n) if each item is a cluster of its own."""
    values, clusters = [1.0, 1.0, 0.0, 0.5, 0.25, 0.0], list("aabbbc")
    mean = sum(values) / 6
    squares = 0.0
    for name in "abc":
        squares += sum(v - mean for v, c in zip(values, clusters, strict=True) if c == name) ** 2
    expected = (3 / 2 * squares) ** 0.5 / 6
    assert clustered_standard_error(values, clusters) == pytest.approx(expected)
    unclustered = clustered_standard_error(values, list("abcdef"))
    deviation = (sum((v - mean) ** 2 for v in values) / 5) ** 0.5
    assert unclustered == pytest.approx(deviation / 6**0.5)


def test_copies_of_each_item_in_its_cluster_do_not_change_the_standard_error():
    values, clusters = [0.1, 0.4, 0.9], list("abc")
    once = clustered_standard_error(values, clusters)
    assert clustered_standard_error(values * 5, clusters * 5) == pytest.approx(once)
    assert math.isnan(clustered_standard_error(values, list("aaa")))


def test_skill_matches_a_value_derived_by_hand():
    """(.94 - .7) / (1 - .7) = .8; the error .03 is scaled by 1 / .3."""
    result = compute_skill(0.94, 0.03, {"topic": 0.5, "picture": 0.7, "both": 1.0})
    assert result == pytest.approx({"value": 0.8, "standard_error": 0.1})
    assert compute_skill(0.7, 0.0, {"text": 0.7, "picture": 0.5, "both": 1.0})["value"] == 0


def test_skill_is_unavailable_if_a_single_input_allows_the_highest_score():
    result = compute_skill(0.9, 0.1, {"text": 1.0, "picture": 0.5, "both": 1.0})
    assert round_metrics(result) == {"value": "unavailable", "standard_error": "unavailable"}


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.64, "below"), (0.66, "inside"), (0.73, "inside"), (0.75, "above")]
)
def test_the_verdict_depends_on_the_band_around_the_ceiling(value, verdict):
    """Ceiling .7: the band is .65 to .7 + 2 x .02."""
    result = compare_to_ceiling(value, 0.02, 0.7, below=0.05, above=2.0)
    assert (result["low"], result["high"]) == (pytest.approx(0.65), pytest.approx(0.74))
    assert result["verdict"] == verdict
