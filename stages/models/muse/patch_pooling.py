"""Cells of a picture from the patches of an encoder that learns no more."""

from math import isqrt

import torch.nn.functional as F
from torch import Tensor, nn

from stages.shared.modeling.layers import Standardizer
from stages.shared.runtime.stage import InputError


class PatchPooling(nn.Module):
    """P patches, row by row, as grid x grid cells: standardised by channel, neighbours averaged.

    A token before the square of patches, as a CLIP's class token, is left out. Raises WrongInput
    where patches make no square, or fewer than the cells asked for.
    """

    def __init__(self, patches: int, width: int, grid: int):
        super().__init__()
        self.side, self.grid = isqrt(patches), grid
        self.num_prefix_tokens = patches - self.side**2  # tokens
        if self.num_prefix_tokens > 1 or not 1 <= grid <= self.side:
            raise InputError(
                f"params.yaml: picture.grid of a reader is {grid}, and its pictures have {patches} "
                f"patches: give 1 to {self.side}, of an encoder whose patches make a square"
            )
        self.width, self.cells = width, grid * grid
        self.standardise = Standardizer(width)

    def fit_normalization(self, patches: Tensor) -> None:
        """Take the training split's statistics.  (N, P, width)"""
        self.standardise.fit_normalization(patches[:, self.num_prefix_tokens :].flatten(0, 1))

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, width) -> (B, cells, width)"""
        placed = patches[:, self.num_prefix_tokens :].transpose(1, 2)
        square = placed.unflatten(2, (self.side, self.side))
        pooled = F.adaptive_avg_pool2d(square, self.grid)
        return self.standardise(pooled.flatten(2).transpose(1, 2))
