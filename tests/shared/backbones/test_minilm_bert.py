"""MiniLM as a trainable BERT: names, states, gradients and tokens are those of transformers."""

import subprocess
import sys

import pytest
import torch

from stages.shared.backbones import bert
from stages.shared.backbones.minilm_bert import MiniLMBert, MiniLMTokenizer
from tests.support import tiny_bert
from tests.support.project_files import ROOT

LENGTHS = torch.tensor([3, 20, 10, 7, 1])
TEXTS = ["A cat, in the rain!", "hi", "", "猫", "[SEP]", "un\u00adknown 🤷 naïve"]


@pytest.fixture(scope="module")
def reference():
    return tiny_bert.load_minilm()


@pytest.mark.parametrize("training", [False, True])
def test_states_and_gradients_are_those_of_transformers_bit_by_bit(reference, training):
    ids = torch.randint(1000, 9000, (5, 20), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(20) < LENGTHS[:, None]
    ours = MiniLMBert()
    assert list(ours.state_dict()) == list(reference[0].state_dict())
    states, gradients = [], []
    for model in (ours, reference[0]):
        model.train(training).requires_grad_(True)
        torch.manual_seed(0)  # of dropout
        x = model.get_submodule("embeddings")(input_ids=ids)
        for layer in model.get_submodule("encoder.layer").children():
            x = layer(x, valid[:, None, None])
        states.append(x.detach())
        gradients.append(torch.autograd.grad(x[valid].square().sum(), list(model.parameters())))
        model.eval()
    assert torch.equal(*states)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_tokens_are_those_of_transformers(reference):
    ours, theirs = MiniLMTokenizer(), reference[1]
    expected = theirs(TEXTS, add_special_tokens=False)["input_ids"]
    assert ours(TEXTS, add_special_tokens=False)["input_ids"] == expected
    for ids in expected:
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert set(ours.all_special_ids) == set(theirs.all_special_ids)
    for name in ("unk_token_id", "cls_token_id", "sep_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_an_encoder_saved_with_the_files_of_transformers_is_restored(tmp_path, reference):
    """Older model folders hold the tokenizer and the config of a BERT."""
    encoder = bert.load("minilm", 1, 30)
    encoder.save(tmp_path)
    reference[1].save_pretrained(tmp_path)
    restored = bert.restore(tmp_path)
    assert restored.tokenize(["naïve", "猫"]) == encoder.tokenize(["naïve", "猫"])
    assert list(restored.state_dict()) == list(encoder.state_dict())


def test_loading_draws_no_random_numbers():
    """The initial weights of a classifier do not depend on how its text encoder is loaded."""
    state = torch.get_rng_state()
    bert.load("minilm", 2, 30)
    assert torch.equal(torch.get_rng_state(), state)


def test_minilm_is_loaded_without_transformers():
    code = (
        "import sys; from stages.shared.backbones import bert; bert.load('minilm', 1, 30); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
