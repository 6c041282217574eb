"""Tiny CLIP models with random weights, saved in the formats of their libraries."""

import json
import string
from pathlib import Path

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers and open_clip)

import numpy as np

# isort: split
import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BertTokenizer,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

TOWER_CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION_CONFIG = TOWER_CONFIG | {"image_size": 32, "patch_size": 16}
CROP_CONFIG = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]  # of red, green and blue
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
OPEN_CLIP_CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def make_photo(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    """An RGB image of random pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def save_clip(folder: Path) -> CLIPModel:
    """CLIP for English; every letter is a token."""
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=40)
    end = vocabulary["<|endoftext|>"]
    text = TOWER_CONFIG | {
        "vocab_size": len(words),
        "max_position_embeddings": 40,
        "eos_token_id": end,
        "pad_token_id": end,
        "bos_token_id": end - 1,
    }
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=VISION_CONFIG, projection_dim=12)
    ).eval()
    model.save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(**CROP_CONFIG), tokenizer).save_pretrained(folder)
    return model


def save_chinese_clip(folder: Path) -> ChineseCLIPModel:
    """Chinese-CLIP with a vocabulary of nine characters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"番茄炒蛋米饭红烧肉"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=40)
    text = TOWER_CONFIG | {
        "vocab_size": len(words),
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION_CONFIG, projection_dim=12)
    model = ChineseCLIPModel(config).eval()
    model.save_pretrained(folder)
    ChineseCLIPProcessor(ChineseCLIPImageProcessor(**CROP_CONFIG), tokenizer).save_pretrained(
        folder
    )
    return model


def save_published_chinese_clip(folder: Path) -> ChineseCLIPModel:
    """Chinese-CLIP in the file formats of OFA-Sys/chinese-clip-vit-base-patch16 in 2022.

    These are a vocabulary without tokenizer settings, a feature extractor, and pickled weights.
    """
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"番茄炒蛋米饭红烧肉，a", "##b"]
    text = TOWER_CONFIG | {
        "vocab_size": len(words),
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION_CONFIG, projection_dim=12)
    model = ChineseCLIPModel(config).eval()
    with torch.no_grad():  # a trained LayerNorm is not the identity
        model.vision_model.post_layernorm.weight.normal_()
        model.vision_model.post_layernorm.bias.normal_()
    config.save_pretrained(folder)
    # Written by older releases of transformers.
    positions = {"text_model.embeddings.position_ids": torch.arange(512)[None]}
    torch.save(model.state_dict() | positions, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    preprocessing = {
        "feature_extractor_type": "ChineseCLIPFeatureExtractor",
        "size": {"height": 32, "width": 32},
        "crop_size": 32,
        "do_center_crop": False,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


def save_siglip(folder: Path) -> SiglipModel:
    """SigLIP with the tokenizer of Chinese-CLIP: its own needs a SentencePiece model."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=12)
    text = TOWER_CONFIG | {"vocab_size": len(words), "max_position_embeddings": 12}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION_CONFIG)).eval()
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    SiglipProcessor(SiglipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return model


def save_openclip(folder: Path, **preprocessing: object) -> torch.nn.Module:
    """An open_clip model; `preprocessing` changes fields of its preprocess_cfg."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**OPEN_CLIP_CONFIG).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    open_clip.model.set_model_preprocess_cfg(
        model, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "interpolation": "bicubic"}
    )
    save_config_for_hf(model, folder / "open_clip_config.json", OPEN_CLIP_CONFIG)
    if preprocessing:
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["preprocess_cfg"] |= preprocessing
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model
