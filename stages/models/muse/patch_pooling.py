"""Image cells from the patches of a frozen encoder."""

from collections.abc import Iterable
from math import isqrt

import torch.nn.functional as F
from torch import Tensor, nn

from stages.shared.modeling.layers import Standardizer
from stages.shared.runtime.stage import InputError


class PatchPooling(nn.Module):
    """Average P patches, row by row, to grid x grid cells and standardize each channel.

    A prefix token, such as the class token of a CLIP, is dropped. Raises InputError if the patches
    do not form a square, or if there are fewer of them than cells.
    """

    def __init__(self, patches: int, width: int, grid: int):
        super().__init__()
        self.side, self.grid = isqrt(patches), grid
        self.num_prefix_tokens = patches - self.side**2
        if self.num_prefix_tokens > 1 or not 1 <= grid <= self.side:
            raise InputError(
                f"params.yaml: image.grid_size of a classifier is {grid}, but its images have "
                f"{patches} patches: give 1 to {self.side}, and an encoder whose patches form a "
                "square"
            )
        self.width, self.cells = width, grid * grid
        self.standardise = Standardizer(width)

    def fit_normalization(self, blocks: Iterable[Tensor]) -> None:
        """Store the statistics of the train split's patches, given in blocks (n, P, width)."""
        self.standardise.fit_normalization(
            patches[:, self.num_prefix_tokens :] for patches in blocks
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, width) -> (B, cells, width)"""
        channels_first = patches[:, self.num_prefix_tokens :].transpose(1, 2)
        square = channels_first.unflatten(2, (self.side, self.side))
        pooled = F.adaptive_avg_pool2d(square, self.grid)
        return self.standardise(pooled.flatten(2).transpose(1, 2))
