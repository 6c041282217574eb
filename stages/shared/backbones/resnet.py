"""A torchvision ResNet (arXiv:1512.03385) as image encoder of a classifier.

    cells = ResNet("resnet18", "default", grid=4)(normalize_pixels(pixels))    (B, G * G, C)

As in the public code of MuSE, an image is resized to a square, and the output of the last stage is
averaged to a grid of G x G cells. Unlike there, pixels are normalized with the statistics that
torchvision's weights were trained with.

B images of side S, C channels: 512 for resnet18 and resnet34, 2048 for the others.
"""

from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages.shared.data import image_store
from stages.shared.runtime.download import download_file
from stages.shared.runtime.stage import InputError, allow_downloads, model_load_error

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
ResNetWeights = Literal["none", "default", "IMAGENET1K_V1", "IMAGENET1K_V2"]
# Side, pixels. Up to 32 pixels the last stage has one cell, too few for BatchNorm in training.
MIN_IMAGE_SIZE = 33
# Of red, green and blue in [0, 1], as torchvision's weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNet(nn.Module):
    """Cells from the last stage of a ResNet.

    weights: none (random, all layers trained), or torchvision's pretrained weights by their tag,
    `default` the newest ones (the stem and the first stage are frozen). Use none to load a saved
    state dict: nothing is downloaded. Raises InputError if the weights are not available.
    """

    def __init__(self, name: ResNetName, weights: ResNetWeights, grid: int):
        super().__init__()
        models = _import_torchvision_models()
        net = models.get_model(name)
        assert isinstance(net, models.ResNet)
        if weights != "none":
            _load_pretrained_weights(net, name, weights)
        self.grid, self.cells, self.width = grid, grid**2, net.fc.in_features
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
        self.stages = nn.Sequential(net.layer2, net.layer3, net.layer4)
        self.stem_is_frozen = weights != "none"
        self.stem.requires_grad_(not self.stem_is_frozen)
        self.train()

    def train(self, mode: bool = True) -> "ResNet":
        """Like nn.Module.train, but frozen batch normalization keeps its statistics."""
        super().train(mode)
        if self.stem_is_frozen:
            self.stem.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) of `normalize_pixels` -> (B, G * G, C), row by row

        A grid finer than the output of the last stage (S / 32 cells a side) repeats its cells.
        """
        cells = self.stages(self.stem(pixels))  # (B, C, S / 32, S / 32)
        return F.adaptive_avg_pool2d(cells, self.grid).flatten(2).transpose(1, 2)


def load_pixels(content: bytes, size: int) -> Tensor:
    """Decode an image file and resize it to a square.  -> RGB (3, size, size) uint8"""
    image = image_store.decode_image(content, min_side=size)
    square = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def normalize_pixels(pixels: Tensor) -> Tensor:
    """(..., 3, S, S) in 0 to 255 -> the same shape, float32, normalized by channel"""
    mean, std = (torch.tensor(v, device=pixels.device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / 255 - mean[:, None, None]) / std[:, None, None]


def _import_torchvision_models() -> ModuleType:
    """torchvision.models, whose import takes two seconds."""
    import stages.shared.torch_setup.torchvision_ops  # noqa: F401, I001  (before torchvision)
    from torchvision import models

    return models


def _load_pretrained_weights(net: nn.Module, name: str, weights: str) -> None:
    """Load torchvision's weights from torch's cache; download them first unless offline."""
    param = f"params.yaml: weights `{weights}` of {name}"
    known = _import_torchvision_models().get_model_weights(name).__members__
    if weights.upper() not in known:
        raise InputError(f"{param} do not exist: give one of {', '.join(known)}")
    url = known[weights.upper()].url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    if not file.exists() and not allow_downloads():
        raise InputError(
            f"{param} are a download ({url}), which HF_HUB_OFFLINE=1 forbids: unset it, put the "
            f"file at {file}, or give weights `none`"
        )
    try:
        download_file(url, file, "sha256", file.stem.rpartition("-")[2])
        net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # network errors, or a corrupt file in the cache
        raise model_load_error(f"{param} ({url})", "weights `none`", error) from None
