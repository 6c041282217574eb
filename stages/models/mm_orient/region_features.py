"""Regions of a picture for MM-ORIENT: the last cells of a frozen ResNet, through the store.

A ResNet-101 on pictures of 320 pixels has 10 x 10 cells of 2048 numbers: as many as the 100 regions
of 2048 numbers that the paper takes from Mask R-CNN, which does not install with pip.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from stages.shared.backbones import resnet
from stages.shared.data import image_store
from stages.shared.data.cache import Store
from stages.shared.pretrained.feature_cache import pack, store_of, unpack
from stages.shared.runtime.progress import bar
from stages.shared.runtime.stage import WrongInput
from stages.shared.torch_setup.devices import device, inference

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

    def read(self, folder: Path, names: list[str]) -> Mapping[str, np.ndarray]:
        """(G * G, C) fp16 of the pictures with these sha256, from the shards in `folder`.

        Raises WrongInput if a picture is not in the shards.
        """
        store = store_of("regions", self._fingerprint(), PICTURES_AT_ONCE)

        def compute(contents: list[bytes]) -> list[bytes]:
            pixels = torch.stack([resnet.pixels(content, self.size) for content in contents])
            with inference():
                cells = self.net(resnet.normalise(pixels.to(device())))
            return [pack(cells=one) for one in cells]

        if missing := set(store.missing(names)):
            found = (
                (row["sha256"], row["bytes"])
                for row in image_store.read(folder)
                if row["sha256"] in missing
            )
            store.fill(bar(found, "regions", len(missing)), compute, PICTURES_AT_ONCE)
            if absent := store.missing(missing):
                raise WrongInput(f"{folder} lacks the picture {absent[0]}: run `dvc repro`")
        return Cells(store, names)


class Cells(Mapping[str, np.ndarray]):
    """Regions by picture, read from the store when they are asked for: together they may not fit
    into memory."""

    def __init__(self, store: Store, names: list[str]):
        self.store, self.names = store, dict.fromkeys(names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        (row,) = self.store.rows([name])
        return unpack(row)["cells"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
