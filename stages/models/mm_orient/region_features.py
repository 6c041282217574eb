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
from stages.shared.pretrained.feature_cache import (
    open_feature_cache,
    pack_features,
    unpack_features,
)
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device, inference_context

IMAGE_BATCH_SIZE = 8  # part of the store's key


class RegionExtractor:
    """A frozen ResNet of torchvision by name; weights `none`: its user loads them into `net`.

    size: side of the picture that it reads, pixels. Raises WrongInput if weights cannot be had.
    """

    def __init__(
        self, name: resnet.ResNetName, weights: resnet.ResNetWeights, size: int, grid: int
    ):
        self.name, self.size = name, size
        self.net = resnet.ResNet(name, weights, grid).to(get_device()).eval().requires_grad_(False)

    def _fingerprint(self) -> str:
        digest = sha256(f"{self.name} {self.size} {self.net.grid}".encode())
        for name, weight in self.net.state_dict().items():
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def extract(self, folder: Path, names: list[str]) -> Mapping[str, np.ndarray]:
        """(G * G, C) fp16 of the pictures with these sha256, from the shards in `folder`.

        Raises WrongInput if a picture is not in the shards.
        """
        store = open_feature_cache("regions", self._fingerprint(), IMAGE_BATCH_SIZE)

        def compute(contents: list[bytes]) -> list[bytes]:
            pixels = torch.stack([resnet.load_pixels(content, self.size) for content in contents])
            with inference_context():
                cells = self.net(resnet.normalize_pixels(pixels.to(get_device())))
            return [pack_features(cells=one) for one in cells]

        if missing := set(store.missing_keys(names)):
            found = (
                (row["sha256"], row["bytes"])
                for row in image_store.read_images(folder)
                if row["sha256"] in missing
            )
            store.compute_missing(
                progress_bar(found, "regions", len(missing)), compute, IMAGE_BATCH_SIZE
            )
            if absent := store.missing_keys(missing):
                raise InputError(f"{folder} lacks the picture {absent[0]}: run `dvc repro`")
        return StoredRegions(store, names)


class StoredRegions(Mapping[str, np.ndarray]):
    """Regions by picture, read from the store when they are asked for: together they may not fit
    into memory."""

    def __init__(self, store: Store, names: list[str]):
        self.store, self.names = store, dict.fromkeys(names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        (row,) = self.store.read([name])
        return unpack_features(row)["cells"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
