"""CLIP models of transformers, by Hugging Face name or folder: CLIP, Chinese-CLIP, SigLIP.

`fetch` resolves a name once and saves model, tokenizer and image processor; `load` reads that
folder. Features are taken from the towers and their projections by hand, because what
`get_text_features` returns has changed, and for Chinese-CLIP was broken, from release to release.
"""

import sys
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

# isort: split
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel

from stages.shared.encoders.base import Encoder, save_encoder_config
from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.pretrained import hub
from stages.shared.pretrained.feature_cache import padded_length
from stages.shared.runtime.stage import model_load_error
from stages.shared.torch_setup.devices import get_device

MODEL_TYPES = {"clip", "chinese_clip", "siglip"}  # model_type of config.json
# Of a text: what Chinese-CLIP was trained on. Its checkpoints have 512 places and do not say it.
CHINESE_CLIP_MAX_LENGTH = 52
FOLDER_HINT = "hf:/FOLDER"  # what to give instead of a name


class HuggingFaceEncoder(Encoder):
    def __init__(self, folder: Path, languages: list[str]):
        self.model = _load_model(str(folder)).requires_grad_(False).eval().to(get_device())
        self.model_type = self.model.config.model_type
        self.processor = AutoProcessor.from_pretrained(folder)
        self.max_length = min(
            self.processor.tokenizer.model_max_length,
            self.model.config.text_config.max_position_embeddings,
            CHINESE_CLIP_MAX_LENGTH if self.model_type == "chinese_clip" else sys.maxsize,
        )
        self.languages = languages
        self.fingerprint = self.text_fingerprint = fingerprint_folder(folder)

    def preprocess_image(self, picture: Image.Image) -> Tensor:
        return self.processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model.vision_model(pixel_values=pixels)
        pooled = found.pooler_output
        if self.model_type != "siglip":  # whose towers end in the shared space
            pooled = self.model.visual_projection(pooled)
        return pooled, found.last_hidden_state

    def padded_lengths(self, texts: list[str]) -> list[int]:
        if self.model_type == "siglip":  # trained on texts of one length, the padding unmasked
            return [self.max_length] * len(texts)
        return [padded_length(len(text), self.max_length) for text in self.input_ids(texts)]

    def input_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, cut and not padded."""
        found = self.processor.tokenizer(texts, truncation=True, max_length=self.max_length)
        return found["input_ids"]

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
            found = self.model.text_model(input_ids=tokens["input_ids"])
            return found.pooler_output, found.last_hidden_state, mask
        found = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=mask)
        states = found.last_hidden_state
        # Chinese-CLIP has no pooler: its first token goes through the projection.
        pooled = states[:, 0] if self.model_type == "chinese_clip" else found.pooler_output
        return self.model.text_projection(pooled), states, mask


def fetch(name: str, languages: list[str], folder: Path) -> None:
    """Resolve `name` (downloading it if need be) and save it as an encoder folder.

    Raises WrongInput if it does not exist, is no CLIP model, or lacks weights.
    """
    _load_model(name).save_pretrained(folder)
    try:
        AutoProcessor.from_pretrained(name).save_pretrained(folder)
    except Exception as error:  # parsers of foreign files raise what they like
        raise model_load_error(_param_reference(name), FOLDER_HINT, error) from None
    save_encoder_config(
        folder, "hf", languages, name=Path(name).name if Path(name).is_dir() else name
    )


def _load_model(name: str) -> PreTrainedModel:
    return hub.load_pretrained_model(name, MODEL_TYPES, _param_reference(name), FOLDER_HINT)


def _param_reference(name: str) -> str:
    return f"align.encoder: hf:{name}"


def load(folder: Path, config: dict) -> HuggingFaceEncoder:
    return HuggingFaceEncoder(folder, config["languages"])
