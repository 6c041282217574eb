"""Encoders of pictures and texts, each loaded from a folder that holds its preprocessing too.

`load(folder)` reads what stages/align.py wrote: encoder.json, whose `kind` names the module
stages/shared/<kind>_encoder.py, and what that module saved beside it.

B items, D pooled width, P patches of width Dp, L tokens of width Dt.
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
    """Features of texts; float32 on the CPU, whatever computed them.

    languages: ISO 639-1 codes of what it reads. text_fingerprint: of what decides the features.
    An item's features depend on its neighbours only through the shape of the batch.
    """

    languages: list[str]
    text_fingerprint: str

    def encode_texts(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """-> pooled (B, D) of unit length, tokens (B, L, Dt), mask (B, L) bool, padded right."""
        tokens = {name: ids.to(get_device()) for name, ids in self.tokenize(texts).items()}
        with inference_context():
            pooled, states, mask = self.encode_tokens(tokens)
        return F.normalize(pooled.float(), dim=-1).cpu(), states.float().cpu(), mask.bool().cpu()

    @abstractmethod
    def padded_lengths(self, texts: list[str]) -> list[int]:
        """The length in tokens that each text is padded to; one batch takes its longest."""

    @abstractmethod
    def subwords(self, texts: list[str]) -> list[list[str]]:
        """The tokens with features of each text, as its tokenizer spells them."""

    @abstractmethod
    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        """The model's inputs, each (B, L) with L the longest bucket; longer texts are cut."""

    @abstractmethod
    def encode_tokens(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """-> pooled (B, D), last hidden states (B, L, Dt), mask (B, L)"""


class Encoder(TextTower):
    """Features of pictures and texts in one space. fingerprint: of the encoder's folder."""

    fingerprint: str

    def encode_images(self, pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
        """RGB pictures of any size -> pooled (B, D) of unit length, patches (B, P, Dp)."""
        pixels = torch.stack([self.preprocess_image(picture) for picture in pictures]).to(
            get_device()
        )
        with inference_context():
            pooled, patches = self.encode_pixels(pixels)
        return F.normalize(pooled.float(), dim=-1).cpu(), patches.float().cpu()

    @abstractmethod
    def preprocess_image(self, picture: Image.Image) -> Tensor:
        """The preprocessed picture (3, H, W); H and W are the same for every picture."""

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> pooled (B, D), last hidden states (B, P, Dp)"""


def load_encoder(folder: Path) -> Encoder:
    """The encoder that align wrote. Raises WrongInput if the folder holds none."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text())
    except FileNotFoundError:
        raise InputError(f"{folder / CONFIG_NAME} is missing: run `dvc repro align`") from None
    return module_of(config["kind"]).load(folder, config)


def module_of(kind: str) -> ModuleType:
    """The module that loads encoders of this kind; each imports its library only when needed."""
    match kind:
        case "tiny":
            from stages.shared.encoders import tiny as module
        case "hf":
            from stages.shared.encoders import huggingface as module
        case "openclip":
            from stages.shared.encoders import openclip as module
        case _:
            raise InputError(f"{kind!r} is no kind of encoder: give tiny, hf or openclip")
    return module


def save_encoder_config(folder: Path, kind: str, languages: list[str], **sizes: object) -> None:
    config = {"kind": kind, "languages": languages} | sizes
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
