"""Region features of images for MM-ORIENT: the last feature map of a frozen ResNet, cached.

A ResNet-101 on images of 320 x 320 pixels gives 10 x 10 cells of 2048 channels. The paper uses 100
regions of 2048 features from Mask R-CNN, which cannot be installed with pip.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from stages.shared.backbones import resnet
from stages.shared.data import image_store
from stages.shared.pretrained.feature_cache import (
    StoredFeatures,
    open_feature_cache,
    pack_features,
)
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device, inference_context

IMAGE_BATCH_SIZE = 8  # part of the cache key


class RegionExtractor:
    """A frozen ResNet of torchvision.

    weights: `none` if the caller loads them into `net`. image_size: side of the input image in
    pixels. grid_size: G. Raises InputError if the weights cannot be loaded.
    """

    def __init__(
        self,
        name: resnet.ResNetName,
        weights: resnet.ResNetWeights,
        image_size: int,
        grid_size: int,
    ):
        self.name, self.image_size = name, image_size
        net = resnet.ResNet(name, weights, grid_size)
        self.net = net.to(get_device()).eval().requires_grad_(False)

    def _fingerprint(self) -> str:
        digest = sha256(f"{self.name} {self.image_size} {self.net.grid}".encode())
        for name, weight in self.net.state_dict().items():
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def extract(self, folder: Path, names: list[str]) -> Mapping[str, np.ndarray]:
        """Features of the images with these sha256, each (G * G, C) float16.

        folder: holds the image shards. Raises InputError if an image is not in them.
        """
        store = open_feature_cache("regions", self._fingerprint(), IMAGE_BATCH_SIZE)

        def compute_batch(contents: list[bytes]) -> list[bytes]:
            pixels = torch.stack(
                [resnet.load_pixels(content, self.image_size) for content in contents]
            )
            with inference_context():
                cells = self.net(resnet.normalize_pixels(pixels.to(get_device())))
            return [pack_features(cells=image_cells) for image_cells in cells]

        if missing := set(store.missing_keys(names)):
            images = (
                (row["sha256"], row["bytes"])
                for row in image_store.read_images(folder)
                if row["sha256"] in missing
            )
            store.compute_missing(
                progress_bar(images, "regions", len(missing)), compute_batch, IMAGE_BATCH_SIZE
            )
            if absent := store.missing_keys(missing):
                raise InputError(f"{folder} lacks the image {absent[0]}: run `dvc repro`")
        return StoredFeatures(store, names, "cells")
