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

from stages.shared.encoders.base import Encoder, save_config
from stages.shared.features.encoder_files import fingerprint
from stages.shared.pretrained import hub
from stages.shared.pretrained.feature_cache import bucket
from stages.shared.runtime.stage import unloadable
from stages.shared.torch_setup.devices import device

KINDS = {"clip", "chinese_clip", "siglip"}  # model_type of config.json
# Of a text: what Chinese-CLIP was trained on. Its checkpoints have 512 places and do not say it.
CHINESE_CLIP_TOKENS = 52
FOLDER = "hf:/FOLDER"  # what to give instead of a name


class HuggingFaceEncoder(Encoder):
    def __init__(self, folder: Path, languages: list[str]):
        self.model = _model(str(folder)).requires_grad_(False).eval().to(device())
        self.kind = self.model.config.model_type
        self.processor = AutoProcessor.from_pretrained(folder)
        self.longest = min(
            self.processor.tokenizer.model_max_length,
            self.model.config.text_config.max_position_embeddings,
            CHINESE_CLIP_TOKENS if self.kind == "chinese_clip" else sys.maxsize,
        )
        self.languages = languages
        self.fingerprint = self.text_fingerprint = fingerprint(folder)

    def pixels(self, picture: Image.Image) -> Tensor:
        return self.processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model.vision_model(pixel_values=pixels)
        pooled = found.pooler_output
        if self.kind != "siglip":  # whose towers end in the shared space
            pooled = self.model.visual_projection(pooled)
        return pooled, found.last_hidden_state

    def buckets(self, texts: list[str]) -> list[int]:
        if self.kind == "siglip":  # trained on texts of one length, the padding unmasked
            return [self.longest] * len(texts)
        return [bucket(len(text), self.longest) for text in self.ids(texts)]

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, cut and not padded."""
        found = self.processor.tokenizer(texts, truncation=True, max_length=self.longest)
        return found["input_ids"]

    def pieces(self, texts: list[str]) -> list[list[str]]:
        return [self.processor.tokenizer.convert_ids_to_tokens(ids) for ids in self.ids(texts)]

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        return self.processor.tokenizer(
            texts,
            padding="max_length",
            padding_side="right",
            max_length=max(self.buckets(texts)),
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).data

    def encode_tokens(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        mask = tokens["attention_mask"]
        if self.kind == "siglip":
            found = self.model.text_model(input_ids=tokens["input_ids"])
            return found.pooler_output, found.last_hidden_state, mask
        found = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=mask)
        states = found.last_hidden_state
        # Chinese-CLIP has no pooler: its first token goes through the projection.
        pooled = states[:, 0] if self.kind == "chinese_clip" else found.pooler_output
        return self.model.text_projection(pooled), states, mask


def fetch(name: str, languages: list[str], folder: Path) -> None:
    """Resolve `name` (downloading it if need be) and save it as an encoder folder.

    Raises WrongInput if it does not exist, is no CLIP model, or lacks weights.
    """
    _model(name).save_pretrained(folder)
    try:
        AutoProcessor.from_pretrained(name).save_pretrained(folder)
    except Exception as error:  # parsers of foreign files raise what they like
        raise unloadable(_asked(name), FOLDER, error) from None
    save_config(folder, "hf", languages, name=Path(name).name if Path(name).is_dir() else name)


def _model(name: str) -> PreTrainedModel:
    return hub.complete(name, KINDS, _asked(name), FOLDER)


def _asked(name: str) -> str:
    return f"align.encoder: hf:{name}"


def load(folder: Path, config: dict) -> HuggingFaceEncoder:
    return HuggingFaceEncoder(folder, config["languages"])
