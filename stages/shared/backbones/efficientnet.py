"""EfficientNet-Lite0 (arXiv:1905.11946) as image encoder of a classifier, with tuned last blocks.

    encoder = EfficientNetLite0(num_tuned_blocks=2, grid=4)
    states = encoder.frozen.encode(contents)    # by sha256, each (C, H, W)
    cells = encoder(stacked_states)             # (B, G * G, 1280)

The input of the first tuned block is constant, so it is computed once per image and cached, like
the states of a text encoder. The weights are those of a package, see
stages/shared/pretrained/efficientnet_lite0.py.

B images; C channels of H x W states: 192 of 7 x 7 for up to 4 tuned blocks.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.shared.data import image_store
from stages.shared.data.cache import batched
from stages.shared.modeling.layers import Standardizer
from stages.shared.pretrained import efficientnet_lite0
from stages.shared.pretrained.feature_cache import (
    StoredFeatures,
    open_feature_cache,
    pack_features,
)
from stages.shared.runtime.progress import progress_bar
from stages.shared.torch_setup.devices import get_device, inference_context

NAME = "efficientnet-lite0"  # image.encoder in params.yaml
IMAGE_BATCH_SIZE = 8  # part of the cache key
BATCHES_PER_BLOCK = 256  # of cells in memory at once when statistics are computed


class FrozenBlocks:
    """The stem and the first `num_blocks` blocks, which are not trained."""

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks

    @cached_property
    def _run(self) -> Callable[[Tensor], Tensor]:
        network = efficientnet_lite0.load_network().efficientnet
        blocks = efficientnet_lite0.FirstBlocks(network, self.num_blocks).eval()
        return efficientnet_lite0.compile_network(blocks, f"blocks-{self.num_blocks}")

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the states of an image"""
        size = efficientnet_lite0.IMAGE_SIZE
        states = self._run(torch.zeros(1, 3, size, size, device=get_device()))
        _, channels, height, width = states.shape
        return channels, height, width

    def _encode_batch(self, contents: Iterable[bytes]) -> list[Tensor]:
        pixels = torch.stack([preprocess(content) for content in contents])
        with inference_context():
            return list(self._run(pixels.to(get_device())).half().cpu())

    def encode(self, contents: Mapping[str, bytes]) -> dict[str, np.ndarray]:
        """The input of the first tuned block, fp16 (C, H, W) per image.

        contents: of image files by their sha256
        """
        if not contents:
            return {}
        states = self._encode_batch(contents.values())
        return {name: x.numpy() for name, x in zip(contents, states, strict=True)}

    def encode_cached(self, contents: Mapping[str, bytes]) -> Mapping[str, np.ndarray]:
        """As `encode`, for many images; cached under POLYMUSE_HOME and read on access."""
        fingerprint = f"{efficientnet_lite0.fingerprint()} {self.num_blocks}"
        store = open_feature_cache("blocks", fingerprint, IMAGE_BATCH_SIZE)

        def compute(batch: list[bytes]) -> list[bytes]:
            return [pack_features(states=states) for states in self._encode_batch(batch)]

        if missing := store.missing_keys(contents):
            items = progress_bar(((key, contents[key]) for key in missing), "images", len(missing))
            store.compute_missing(items, compute, IMAGE_BATCH_SIZE)
        return StoredFeatures(store, contents, "states")


class EfficientNetLite0(nn.Module):
    """Cells from the last `num_tuned_blocks` blocks, averaged to a grid and standardized.

    Batch normalization keeps the statistics of ImageNet, so that a cell does not depend on the
    batch; its weights are trained. Raises InputError if the package has other weights.
    """

    def __init__(self, num_tuned_blocks: int, grid: int):
        super().__init__()
        num_frozen = efficientnet_lite0.NUM_BLOCKS - num_tuned_blocks
        self.frozen = FrozenBlocks(num_frozen)
        network = efficientnet_lite0.load_network().efficientnet
        self.last = efficientnet_lite0.LastBlocks(network, num_frozen).requires_grad_(True)
        self.grid, self.cells, self.width = grid, grid**2, efficientnet_lite0.WIDTH
        self.standardise = Standardizer(self.width)
        self.train()

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Like nn.Module.train, but batch normalization keeps its statistics."""
        super().train(mode)
        self.last.eval()
        return self

    def pool(self, states: Tensor) -> Tensor:
        """Cells before standardization.  (B, C, H, W) -> (B, G * G, 1280)"""
        regions = self.last(states.to(self.standardise.mean.dtype))
        square = regions.transpose(1, 2).unflatten(2, efficientnet_lite0.REGION_GRID)
        return F.adaptive_avg_pool2d(square, self.grid).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def fit_normalization(self, states: Mapping[str, np.ndarray]) -> None:
        """Store the statistics of these images' cells, as the untrained blocks compute them.

        states: (C, H, W) of images by their sha256; none leave the cells as they are
        """
        device = self.standardise.mean.device
        cells = (
            self.pool(torch.from_numpy(np.stack([states[name] for name in names])).to(device))
            for names in batched(sorted(states), IMAGE_BATCH_SIZE)
        )
        self.standardise.fit_normalization(
            torch.cat(block) for block in batched(cells, BATCHES_PER_BLOCK)
        )

    def forward(self, states: Tensor) -> Tensor:
        """(B, C, H, W) of `FrozenBlocks.encode` -> (B, G * G, 1280), row by row"""
        return self.standardise(self.pool(states))


def preprocess(content: bytes) -> Tensor:
    """An image file as the network expects it, (3, 224, 224)."""
    image = image_store.decode_image(content, min_side=efficientnet_lite0.RESIZED_SIZE)
    return efficientnet_lite0.preprocess_image(image)
