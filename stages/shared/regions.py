"""Regions of a picture for MM-ORIENT: the last cells of a frozen ResNet, through the store.

A ResNet-101 on pictures of 320 pixels has 10 x 10 cells of 2048 numbers: as many as the 100 regions
of 2048 numbers that the paper takes from Mask R-CNN, which does not install with pip.
"""

from collections.abc import Mapping
from hashlib import sha256

import numpy as np
import torch

from stages.shared import resnet
from stages.shared.computed import pack, store_of, unpack
from stages.shared.devices import device, inference
from stages.shared.progress import bar

PICTURES_AT_ONCE = 8  # part of the store's key


class RegionReader:
    """A frozen ResNet of torchvision by name; weights `none`: its user loads them into `net`.

    size: side of the picture that it reads, pixels. Raises WrongInput if weights cannot be had.
    """

    def __init__(self, name: resnet.Name, weights: resnet.Weights, size: int, grid: int):
        self.name, self.size = name, size
        self.net = resnet.ResNet(name, weights, grid).to(device()).eval().requires_grad_(False)

    def _fingerprint(self) -> str:
        digest = sha256(f"{self.name} {self.size} {self.net.grid}".encode())
        for name, weight in self.net.state_dict().items():
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def read(self, files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
        """Picture files by sha256 -> (G * G, C) fp16 of each"""
        store = store_of("regions", self._fingerprint(), PICTURES_AT_ONCE)

        def compute(contents: list[bytes]) -> list[bytes]:
            pixels = torch.stack([resnet.pixels(content, self.size) for content in contents])
            with inference():
                cells = self.net(resnet.normalise(pixels.to(device())))
            return [pack(cells=one) for one in cells]

        missing = set(store.missing(files))
        waiting = ((name, content) for name, content in files.items() if name in missing)
        store.fill(bar(waiting, "regions", len(missing)), compute, PICTURES_AT_ONCE)
        return {
            name: unpack(row)["cells"] for name, row in zip(files, store.rows(files), strict=True)
        }
