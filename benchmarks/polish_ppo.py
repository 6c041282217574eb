"""Generating the texts of one PolishPPO iteration: in one batch with a key-value cache.

The baselines are the same `generate` text by text, and one batch without the cache. Sizes are those
of the synthetic articles and their tiny T5. Decoding is greedy, so that the texts can be checked to
be equal before timing; sampling takes the same steps.
"""

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.timing import time_interleaved
from stages.shared.generation import decoding

ARTICLES, ROLLOUTS, POSITIONS, TOKENS, WIDTH, VOCABULARY, ROUNDS = 8, 4, 20, 140, 128, 600, 3


def build_decoder() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=WIDTH // 4,
        d_ff=512,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=None,  # all texts have the same length
    )
    t5 = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in t5.parameters():
            if weight.ndim > 1:  # initial weights would repeat one word for every input
                weight.normal_(std=0.15)
    return t5


def build_encoder_output() -> tuple[Tensor, Tensor]:
    """Random encoder output: hidden (R, L, D), mask (R, L)."""
    texts = ARTICLES * ROLLOUTS
    return torch.randn(texts, POSITIONS, WIDTH), torch.ones(texts, POSITIONS)


def main() -> list[str]:
    t5, (hidden, mask) = build_decoder(), build_encoder_output()

    def batched() -> Tensor:
        return decoding.generate(t5, hidden, mask, TOKENS, 1, 0.0, 1.0)

    def one_by_one() -> Tensor:
        rows = zip(hidden.split(1), mask.split(1), strict=True)
        return torch.cat([decoding.generate(t5, h, m, TOKENS, 1, 0.0, 1.0) for h, m in rows])

    @torch.inference_mode()
    def without_cache() -> Tensor:
        return t5.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            max_new_tokens=TOKENS,
            use_cache=False,
        )

    texts = batched()
    assert texts.shape == (ARTICLES * ROLLOUTS, TOKENS + 1)
    assert len(texts.unique(dim=0)) > len(texts) / 2  # texts depend on their input
    for baseline in (one_by_one, without_cache):
        if not torch.equal(baseline(), texts):
            raise AssertionError(f"{baseline.__name__} generates other texts")
    functions = {"batched": batched, "one by one": one_by_one, "without cache": without_cache}
    seconds = time_interleaved(functions, ROUNDS)
    ratio = {name: value / seconds["batched"] for name, value in seconds.items()}
    if ratio["one by one"] < 5:
        raise AssertionError(f"one by one takes only {ratio['one by one']:.1f} x the time")
    return [
        f"{len(texts)} texts of {TOKENS} tokens, batched with cache, median of {ROUNDS}",
        f"  one by one       {ratio['one by one']:5.2f} x the time",
        f"  without cache    {ratio['without cache']:5.2f} x the time",
        "  the greedy texts of all three are equal",
    ]
