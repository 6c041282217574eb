"""Layers that more than one model uses."""

import torch
from torch import Tensor, nn


class Elementwise(nn.Module):
    """W (.) Z read as a Hadamard product: one weight a channel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, z: Tensor) -> Tensor:
        return self.weight * z


class Standardise(nn.Module):
    """(z - mean) / deviation by channel, both measured once on the training split."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def measure(self, rows: Tensor) -> None:
        """rows (N, width); none (a corpus without titles) leaves values as they are"""
        if len(rows):
            self.mean.copy_(rows.mean(0))
            self.deviation.copy_(rows.std(0, correction=0) + 1e-4)  # a constant channel is finite

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.deviation
