"""Layers that more than one model uses."""

import torch
from torch import Tensor, nn


class ElementwiseScale(nn.Module):
    """W (.) Z read as a Hadamard product: one weight a channel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, z: Tensor) -> Tensor:
        return self.weight * z


class Standardizer(nn.Module):
    """(z - mean) / deviation by channel, both measured once on the training split."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit_normalization(self, rows: Tensor) -> None:
        """rows (N, width); none (a corpus without titles) leaves values as they are"""
        if len(rows):
            self.mean.copy_(rows.mean(0))
            self.deviation.copy_(rows.std(0, correction=0) + 1e-4)  # a constant channel is finite

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.deviation


def scatter_rows(rows: Tensor, places: Tensor) -> Tensor:
    """Rows put where places (B, N) is true, zeros elsewhere.  (M, ...) -> (B, N, ...)"""
    found = rows.new_zeros(*places.shape, *rows.shape[1:])
    found[places] = rows
    return found


def gather_rows(rows: Tensor, places: Tensor) -> Tensor:
    """The rows at these places, numbers (B, W).  (B, N, D) -> (B, W, D)"""
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[-1]))


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Over what the mask (B, N) has, 0 where it has nothing.  (B, N, D) -> (B, D)"""
    total = (mask[:, None].to(rows.dtype) @ rows).squeeze(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def pack_sequences(
    blocks: list[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Tokens of several blocks as one sequence whose masked tokens stand at its end.

    So that an item is the same beside others: a T5's encoder tells tokens by their distance.
    blocks: tokens (B, n, k, D), mask (B, n, k), rank (n, 1), by which they are sorted; those of one
    rank stay in their order, block after block.
    -> (B, L, D), 0 where masked, (B, L) 1 where not
    """
    tokens = torch.cat([tokens.flatten(1, 2) for tokens, _, _ in blocks], 1)
    mask = torch.cat([mask.flatten(1) for _, mask, _ in blocks], 1)
    rank = torch.cat([rank.expand(mask.shape).flatten(1) for _, mask, rank in blocks], 1)
    last = rank.amax() + 1
    order = rank.where(mask, last).argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
    mask = mask.gather(1, order)
    tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    return tokens * mask[..., None], mask.to(tokens.dtype)
