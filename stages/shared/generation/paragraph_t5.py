"""A T5 whose decoder knows which paragraph of a text it is in.

A paragraph begins after a sentinel token (stages/shared/generation/article_dataset.py). T5's relative positions say
how far apart two tokens are, not where in the text they stand; to find out, a decoder would have to
look back for the last sentinel before it can look for its picture, and learns that late. So to each
token's embedding is added a learned vector of its paragraph, as BERT's segment embeddings
(arXiv:1810.04805).
"""

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration


class ParagraphT5(T5ForConditionalGeneration):
    """Made of a T5 by `tell_paragraphs`."""

    def forward(
        self,
        encoder_outputs=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_inputs_embeds=None,
        **kwargs,
    ):
        """As a T5's, without labels; decoder_input_ids are those from the start of the text on."""
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.embed(decoder_input_ids)
        return super().forward(
            encoder_outputs=encoder_outputs,
            attention_mask=attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            **kwargs,
        )

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, Y) from the start of the text on -> (B, Y, D)"""
        ended = torch.isin(ids, self.sentinels).cumsum(1)  # a sentinel belongs to what it begins
        return self.shared(ids) + self.paragraph(ended.clamp(max=len(self.sentinels)))

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs):
        """With a cache the last token's embedding is asked for; all tokens tell where it is."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        wanted = inputs.pop("decoder_input_ids").shape[1]
        inputs["decoder_inputs_embeds"] = self.embed(input_ids)[:, -wanted:]
        return inputs


def add_paragraph_embeddings(
    t5: T5ForConditionalGeneration, sentinels: list[int], spread: float
) -> None:
    """Make an ArticleT5 of a T5, its weights as they are: copies would have to be tied anew.

    spread: standard deviation of the vectors at first; 0 leaves what a trained T5 says unchanged.
    """
    t5.__class__ = ParagraphT5
    t5.config.sentinels = sentinels
    t5.register_buffer("sentinels", torch.tensor(sentinels), persistent=False)
    t5.paragraph = nn.Embedding(len(sentinels) + 1, t5.config.d_model)
    nn.init.normal_(t5.paragraph.weight, std=spread)


@torch.no_grad()
def init_recency_bias(t5: T5ForConditionalGeneration) -> None:
    """Let the decoder of a new T5 begin with an eye for what it has just written.

    Texts of articles are long, and at first attention is spread over all of them alike. Its bias
    starts at -slope times the bucket of the distance, a head's slope a quarter of that before it,
    as in ALiBi (arXiv:2108.12409), and is learned from there.
    """
    bias = t5.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    buckets, heads = bias.shape
    slopes = 4.0 ** -torch.arange(heads, dtype=bias.dtype)
    bias.copy_(-torch.arange(buckets, dtype=bias.dtype)[:, None] * slopes)
