"""Text metrics and entity scores against published values, where their files are on the machine.

POLYMUSE_REAL_DATA names the folder that holds `metric_vectors`, with `nlg_eval` (hypotheses and
references of nlg-eval's own tests), `rouge` (of google-research's rouge_scorer, from ROUGE-1.5.5)
and `seqeval`; without it the tests are skipped.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from rapidfuzz.distance import LCSseq
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

from stages.evaluate import text_metrics
from stages.evaluate.text_metrics import TokenizedPrediction
from stages.shared.metrics.classification import compute_entity_scores, extract_entities

VECTORS = Path(os.environ.get("POLYMUSE_REAL_DATA", "unset")) / "metric_vectors"
pytestmark = pytest.mark.skipif(not VECTORS.is_dir(), reason="needs the folder metric_vectors")

SEQEVAL_SCORES = {"precision": precision_score, "recall": recall_score, "f1": f1_score}


def read_lines(name: str) -> list[str]:
    return (VECTORS / name).read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def items() -> list[TokenizedPrediction]:
    files = (read_lines(f"nlg_eval/{name}.txt") for name in ("hyp", "ref1", "ref2"))
    return [
        TokenizedPrediction(text, [*references]) for text, *references in zip(*files, strict=True)
    ]


def test_text_scores_are_those_that_nlg_eval_publishes(items):
    """Its test_nlgeval.py, to the six decimals that it has."""
    scores = text_metrics.compute_bleu(items)
    values = [scores[f"bleu_{n}"].value for n in (1, 2, 3, 4)]
    assert values == pytest.approx([0.55, 0.428174, 0.284043, 0.201143], abs=1e-6)
    assert text_metrics.compute_rouge_l(items).value == pytest.approx(0.522104, abs=1e-6)
    assert text_metrics.compute_cider(items).value == pytest.approx(1.242192, abs=1e-6)


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR's jar needs Java")
def test_meteor_is_that_which_nlg_eval_publishes(items):
    with text_metrics.MeteorJar(300) as jar:
        name, score = text_metrics.compute_meteor(items, "en", jar)
    assert name == "meteor"
    assert score.value == pytest.approx(0.295797, abs=1e-6)


def test_precision_and_recall_of_rouge_l_are_those_of_rouge_155():
    """ROUGE-1.5.5 weighs both equally; COCO's F, which is ours, has beta 1.2."""
    expected = json.loads((VECTORS / "rouge/expected.json").read_text())["against_rouge155"]
    targets, predictions = read_lines("rouge/target.txt"), read_lines("rouge/prediction.txt")
    for target, prediction, values in zip(targets, predictions, expected["rougeL"], strict=True):
        reference, text = (
            re.sub("[^a-z0-9]+", " ", line.lower()).split() for line in (target, prediction)
        )
        length = LCSseq.similarity(text, reference)
        assert length / len(text) == pytest.approx(values["precision"], abs=1e-5)
        assert length / len(reference) == pytest.approx(values["recall"], abs=1e-5)
        (f,) = text_metrics.compute_rouge_l(
            [TokenizedPrediction(" ".join(text), [" ".join(reference)])]
        ).item_scores
        precision, recall = values["precision"], values["recall"]
        assert f == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision), abs=1e-4)


@pytest.mark.parametrize(
    ("rule", "options"), [("lenient", {}), ("strict", {"mode": "strict", "scheme": IOB2})]
)
def test_entity_scores_are_those_of_seqeval_on_its_conll_sample(rule, options):
    gold, predicted = [[]], [[]]
    for line in read_lines("seqeval/tests/data/ground_truth.txt"):
        if not line.strip():
            gold.append([])
            predicted.append([])
            continue
        *_, truth, guess = line.split()
        gold[-1].append(truth)
        predicted[-1].append(guess)
    pairs = [pair for pair in zip(gold, predicted, strict=True) if pair[0]]
    gold, predicted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    scores = compute_entity_scores(extract_entities(gold, predicted), draws=2, seed=0)[rule]
    expected = [score(gold, predicted, **options) for score in SEQEVAL_SCORES.values()]
    assert [scores[name] for name in SEQEVAL_SCORES] == expected
    assert 0 < scores["f1"] < 1
