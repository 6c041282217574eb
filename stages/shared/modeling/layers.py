"""Layers and tensor operations that several models use."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn

from stages.shared.features.mapped_rows import Rows
from stages.shared.features.store import Features

Pair = tuple[Tensor, Tensor]
BLOCK_VALUES = 2**26  # of a block of features at most, 256 MB in single precision


class ElementwiseScale(nn.Module):
    """W (.) Z read as a Hadamard product: one weight per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, z: Tensor) -> Tensor:
        return self.weight * z


class Standardizer(nn.Module):
    """(z - mean) / deviation per channel, with statistics of the training split."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit_normalization(self, blocks: Iterable[Tensor]) -> None:
        """Set the statistics to those of all rows, given in blocks (..., width).

        Blocks are combined in double precision (Chan, Golub, LeVeque 1983), in which those
        of a single block keep their bits. Without rows (a corpus without titles) values pass
        unchanged.
        """
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for block in blocks:
            rows = block.flatten(0, -2)
            if len(rows):
                added, block_mean = len(rows) / (count + len(rows)), rows.mean(0).double()
                block_squares = len(rows) * rows.std(0, correction=0).double() ** 2
                shift = block_mean - mean
                squares = squares + block_squares + count * added * shift**2
                mean = mean + added * shift
                count += len(rows)
        if count:
            self.mean.copy_(mean)
            # The constant keeps channels without variance finite.
            self.deviation.copy_((squares / count).sqrt().to(self.deviation.dtype) + 1e-4)

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.deviation


def iter_blocks(rows: Rows, indices: Sequence[int]) -> Iterator[Tensor]:
    """The rows at these indices in order, in blocks.  (M, ...) fp16 -> (n, ...) float32"""
    for block in _split_indices(rows, indices):
        yield torch.from_numpy(rows[block]).float()


def iter_token_blocks(features: Features, indices: Sequence[int]) -> Iterator[Tensor]:
    """The tokens of the texts at these indices in order, in blocks.  -> (n, Dt) float32"""
    for block in _split_indices(features.tokens, indices):
        tokens = features.tokens[block][features.token_mask[block]]
        yield torch.from_numpy(tokens).float()


def _split_indices(rows: Rows, indices: Sequence[int]) -> Iterator[Sequence[int]]:
    size = max(1, BLOCK_VALUES // max(1, prod(rows.shape[1:])))
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def map_pair(function: Callable[..., Tensor], *pairs: Pair) -> Pair:
    """A function of the first values of the pairs, and of the second ones."""
    first, second = map(function, *pairs)
    return first, second


def scatter_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """The rows in order where mask (B, N) is true, zeros elsewhere.  (M, ...) -> (B, N, ...)"""
    scattered = rows.new_zeros(*mask.shape, *rows.shape[1:])
    scattered[mask] = rows
    return scattered


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """The rows at indices (B, W) of each item.  (B, N, D) -> (B, W, D)"""
    return rows.gather(1, indices[..., None].expand(-1, -1, rows.shape[-1]))


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """The mean over the rows where mask (B, N) is 1, 0 if there are none.  (B, N, D) -> (B, D)"""
    total = (mask[:, None].to(rows.dtype) @ rows).squeeze(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def pack_sequences(
    blocks: list[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Concatenate the tokens of several blocks into one sequence with masked tokens at the end.

    A T5 encoder depends on the distance between tokens, so gaps would make an item depend on the
    rest of its batch.
    blocks: tokens (B, n, k, D), mask (B, n, k), rank (n, 1). Tokens are sorted by rank; those of
    equal rank stay in order, block after block.
    -> (B, L, D), 0 where masked; (B, L), 1 where not masked
    """
    tokens = torch.cat([tokens.flatten(1, 2) for tokens, _, _ in blocks], 1)
    mask = torch.cat([mask.flatten(1) for _, mask, _ in blocks], 1)
    rank = torch.cat([rank.expand(mask.shape).flatten(1) for _, mask, rank in blocks], 1)
    end_rank = rank.amax() + 1
    order = rank.where(mask, end_rank).argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
    mask = mask.gather(1, order)
    tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
    return tokens * mask[..., None], mask.to(tokens.dtype)
