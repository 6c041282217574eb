"""Encoders of images and texts, each loaded from a folder that also holds its preprocessing.

`load_encoder(folder)` reads the output of stages/align: encoder.json, whose `kind` is `tiny`
(tiny.py), `efficientnet-lite0` (locked_towers.py), `hf` (huggingface.py) or `openclip`
(openclip.py), and the files of that module.

The towers of `efficientnet-lite0` are locked, and only small projections into the shared space are
learned. What the towers compute is cached; `project_images` and `project_texts` are applied to it
afterwards, so that new projections need no new features.

A text tower has features of each token, or only of the whole text: then L = 1, and the only token
is the whole text.

B items; D width of pooled features; P patches of width Dp; L tokens of width Dt.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device, inference_context

CONFIG_NAME = "encoder.json"


class TextTower(ABC):
    """Encodes texts. Features are float32 tensors on the CPU.

    languages: ISO 639-1 codes of the supported languages. text_fingerprint: a hash of everything
    that the features of a text depend on. The features of an item depend on the rest of its batch
    only through the shape of the batch.
    """

    languages: list[str]
    text_fingerprint: str

    def encode_texts(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """B texts -> pooled (B, D) of unit length, tokens (B, L, Dt), mask (B, L) bool.

        Tokens are padded on the right.
        """
        pooled, states, mask = self.run_text_tower(texts)
        return self.project_texts(pooled), states, mask

    @abstractmethod
    def run_text_tower(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """As `encode_texts`, before `project_texts`."""

    def project_texts(self, pooled: Tensor) -> Tensor:
        """The tower's pooled features in the shared space, (B, D) of unit length on the CPU."""
        return pooled

    @abstractmethod
    def padded_lengths(self, texts: list[str]) -> list[int]:
        """The length in tokens that each text is padded to; a batch is padded to the longest."""

    @abstractmethod
    def subwords(self, texts: list[str]) -> list[list[str]]:
        """The tokens of each text that have features, as strings of the tokenizer."""


class TransformerTextTower(TextTower):
    """A text tower whose tokenizer and model are separate, with features of each token."""

    def run_text_tower(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        tokens = {name: ids.to(get_device()) for name, ids in self.tokenize(texts).items()}
        with inference_context():
            pooled, states, mask = self.encode_tokens(tokens)
        return F.normalize(pooled.float(), dim=-1).cpu(), states.float().cpu(), mask.bool().cpu()

    @abstractmethod
    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """The model's inputs, each (B, L), with L the longest padded length; truncates texts."""

    @abstractmethod
    def encode_tokens(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Model inputs -> pooled (B, D), last hidden states (B, L, Dt), mask (B, L)."""


class Encoder(TextTower):
    """Encodes images and texts in one space.

    fingerprint: a hash of everything that the features of the image tower depend on.
    image_size: the side to which it scales images, in pixels.
    """

    fingerprint: str
    image_size: int

    def encode_images(self, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """B RGB images of any size -> pooled (B, D) of unit length, patches (B, P, Dp)."""
        pooled, patches = self.run_image_tower([self.preprocess_image(image) for image in images])
        return self.project_images(pooled), patches

    def run_image_tower(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """B preprocessed images (3, H, W) -> as `encode_images`, before `project_images`."""
        with inference_context():
            pooled, patches = self.encode_pixels(torch.stack(images).to(get_device()))
        return F.normalize(pooled.float(), dim=-1).cpu(), patches.float().cpu()

    def project_images(self, pooled: Tensor) -> Tensor:
        """The tower's pooled features in the shared space, (B, D) of unit length on the CPU."""
        return pooled

    @abstractmethod
    def preprocess_image(self, image: Image.Image) -> Tensor:
        """The preprocessed image (3, H, W); H and W are the same for all images."""

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images (B, 3, H, W) -> pooled (B, D), last hidden states (B, P, Dp)."""


class TwoTowerEncoder(Encoder):
    """An encoder with a text tower of its own; subclasses add the image tower."""

    def __init__(self, text_tower: TextTower):
        self.text_tower = text_tower
        self.languages = text_tower.languages
        self.text_fingerprint = text_tower.text_fingerprint

    def run_text_tower(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        return self.text_tower.run_text_tower(texts)

    def padded_lengths(self, texts: list[str]) -> list[int]:
        return self.text_tower.padded_lengths(texts)

    def subwords(self, texts: list[str]) -> list[list[str]]:
        return self.text_tower.subwords(texts)


def load_encoder(folder: Path) -> Encoder:
    """Load an encoder folder. Raises InputError if it holds no encoder."""
    config = _read_config(folder)
    return module_of(config["kind"]).load(folder, config)


def read_kind(folder: Path) -> str:
    """The kind of encoder in a folder. Raises InputError if it holds none."""
    return _read_config(folder)["kind"]


def _read_config(folder: Path) -> dict:
    try:
        return json.loads((folder / CONFIG_NAME).read_text())
    except FileNotFoundError:
        raise InputError(f"{folder / CONFIG_NAME} is missing: run `dvc repro align`") from None


def module_of(kind: str) -> ModuleType:
    """The module of an encoder kind, imported on demand: each needs another library.

    Raises InputError if there is no such kind.
    """
    match kind:
        case "tiny":
            from stages.shared.encoders import tiny as module
        case "efficientnet-lite0":
            from stages.shared.encoders import locked_towers as module
        case "hf":
            from stages.shared.encoders import huggingface as module
        case "openclip":
            from stages.shared.encoders import openclip as module
        case _:
            raise InputError(f"{kind!r} is not a kind of encoder: run `dvc repro align`")
    return module


def save_encoder_config(folder: Path, kind: str, languages: list[str], **fields: object) -> None:
    """Write encoder.json: the kind, the supported languages and fields specific to the kind."""
    config = {"kind": kind, "languages": languages} | fields
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
