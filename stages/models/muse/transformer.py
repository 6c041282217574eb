"""A Transformer's layer (arXiv:1706.03762, section 3) that can be halted before its FFN.

B items, N tokens, M tokens that are looked at, D width. Masks are true where there is a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """Attention of several heads, which also tells what its first query sees."""

    def __init__(self, d: int, heads: int, dropout: float):
        """dropout: of attention weights, in training"""
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, M, D), (B, M) -> (B, N, D), (B, M) the first query's, mean of heads

        The weights are those before dropout, without gradient, in float32 or finer.
        """
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d_k)
        k, v = self.key_value(keys).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        allowed = mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        with torch.no_grad():
            products = (q[:, :, :1] @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
            products = products.to(torch.promote_types(q.dtype, torch.float32))
            weights = products.masked_fill(~allowed, -torch.inf).softmax(-1).mean(1)[:, 0]
        return self.out(seen.transpose(1, 2).flatten(2)), weights


class TransformerLayer(nn.Module):
    """Self-attention, attention to other tokens if `across`, FFN: each a call of its own.

    pre: a LayerNorm stands before each of them, or else after it
    """

    def __init__(self, d: int, heads: int, d_ff: int, dropout: float, pre: bool, across: bool):
        super().__init__()
        self.pre, self.dropout = pre, nn.Dropout(dropout)
        self.own, self.own_norm = MultiHeadAttention(d, heads, dropout), nn.LayerNorm(d)
        if across:
            self.across, self.across_norm = MultiHeadAttention(d, heads, dropout), nn.LayerNorm(d)
        inner = nn.Linear(d, d_ff), nn.ReLU(), nn.Dropout(dropout), nn.Linear(d_ff, d)
        self.ffn, self.ffn_norm = nn.Sequential(*inner), nn.LayerNorm(d)

    def _add_residual(self, x: Tensor, change: Tensor, norm: nn.Module) -> Tensor:
        x = x + self.dropout(change)
        return x if self.pre else norm(x)

    def self_attention(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, N) -> (B, N, D), (B, N) weights of the first token"""
        read = self.own_norm(x) if self.pre else x
        seen, weights = self.own(read, read, mask)
        return self._add_residual(x, seen, self.own_norm), weights

    def cross_attention(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D), (B, M, D), (B, M) -> (B, N, D)"""
        read, keys = (self.across_norm(z) if self.pre else z for z in (x, other))
        return self._add_residual(x, self.across(read, keys, mask)[0], self.across_norm)

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)"""
        read = self.ffn_norm(x) if self.pre else x
        return self._add_residual(x, self.ffn(read), self.ffn_norm)
