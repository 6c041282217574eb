"""A Transformer layer (arXiv:1706.03762, section 3) whose FFN is a separate call.

MuSE exchanges tokens between self-attention and FFN, so the layer has no single forward.

B items, N tokens, M attended tokens, D width. Masks are true at tokens, false at padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """Multi-head attention that also returns the attention weights of its first query."""

    def __init__(self, d: int, heads: int, dropout: float):
        """dropout: of attention weights, in training"""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, M, D), (B, M) -> (B, N, D), weights of the first query (B, M)

        The weights are means over heads before dropout, without gradient, in float32 or finer.
        """
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d_k)
        k, v = self.key_value(keys).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        allowed = mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        with torch.no_grad():
            products = (q[:, :, :1] @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
            products = products.to(torch.promote_types(q.dtype, torch.float32))
            weights = products.masked_fill(~allowed, -torch.inf).softmax(-1).mean(1)[:, 0]
        return self.out(attended.transpose(1, 2).flatten(2)), weights


class TransformerLayer(nn.Module):
    """Self-attention, optional cross-attention, and FFN, each with residual and LayerNorm.

    pre_norm: LayerNorm before each sublayer (true) or after its residual (false)
    has_cross_attention: whether `cross_attention` is available
    """

    def __init__(
        self,
        d: int,
        heads: int,
        d_ff: int,
        dropout: float,
        pre_norm: bool,
        has_cross_attention: bool,
    ):
        super().__init__()
        self.pre_norm, self.dropout = pre_norm, nn.Dropout(dropout)
        self.own, self.own_norm = MultiHeadAttention(d, heads, dropout), nn.LayerNorm(d)
        if has_cross_attention:
            self.across, self.across_norm = MultiHeadAttention(d, heads, dropout), nn.LayerNorm(d)
        inner = nn.Linear(d, d_ff), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d_ff, d)
        self.ffn, self.ffn_norm = nn.Sequential(*inner), nn.LayerNorm(d)

    def _add_residual(self, x: Tensor, change: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.dropout(change)
        return x if self.pre_norm else norm(x)

    def self_attention(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, N) -> (B, N, D), attention weights of the first token (B, N)"""
        normed = self.own_norm(x) if self.pre_norm else x
        attended, weights = self.own(normed, normed, mask)
        return self._add_residual(x, attended, self.own_norm), weights

    def cross_attention(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D), (B, M, D), (B, M) -> (B, N, D)"""
        normed, keys = (self.across_norm(z) if self.pre_norm else z for z in (x, other))
        return self._add_residual(x, self.across(normed, keys, mask)[0], self.across_norm)

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)"""
        normed = self.ffn_norm(x) if self.pre_norm else x
        return self._add_residual(x, self.ffn(normed), self.ffn_norm)
