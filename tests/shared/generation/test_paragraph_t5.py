import copy

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from stages.shared.generation import decoders, decoding
from stages.shared.generation.paragraph_t5 import add_paragraph_embeddings, init_recency_bias
from tests.support import tiny_flexmuse

SENTINELS = [37, 38, 39]


@pytest.fixture
def plain():
    return tiny_flexmuse.build_t5(40).eval()


@pytest.fixture
def told(plain):
    told = copy.deepcopy(plain)
    add_paragraph_embeddings(told, SENTINELS, 3.0)
    return told.eval()


@pytest.fixture
def memory():
    torch.manual_seed(1)
    return torch.randn(3, 5, 16), torch.ones(3, 5)


def test_vectors_of_zero_leave_what_a_trained_t5_says(plain, memory):
    told = copy.deepcopy(plain)
    add_paragraph_embeddings(told, SENTINELS, 0.0)
    labels = torch.tensor([[5, 37, 6, 38, 7, 1], [8, 9, 39, 11, 37, 1], [1, 1, 1, 1, 1, 1]])
    expected = decoding.compute_log_probs(plain, *memory, labels)
    assert torch.equal(decoding.compute_log_probs(told, *memory, labels), expected)


def test_scoring_computes_no_loss_that_nobody_reads(plain, told, memory):
    labels = torch.tensor([[5, 37, 6], [8, 1, -100], [1, -100, -100]])
    expected = plain(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory[0]),
        attention_mask=memory[1],
        labels=labels,
    )
    assert expected.loss is not None
    losses = []
    for t5 in (plain, told):
        t5.register_forward_hook(lambda t5, given, output: losses.append(output.loss))
        found = decoding.compute_logits(t5, *memory, labels)
        assert torch.equal(found, expected.logits) is (t5 is plain)
    assert losses == [None, None]


def test_a_token_carries_the_vector_of_its_paragraph_and_a_sentinel_of_the_one_it_begins(told):
    ids = torch.tensor([[0, 5, 37, 6, 7, 38, 8, 39, 9, 37, 5]])
    number, expected = 0, []
    for token in ids[0].tolist():
        number += token in SENTINELS
        expected.append(told.shared.weight[token] + told.paragraph.weight[min(number, 3)])
    assert torch.equal(told.embed(ids)[0], torch.stack(expected))


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_written_token_by_token_is_what_the_whole_text_makes_most_probable(
    plain, memory, cached
):
    written = decoding.generate(plain, *memory, 20, 1, 0.0, 1.0)[:, 1:]
    told = copy.deepcopy(plain)
    add_paragraph_embeddings(told, written.unique().tolist(), 3.0)  # tokens that it will write
    told.eval().generation_config.use_cache = cached
    ids = decoding.generate(told, *memory, 20, 1, 0.0, 1.0)
    assert torch.isin(ids, told.sentinels).any(1).all()
    best = decoding.compute_logits(told, *memory, ids[:, 1:].contiguous()).argmax(-1)
    ended = (ids[:, 1:] == 1).cumsum(1) - (ids[:, 1:] == 1).int() > 0
    assert torch.equal(best[~ended], ids[:, 1:][~ended])


def test_a_search_scores_each_beam_by_its_own_paragraphs(told, memory):
    greedy, searched = (decoding.generate(told, *memory, 12, beams, 0.0, 1.0) for beams in (1, 4))

    def score(ids):
        scores = decoding.compute_log_probs(told, *memory, ids[:, 1:].contiguous())
        ended = (ids[:, 1:] == 1).cumsum(1) - (ids[:, 1:] == 1).int() > 0
        return scores.masked_fill(ended, 0).sum(1)

    assert (score(searched) >= score(greedy) - 1e-4).all()


def test_a_saved_one_is_restored_with_its_paragraphs(told, tmp_path):
    tokenizer = decoders.train_tokenizer(tiny_flexmuse.TEXTS * 4, 400)
    decoders.save_decoder(tmp_path, told, tokenizer)
    again, _ = decoders.load_decoder(tmp_path)
    again.load_state_dict(told.state_dict())
    ids = torch.tensor([[0, 5, 38, 6]])
    assert torch.equal(again.embed(ids), told.embed(ids))


def test_a_new_decoder_looks_at_what_it_has_just_written_first_and_each_head_further(plain):
    init_recency_bias(plain)
    attention = plain.decoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(40, 40, device=torch.device("cpu"))[0, :, -1]  # (heads, keys)
    assert (bias[:, -1] == 0).all()  # itself
    assert torch.equal(bias[:, -3], -2 * 4.0 ** -torch.arange(4.0))  # two tokens before
    assert (bias.diff(dim=1) >= 0).all()
    assert (bias.softmax(-1)[0, -3:].sum() > 0.9) and (bias.softmax(-1)[3, -3:].sum() < 0.2)
