"""Operations on a T5 (transformers T5ForConditionalGeneration): scoring, generation, attention.

A generator gives the T5's decoder B sequences of L vectors to attend to: hidden (B, L, D) and mask
(B, L), 1 at valid positions. They replace the output of the T5's encoder (`encoder_outputs`) or
pass through it (`inputs_embeds`).
"""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from stages.shared.training.losses import token_log_probs

if TYPE_CHECKING:  # importing transformers takes a second
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

Connection = Literal["encoder_outputs", "inputs_embeds"]


class Float32Linear(nn.Linear):
    """A linear layer that computes in the precision of its weights, also under autocast.

    As the output layer of a T5: the ratios of probabilities that PPO and DPO optimize are near 1,
    where the step of bf16 logits is larger than their changes.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def drop_bypassed_encoder(t5: "T5ForConditionalGeneration", connection: Connection) -> None:
    """Remove the T5's encoder where it is bypassed, so that no weights are unused."""
    if connection == "encoder_outputs":
        t5.encoder.block = nn.ModuleList()
        t5.encoder.add_module("final_layer_norm", nn.Identity())


def encode_inputs(
    t5: "T5ForConditionalGeneration", hidden: Tensor, mask: Tensor, connection: Connection
) -> Tensor:
    """The vectors that the decoder attends to.  (B, L, D), (B, L) -> (B, L, D)"""
    if connection == "encoder_outputs":
        return hidden
    return t5.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state


def _as_encoder_outputs(hidden: Tensor) -> "BaseModelOutput":
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=hidden)


def compute_logits(
    t5: "T5ForConditionalGeneration", hidden: Tensor, mask: Tensor, labels: Tensor
) -> Tensor:
    """Logits of each token given those before it.  labels (B, Y) -> (B, Y, vocabulary)"""
    return t5(  # passing labels would compute a cross-entropy as well
        encoder_outputs=_as_encoder_outputs(hidden),
        attention_mask=mask,
        decoder_input_ids=t5._shift_right(labels),
    ).logits


def compute_log_probs(
    t5: "T5ForConditionalGeneration", hidden: Tensor, mask: Tensor, labels: Tensor
) -> Tensor:
    """log p of each label token in nats, 0 at IGNORE_INDEX.  labels (B, Y) -> (B, Y)"""
    return token_log_probs(compute_logits(t5, hidden, mask, labels), labels)


@torch.inference_mode()
def generate(
    t5: "T5ForConditionalGeneration",
    hidden: Tensor,
    mask: Tensor,
    max_tokens: int,
    num_beams: int,
    temperature: float,
    top_p: float,
    no_repeat_ngram_size: int,
) -> Tensor:
    """Token ids by greedy or beam search at temperature 0, by sampling above it.

    no_repeat_ngram_size: length of the token sequences that occur only once in a text; 0: no limit
    -> (B, at most max_tokens + 1), starting with the start token
    """
    # Without top_k=0 transformers samples from the 50 most probable tokens only.
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    return t5.generate(  # pyright: ignore[reportAttributeAccessIssue] (its own protocol)
        encoder_outputs=_as_encoder_outputs(hidden),
        attention_mask=mask,
        max_new_tokens=max_tokens,
        num_beams=num_beams,
        do_sample=temperature > 0,
        no_repeat_ngram_size=no_repeat_ngram_size,
        **sampling,
    )


@torch.inference_mode()
def compute_cross_attention(
    t5: "T5ForConditionalGeneration", hidden: Tensor, mask: Tensor, ids: Tensor
) -> Tensor:
    """The decoder's cross-attention weights at each generated token.

    ids (B, Y + 1), starting with the start token -> (B, Y, L), the mean over layers and heads
    """
    implementation = t5.config._attn_implementation
    t5.set_attn_implementation("eager")  # the only one that returns its weights
    try:
        output = t5(
            encoder_outputs=_as_encoder_outputs(hidden),
            attention_mask=mask,
            decoder_input_ids=ids[:, :-1],
            output_attentions=True,
        )
    finally:
        if implementation is not None:
            t5.set_attn_implementation(implementation)
    weights = torch.stack(output.cross_attentions)  # (layers, B, heads, Y, L)
    return weights.float().mean((0, 2))
