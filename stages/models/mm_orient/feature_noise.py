"""Noise added to features, to see what a model makes of them: normal, in multiples of their size.

sigma 1 is as much noise as there is signal: its deviation is the root mean square of an item's own
numbers. B items, D the width of a feature.
"""

from zlib import crc32

import torch
from torch import Tensor


def add_noise(x: Tensor, mask: Tensor, sigma: float, draws: list[torch.Generator] | None) -> Tensor:
    """x (B, ..., D) with noise where mask (B, ...); draws: one an item, or None: whatever comes."""
    held = mask[..., None].to(x.dtype)
    total = (x.square() * held).flatten(1).sum(1)
    count = mask.view(len(mask), -1).sum(1) * x.shape[-1]
    size = (total / count.clamp(min=1)).sqrt().view(-1, *[1] * (x.ndim - 1))
    if draws is None:
        noise = torch.randn_like(x)
    else:
        noise = torch.zeros_like(x)
        for row, places, draw in zip(noise, mask, draws, strict=True):
            drawn = torch.randn(int(places.sum()), x.shape[-1], generator=draw)
            row[places] = drawn.to(row)  # of a vector its one place is ()
    return x + sigma * size * noise * held


def create_generators(features: Tensor) -> list[torch.Generator]:
    """A source of noise for each item that its features alone decide.  (B, D)"""
    rows = features.float().cpu().numpy()
    return [torch.Generator().manual_seed(crc32(row.tobytes())) for row in rows]
