"""The frozen MiniLM has the states and the tokens of transformers."""

import subprocess
import sys

import pytest
import torch

from stages.shared.pretrained import minilm
from tests.support import tiny_bert
from tests.support.project_files import ROOT

TEXTS = ["A cat, in the rain!", "hi", "one more \t sentence that is longer " * 9, "", "猫"]


@pytest.fixture(scope="module")
def reference():
    return tiny_bert.load_minilm()


@pytest.mark.parametrize("max_tokens", [None, 7, 64])
def test_tokens_are_those_of_transformers(reference, max_tokens):
    options = {"truncation": True, "max_length": max_tokens} if max_tokens else {}
    expected = reference[1](TEXTS, verbose=False, **options)["input_ids"]
    tokenizer = minilm.load_tokenizer(max_tokens)
    assert [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)] == expected


def test_states_are_those_of_transformers_with_and_without_padding(reference):
    model = minilm.load_minilm()
    inputs = reference[1](TEXTS, padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.inference_mode():
        expected = reference[0](**inputs).last_hidden_state
        states = model(ids, mask)
        torch.testing.assert_close(states[mask > 0], expected[mask > 0], rtol=1e-4, atol=1e-5)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = model(ids[row : row + 1, :length])
            torch.testing.assert_close(alone[0], expected[row, :length], rtol=1e-4, atol=1e-5)


def test_the_model_is_frozen():
    model = minilm.load_minilm()
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("stage", ["align", "augment", "embed", "evaluate", "illustrate"])
def test_stages_that_only_need_minilm_do_not_import_transformers(stage):
    code = f"""
import sys
import stages.{stage}
from stages.shared.encoders.tiny import MiniLMTower
from stages.evaluate import bert_score
MiniLMTower(64)
bert_score.MiniLMScorer().compute_f1(["a"], [["b"]])
if hasattr(stages.{stage}, "__path__"):
    import stages.{stage}.__main__
print(sorted({{"transformers", "open_clip", "mlflow", "prefect"}} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
