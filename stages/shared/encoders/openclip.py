"""Encoders of open_clip, by name (`ARCH/TAG`, `ARCH/FILE`) or from a folder (`local-dir:/FOLDER`).

`fetch` resolves a name once and writes open_clip's own folder format, which includes the
preprocessing of the weights. `load` reads that folder and needs no network.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before open_clip)

# isort: split
import open_clip
from open_clip.hf_model import ClsPooler, HFTextEncoder
from open_clip.model import get_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.shared.encoders.base import Encoder, TransformerTextTower, save_encoder_config
from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.runtime.stage import InputError, model_load_error
from stages.shared.torch_setup.devices import get_device

LOCAL_DIR_PREFIX = "local-dir:"


class OpenClipEncoder(TransformerTextTower, Encoder):
    """An open_clip model from a folder that `fetch` wrote."""

    def __init__(self, folder: Path, languages: list[str]):
        name = f"{LOCAL_DIR_PREFIX}{folder.absolute()}"
        self.model = _create_model(name).requires_grad_(False).eval().to(get_device())
        preprocess_config = PreprocessCfg(**get_model_preprocess_cfg(self.model))
        size = preprocess_config.size  # a side, or height and width
        self.image_size = size if isinstance(size, int) else max(size)
        self.preprocess = image_transform_v2(preprocess_config, is_train=False)
        self.tokenizer = open_clip.get_tokenizer(name)
        text = getattr(self.model, "text", None)  # open_clip.CLIP has no text module
        self.hf_text_tower = text if isinstance(text, HFTextEncoder) else None
        self.pad_token_id = (
            self.hf_text_tower.config.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]
            if self.hf_text_tower
            else getattr(text, "pad_id", 0)
        )
        # A Hugging Face tower with ClsPooler leaves the pooled first token out of its states.
        self.num_pooled_tokens = int(
            self.hf_text_tower is not None and type(self.hf_text_tower.pooler) is ClsPooler
        )
        self.languages = languages
        self.fingerprint = self.text_fingerprint = fingerprint_folder(folder)

    def preprocess_image(self, image: Image.Image) -> Tensor:
        return self.preprocess(image)  # pyright: ignore[reportCallIssue, reportReturnType]

    def _forward_intermediates(self, **inputs: Any) -> dict[str, Any]:
        """Pooled features and the normalized states of the last layer."""
        return self.model.forward_intermediates(  # pyright: ignore[reportCallIssue]
            **inputs, normalize_intermediates=True
        )

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = self._forward_intermediates(image=pixels, image_indices=1)
        patches = output["image_intermediates"][-1]  # (B, Dp, H', W'), without class tokens
        return output["image_features"], patches.flatten(2).transpose(1, 2)

    def padded_lengths(self, texts: list[str]) -> list[int]:
        """The context length for all texts, as in the training of these models."""
        length = self.tokenizer.context_length
        assert length is not None
        return [length] * len(texts)

    def subwords(self, texts: list[str]) -> list[list[str]]:
        ids = self.tokenizer(texts)
        masks = _mask_up_to_last(ids != self.pad_token_id)
        return [
            self.convert_ids_to_tokens(row[mask].tolist()[self.num_pooled_tokens :])
            for row, mask in zip(ids, masks, strict=True)
        ]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Token ids as strings of the tokenizer."""
        if isinstance(self.tokenizer, open_clip.SimpleTokenizer):
            return [self.tokenizer.decoder[token_id] for token_id in ids]
        return self.tokenizer.tokenizer.convert_ids_to_tokens(ids)

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        return {"ids": self.tokenizer(texts)}

    def encode_tokens(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        ids = tokens["ids"]
        if self.hf_text_tower:
            self.hf_text_tower.output_tokens = True
            pooled, states = self.hf_text_tower(ids)
        else:
            output = self._forward_intermediates(text=ids, text_indices=1)
            pooled, states = output["text_features"], output["text_intermediates"][-1]
        mask = _mask_up_to_last(ids != self.pad_token_id)
        return pooled, states, mask[:, self.num_pooled_tokens :]


def _mask_up_to_last(mask: Tensor) -> Tensor:
    """(B, L) bool, true up to the last true of each row: words may have the id of the padding."""
    return mask.flip(1).int().cummax(1).values.flip(1).bool()


def fetch(name: str, languages: list[str], folder: Path) -> None:
    """Resolve `name`, download it if needed, and save it as an encoder folder.

    Raises InputError if the architecture, the tag or the file does not exist, or lacks weights.
    """
    local = name.startswith(LOCAL_DIR_PREFIX)
    model, config = _create_model_from_folder(name) if local else _create_model_by_name(name)
    try:
        tokenizer = open_clip.get_tokenizer(name if local else name.partition("/")[0])
    except Exception as error:  # as in _create_model
        raise _model_load_error(name, error) from None
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / open_clip.constants.HF_SAFE_WEIGHTS_NAME)
    file = folder / open_clip.constants.HF_CONFIG_NAME
    save_config_for_hf(model, file, config)  # pyright: ignore[reportArgumentType] (it needs a Path)
    if isinstance(tokenizer, open_clip.tokenizer.HFTokenizer):
        tokenizer.save_pretrained(folder)
    save_encoder_config(folder, "openclip", languages, name=_public_name(name))


def _create_model_from_folder(name: str) -> tuple[nn.Module, dict | None]:
    model = _create_model(name)  # first: it reports what is wrong with the folder
    return model, open_clip.get_model_config(name)


def _create_model_by_name(name: str) -> tuple[nn.Module, dict]:
    arch, _, tag = name.partition("/")
    config = open_clip.get_model_config(arch)
    if config is None:
        raise InputError(
            f"align.encoder names the architecture {arch!r}, which open_clip does not have: "
            "choose one of open_clip.list_models()"
        )
    known = open_clip.get_pretrained_cfg(arch, tag)
    if not known and not Path(tag).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch)) or "none"
        raise InputError(
            f"align.encoder names the weights {tag!r}, which are neither a tag of {arch} nor a "
            f"file: give a file or one of the tags ({tags})"
        )
    if known and known.get("quick_gelu"):
        config["quick_gelu"] = True
    model = _create_model(
        arch,
        reference=name,
        pretrained=tag,
        force_quick_gelu=config.get("quick_gelu", False),
        pretrained_text=False,
    )
    return model, config


def _create_model(name: str, reference: str = "", **options: Any) -> nn.Module:
    """As open_clip.create_model, but missing weights are an error instead of random weights.

    reference: the name in params.yaml, if that is another.
    """
    try:
        return open_clip.create_model(name, require_pretrained=True, **options)
    except UnpicklingError:  # its message suggests unsafe ways to load
        raise _model_load_error(
            reference or name, ValueError("the file holds no weights")
        ) from None
    except Exception as error:  # parsers of external files raise arbitrary exceptions
        raise _model_load_error(reference or name, error) from None


def _model_load_error(name: str, error: Exception) -> InputError:
    return model_load_error(f"align.encoder: openclip:{name}", "openclip:local-dir:/FOLDER", error)


def _public_name(name: str) -> str:
    """The name without machine-specific paths."""
    return f"{LOCAL_DIR_PREFIX}{Path(name).name}" if name.startswith(LOCAL_DIR_PREFIX) else name


def load(folder: Path, config: dict) -> OpenClipEncoder:
    """The encoder of a folder; `config` is its encoder.json."""
    return OpenClipEncoder(folder, config["languages"])
