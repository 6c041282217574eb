"""The picture encoder of a reader: a ResNet (arXiv:1512.03385) of torchvision, its last cells.

    cells = ResNet("resnet18", "default", grid=4)(normalise(pixels))    (B, G * G, C)

As in the public code of MuSE, a picture is squeezed into a square, and what the last stage makes of
it is averaged into a grid of G x G cells. Unlike there, pixels are normalised with the numbers that
torchvision's weights were trained with.

B pictures of side S, C channels: 512 of resnet18 and resnet34, 2048 of the others.
"""

from pathlib import Path
from typing import Literal

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before torchvision)

import numpy as np

# isort: split
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from stages.shared.data import image_store
from stages.shared.runtime.stage import InputError, allow_downloads, model_load_error

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
ResNetWeights = Literal["none", "default"]
MIN_IMAGE_SIZE = 33  # side, pixels: of one cell BatchNorm could not tell how it differs from others
# Of red, green and blue in ImageNet, 0 to 1: what torchvision's weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNet(nn.Module):
    """weights: none (at random, all learn) | default (torchvision's; what sees the pixels first,
    up to the first stage, is frozen).

    Who loads weights that were saved takes `none`: nothing is asked for then. Raises WrongInput if
    weights cannot be had.
    """

    def __init__(self, name: ResNetName, weights: ResNetWeights, grid: int):
        super().__init__()
        net = torchvision.models.get_model(name)
        if weights == "default":
            _load_pretrained_weights(net, name)
        self.grid, self.cells, self.width = grid, grid**2, net.fc.in_features
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        self.stages = nn.Sequential(net.layer2, net.layer3, net.layer4)
        self.stem_is_frozen = weights == "default"
        self.stem.requires_grad_(not self.stem_is_frozen)
        self.train()

    def train(self, mode: bool = True) -> "ResNet":
        """Frozen batch normalisation keeps the statistics that it has."""
        super().train(mode)
        if self.stem_is_frozen:
            self.stem.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) of `normalise` -> (B, G * G, C), by row

        A grid finer than the last stage's own cells (S / 32 a side) repeats them.
        """
        cells = self.stages(self.stem(pixels))  # (B, C, S / 32, S / 32)
        return F.adaptive_avg_pool2d(cells, self.grid).flatten(2).transpose(1, 2)


def load_pixels(content: bytes, size: int) -> Tensor:
    """A picture file, squeezed into a square -> (3, size, size) uint8, red, green and blue"""
    square = image_store.decode_image(content).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def normalize_pixels(pixels: Tensor) -> Tensor:
    """(..., 3, S, S) bytes 0 to 255 -> the same shape, float32"""
    mean, deviation = (torch.tensor(v, device=pixels.device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / 255 - mean[:, None, None]) / deviation[:, None, None]


def _load_pretrained_weights(net: nn.Module, name: str) -> None:
    """Give it torchvision's weights from torch's cache; downloaded there if nobody forbids it."""
    source = torchvision.models.get_model_weights(name).DEFAULT.url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(source).name)
    if not allow_downloads() and not file.exists():
        raise InputError(
            f"params.yaml: weights `default` of {name} are a download ({source}), which "
            f"HF_HUB_OFFLINE=1 forbids: unset it, put the file at {file}, or give weights `none`"
        )
    try:
        net.load_state_dict(
            torch.hub.load_state_dict_from_url(source, check_hash=True, weights_only=True)
        )
    except Exception as error:  # of the network, or of what lies in the cache
        asked = f"params.yaml: weights `default` of {name} ({source})"
        raise model_load_error(asked, "weights `none`", error) from None
