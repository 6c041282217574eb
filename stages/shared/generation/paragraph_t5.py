"""A T5 with paragraph embeddings in its decoder.

A paragraph begins after a sentinel token (stages/shared/generation/article_dataset.py). T5's
relative positions encode the distance between tokens, not their place in the text: to know its
paragraph, a decoder would have to attend to the last sentinel before it can attend to its image,
which it learns late. Each token's embedding therefore gets a learned vector of its paragraph, like
BERT's segment embeddings (arXiv:1810.04805).
"""

from typing import Any

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration


class ParagraphT5(T5ForConditionalGeneration):
    """A T5 after `add_paragraph_embeddings`."""

    sentinels: Tensor  # their ids
    paragraph: nn.Embedding

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] (fewer arguments)
        self,
        encoder_outputs: Any = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ):
        """Like T5's forward, without labels; decoder_input_ids start at the start of the text."""
        if decoder_inputs_embeds is None and decoder_input_ids is not None:
            decoder_inputs_embeds = self.embed(decoder_input_ids)
        return super().forward(
            encoder_outputs=encoder_outputs,
            attention_mask=attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            **kwargs,
        )

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, Y) from the start of the text -> (B, Y, D)"""
        # A sentinel belongs to the paragraph that it begins.
        paragraph = torch.isin(ids, self.sentinels).cumsum(1)
        return self.shared(ids) + self.paragraph(paragraph.clamp(max=len(self.sentinels)))

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """With a cache only the last token is embedded, but its paragraph depends on all tokens."""
        inputs = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, **kwargs
        )
        num_tokens = inputs.pop("decoder_input_ids").shape[1]
        inputs["decoder_inputs_embeds"] = self.embed(input_ids)[:, -num_tokens:]
        return inputs


def add_paragraph_embeddings(
    t5: T5ForConditionalGeneration, sentinels: list[int], std: float
) -> None:
    """Turn a T5 into a ParagraphT5 in place: copies of its tied weights would have to be retied.

    std: initial standard deviation of the embeddings; 0 keeps the outputs of a trained T5.
    """
    t5.__class__ = ParagraphT5
    t5.config.sentinels = sentinels
    t5.register_buffer("sentinels", torch.tensor(sentinels), persistent=False)
    t5.paragraph = nn.Embedding(len(sentinels) + 1, t5.config.d_model)
    nn.init.normal_(t5.paragraph.weight, std=std)


@torch.no_grad()
def init_recency_bias(t5: T5ForConditionalGeneration) -> None:
    """Initialize the decoder of a new T5 to attend to the tokens that it has just generated.

    In long texts, attention is otherwise spread evenly over all tokens at first. The bias starts at
    -slope times the distance bucket, as in ALiBi (arXiv:2108.12409), and is learned from there. The
    slope of each head is a quarter of the previous one.
    """
    bias = t5.decoder.get_parameter("block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    num_buckets, num_heads = bias.shape
    slopes = 4.0 ** -torch.arange(num_heads, dtype=bias.dtype)
    bias.copy_(-torch.arange(num_buckets, dtype=bias.dtype)[:, None] * slopes)
