"""CLIP models of transformers, by Hugging Face name or folder: CLIP, Chinese-CLIP, SigLIP.

`fetch` resolves a name once and saves model, tokenizer and image processor; `load` reads that
folder. Features are computed from the towers and their projections directly, because the output of
`get_text_features` changes between releases, and was broken for Chinese-CLIP in some.
"""

import sys
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

# isort: split
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, PreTrainedModel

from stages.shared.encoders.base import Encoder, TransformerTextTower, save_encoder_config
from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.pretrained import hub
from stages.shared.pretrained.feature_cache import padded_length
from stages.shared.runtime.stage import model_load_error, public_model_name
from stages.shared.torch_setup.devices import get_device

MODEL_TYPES = {"clip", "chinese_clip", "siglip"}  # model_type of config.json
# Tokens of a text that Chinese-CLIP was trained on; its checkpoints claim 512 positions.
CHINESE_CLIP_MAX_LENGTH = 52
FOLDER_HINT = "hf:/FOLDER"  # the alternative to a name, for error messages


class HuggingFaceEncoder(TransformerTextTower, Encoder):
    """A CLIP, Chinese-CLIP or SigLIP model from a folder that `fetch` wrote."""

    def __init__(self, folder: Path, languages: list[str]):
        self.model = _load_model(str(folder)).requires_grad_(False).eval()
        self.model.to(get_device())  # pyright: ignore[reportArgumentType] (transformers' decorator)
        self.model_type = self.model.config.model_type
        self.image_size = self.model.config.vision_config.image_size
        self.processor = AutoProcessor.from_pretrained(folder)
        self.max_length = min(
            self.processor.tokenizer.model_max_length,
            self.model.config.text_config.max_position_embeddings,
            CHINESE_CLIP_MAX_LENGTH if self.model_type == "chinese_clip" else sys.maxsize,
        )
        self.languages = languages
        self.fingerprint = self.text_fingerprint = fingerprint_folder(folder)

    def _module(self, name: str) -> nn.Module:
        """A tower of the model, or its projection."""
        return self.model.get_submodule(name)

    def preprocess_image(self, image: Image.Image) -> Tensor:
        return self.processor.image_processor(image, return_tensors="pt")["pixel_values"][0]

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = self._module("vision_model")(pixel_values=pixels)
        pooled = output.pooler_output
        if self.model_type != "siglip":  # SigLIP's towers have no projection
            pooled = self._module("visual_projection")(pooled)
        return pooled, output.last_hidden_state

    def padded_lengths(self, texts: list[str]) -> list[int]:
        if self.model_type == "siglip":  # trained with a fixed text length and unmasked padding
            return [self.max_length] * len(texts)
        return [padded_length(len(text), self.max_length) for text in self.input_ids(texts)]

    def input_ids(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, truncated and not padded."""
        encoding = self.processor.tokenizer(texts, truncation=True, max_length=self.max_length)
        return encoding["input_ids"]

    def subwords(self, texts: list[str]) -> list[list[str]]:
        return [
            self.processor.tokenizer.convert_ids_to_tokens(ids) for ids in self.input_ids(texts)
        ]

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        return self.processor.tokenizer(
            texts,
            padding="max_length",
            padding_side="right",
            max_length=max(self.padded_lengths(texts)),
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).data

    def encode_tokens(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        mask = tokens["attention_mask"]
        if self.model_type == "siglip":
            output = self._module("text_model")(input_ids=tokens["input_ids"])
            return output.pooler_output, output.last_hidden_state, mask
        output = self._module("text_model")(input_ids=tokens["input_ids"], attention_mask=mask)
        states = output.last_hidden_state
        # Chinese-CLIP has no pooler: its first token is projected.
        pooled = states[:, 0] if self.model_type == "chinese_clip" else output.pooler_output
        return self._module("text_projection")(pooled), states, mask


def fetch(name: str, languages: list[str], folder: Path) -> None:
    """Resolve `name`, download it if needed, and save it as an encoder folder.

    Raises InputError if it does not exist, is not a CLIP model, or lacks weights.
    """
    _load_model(name).save_pretrained(folder)
    try:
        AutoProcessor.from_pretrained(name).save_pretrained(folder)
    except Exception as error:  # parsers of external files raise arbitrary exceptions
        raise model_load_error(_param_reference(name), FOLDER_HINT, error) from None
    save_encoder_config(folder, "hf", languages, name=public_model_name(name))


def _load_model(name: str) -> PreTrainedModel:
    return hub.load_pretrained_model(name, MODEL_TYPES, _param_reference(name), FOLDER_HINT)


def _param_reference(name: str) -> str:
    return f"align.encoder: hf:{name}"


def load(folder: Path, config: dict) -> HuggingFaceEncoder:
    """The encoder of a folder; `config` is its encoder.json."""
    return HuggingFaceEncoder(folder, config["languages"])
