import copy
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from stages.shared.generation import decoders, decoding
from stages.shared.generation.paper import GeneratorModel
from stages.shared.generation.paragraph_t5 import add_paragraph_embeddings, init_recency_bias
from tests.support import tiny_flexmuse

SENTINELS = [37, 38, 39]


@pytest.fixture
def plain():
    return tiny_flexmuse.build_t5(40).eval()


@pytest.fixture
def paragraph_t5(plain):
    paragraph_t5 = copy.deepcopy(plain)
    add_paragraph_embeddings(paragraph_t5, SENTINELS, 3.0)
    return paragraph_t5.eval()


@pytest.fixture
def encoder_output():
    torch.manual_seed(1)
    return torch.randn(3, 5, 16), torch.ones(3, 5)


def test_zero_embeddings_do_not_change_a_trained_t5(plain, encoder_output):
    paragraph_t5 = copy.deepcopy(plain)
    add_paragraph_embeddings(paragraph_t5, SENTINELS, 0.0)
    labels = torch.tensor([[5, 37, 6, 38, 7, 1], [8, 9, 39, 11, 37, 1], [1, 1, 1, 1, 1, 1]])
    expected = decoding.compute_log_probs(plain, *encoder_output, labels)
    assert torch.equal(decoding.compute_log_probs(paragraph_t5, *encoder_output, labels), expected)


def test_log_probs_are_not_rounded_to_bf16_under_autocast(plain, encoder_output):
    """bf16 keeps 8 bits: logits near 8 have steps of 1/32."""
    model = GeneratorModel(tiny_flexmuse.build_model_config(), Mock(), plain)
    labels = torch.tensor([[5, 37, 6], [8, 1, 9], [1, 7, 4]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = decoding.compute_logits(model.t5, *encoder_output, labels)
        states = plain.decoder(
            input_ids=plain._shift_right(labels),
            encoder_hidden_states=encoder_output[0],
            encoder_attention_mask=encoder_output[1],
        ).last_hidden_state
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
    if plain.config.scale_decoder_outputs:
        states = states * plain.model_dim**-0.5
    with torch.no_grad():
        torch.testing.assert_close(logits, states.float() @ plain.lm_head.weight.T)


def test_scoring_computes_no_loss(plain, paragraph_t5, encoder_output):
    labels = torch.tensor([[5, 37, 6], [8, 1, -100], [1, -100, -100]])
    expected = plain(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoder_output[0]),
        attention_mask=encoder_output[1],
        labels=labels,
    )
    assert expected.loss is not None
    losses = []
    for t5 in (plain, paragraph_t5):
        t5.register_forward_hook(lambda t5, given, output: losses.append(output.loss))
        logits = decoding.compute_logits(t5, *encoder_output, labels)
        assert torch.equal(logits, expected.logits) is (t5 is plain)
    assert losses == [None, None]


def test_each_token_gets_its_paragraph_embedding_and_a_sentinel_begins_a_paragraph(paragraph_t5):
    ids = torch.tensor([[0, 5, 37, 6, 7, 38, 8, 39, 9, 37, 5]])
    paragraph, expected = 0, []
    for token in ids[0].tolist():
        paragraph += token in SENTINELS
        expected.append(
            paragraph_t5.shared.weight[token] + paragraph_t5.paragraph.weight[min(paragraph, 3)]
        )
    assert torch.equal(paragraph_t5.embed(ids)[0], torch.stack(expected))


@pytest.mark.parametrize("cached", [True, False])
def test_greedy_generation_matches_the_argmax_over_the_whole_text(plain, encoder_output, cached):
    generated = decoding.generate(plain, *encoder_output, 20, 1, 0.0, 1.0, 0)[:, 1:]
    paragraph_t5 = copy.deepcopy(plain)
    # As sentinels take tokens that it will generate.
    add_paragraph_embeddings(paragraph_t5, generated.unique().tolist(), 3.0)
    paragraph_t5.eval().generation_config.use_cache = cached
    ids = decoding.generate(paragraph_t5, *encoder_output, 20, 1, 0.0, 1.0, 0)
    assert torch.isin(ids, paragraph_t5.sentinels).any(1).all()
    most_probable = decoding.compute_logits(
        paragraph_t5, *encoder_output, ids[:, 1:].contiguous()
    ).argmax(-1)
    has_ended = (ids[:, 1:] == 1).cumsum(1) - (ids[:, 1:] == 1).int() > 0
    assert torch.equal(most_probable[~has_ended], ids[:, 1:][~has_ended])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_sequence_of_tokens_is_repeated_where_that_is_forbidden(
    plain, encoder_output, num_beams
):
    """Random weights repeat themselves; with a size of 0 they may."""

    def count_repeated_pairs(no_repeat_ngram_size: int) -> int:
        ids = decoding.generate(
            plain, *encoder_output, 20, num_beams, 0.0, 1.0, no_repeat_ngram_size
        )
        texts = [row[: row.index(1)] if 1 in row else row for row in ids[:, 1:].tolist()]
        pairs = [list(pairwise(text)) for text in texts]
        return sum(len(text) - len(set(text)) for text in pairs)

    assert count_repeated_pairs(0) > 0 == count_repeated_pairs(2)


def test_beam_search_uses_the_paragraphs_of_each_beam(paragraph_t5, encoder_output):
    greedy, beam = (
        decoding.generate(paragraph_t5, *encoder_output, 12, beams, 0.0, 1.0, 0) for beams in (1, 4)
    )

    def score(ids):
        scores = decoding.compute_log_probs(paragraph_t5, *encoder_output, ids[:, 1:].contiguous())
        has_ended = (ids[:, 1:] == 1).cumsum(1) - (ids[:, 1:] == 1).int() > 0
        return scores.masked_fill(has_ended, 0).sum(1)

    assert (score(beam) >= score(greedy) - 1e-4).all()


def test_a_saved_paragraph_t5_is_restored(paragraph_t5, tmp_path):
    tokenizer = decoders.train_tokenizer(tiny_flexmuse.TEXTS * 4, 400)
    decoders.save_decoder(tmp_path, paragraph_t5, tokenizer)
    restored, _ = decoders.load_decoder(tmp_path)
    restored.load_state_dict(paragraph_t5.state_dict())
    ids = torch.tensor([[0, 5, 38, 6]])
    assert torch.equal(restored.embed(ids), paragraph_t5.embed(ids))


def test_a_new_decoder_attends_to_recent_tokens_and_each_head_further_back(plain):
    init_recency_bias(plain)
    attention = plain.decoder.block[0].layer[0].SelfAttention
    bias = attention.compute_bias(40, 40, device=torch.device("cpu"))[0, :, -1]  # (heads, keys)
    assert (bias[:, -1] == 0).all()  # itself
    assert torch.equal(bias[:, -3], -2 * 4.0 ** -torch.arange(4.0))  # two tokens before
    assert (bias.diff(dim=1) >= 0).all()
    assert (bias.softmax(-1)[0, -3:].sum() > 0.9) and (bias.softmax(-1)[3, -3:].sum() < 0.2)
