"""Gaussian noise on features, to test how a model depends on them.

The standard deviation is sigma times the root mean square of an item's own values, so that sigma 1
adds as much noise as there is signal. B items, D the width of a feature.
"""

from zlib import crc32

import torch
from torch import Tensor


def add_noise(
    x: Tensor, mask: Tensor, sigma: float, generators: list[torch.Generator] | None
) -> Tensor:
    """x (B, ..., D) plus noise where mask (B, ...) is set.

    generators: one for each item, or None to draw from the global random state.
    """
    weights = mask[..., None].to(x.dtype)
    total = (x.square() * weights).flatten(1).sum(1)
    count = mask.view(len(mask), -1).sum(1) * x.shape[-1]
    rms = (total / count.clamp(min=1)).sqrt().view(-1, *[1] * (x.ndim - 1))
    if generators is None:
        noise = torch.randn_like(x)
    else:
        noise = torch.zeros_like(x)
        for row, row_mask, generator in zip(noise, mask, generators, strict=True):
            samples = torch.randn(int(row_mask.sum()), x.shape[-1], generator=generator)
            row[row_mask] = samples.to(row)  # the mask of a (B, D) item has shape ()
    return x + sigma * rms * noise * weights


def create_generators(features: Tensor) -> list[torch.Generator]:
    """One random generator for each item, seeded by its features (B, D) alone."""
    rows = features.float().cpu().numpy()
    return [torch.Generator().manual_seed(crc32(row.tobytes())) for row in rows]
