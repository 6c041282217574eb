"""What writers do with a T5 (transformers T5ForConditionalGeneration): score, write, look.

A writer gives the T5's decoder B sequences of L vectors to attend to: hidden (B, L, D), mask (B, L)
1 where there is something. They stand in for what the T5's encoder would have made of a text, or
pass through it (`inputs_embeds`).
"""

from typing import Literal

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from stages.shared.training.losses import token_log_probs

Connection = Literal["encoder_outputs", "inputs_embeds"]


def drop_bypassed_encoder(t5: nn.Module, connection: Connection) -> None:
    """Drop the T5's encoder where it is by-passed: no dead weights."""
    if connection == "encoder_outputs":
        t5.encoder.block = nn.ModuleList()
        t5.encoder.final_layer_norm = nn.Identity()


def encode_inputs(t5: nn.Module, hidden: Tensor, mask: Tensor, connection: Connection) -> Tensor:
    """What the decoder attends to.  (B, L, D), (B, L) -> (B, L, D)"""
    if connection == "encoder_outputs":
        return hidden
    return t5.encoder(inputs_embeds=hidden, attention_mask=mask).last_hidden_state


def compute_logits(t5: nn.Module, hidden: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Of every token given those before it.  labels (B, Y) -> (B, Y, vocabulary)"""
    return t5(  # given labels, it would compute a cross-entropy too
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        attention_mask=mask,
        decoder_input_ids=t5._shift_right(labels),
    ).logits


def compute_log_probs(t5: nn.Module, hidden: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """log p of every token of the labels in nats, 0 where IGNORED.  labels (B, Y) -> (B, Y)"""
    return token_log_probs(compute_logits(t5, hidden, mask, labels), labels)


@torch.inference_mode()
def generate(
    t5: nn.Module,
    hidden: Tensor,
    mask: Tensor,
    max_tokens: int,
    beams: int,
    temperature: float,
    top_p: float,
) -> Tensor:
    """Token ids of the most probable text found, at temperature 0, or of one that is drawn.

    -> (B, at most max_tokens + 1), the first one that of the start
    """
    # Without top_k=0 transformers draws from the 50 most probable tokens alone.
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature else {}
    return t5.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
        attention_mask=mask,
        max_new_tokens=max_tokens,
        num_beams=beams,
        do_sample=temperature > 0,
        **drawn,
    )


@torch.inference_mode()
def compute_cross_attention(t5: nn.Module, hidden: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
    """Where the decoder looks while it emits each token of a written text.

    ids (B, Y + 1), the first one that of the start -> (B, Y, L), the mean over layers and heads
    """
    usual = t5.config._attn_implementation
    t5.set_attn_implementation("eager")  # the only one that tells its weights
    try:
        output = t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=ids[:, :-1],
            output_attentions=True,
        )
    finally:
        t5.set_attn_implementation(usual)
    weights = torch.stack(output.cross_attentions)  # (layers, B, heads, Y, L)
    return weights.float().mean((0, 2))
