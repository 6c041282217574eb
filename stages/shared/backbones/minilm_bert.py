"""MiniLM as a BERT whose last layers can be trained, without the seconds that transformers imports.

Weights have the names, and outputs the bits, that they have in transformers' BertModel; tests
compare them, with dropout and without. Devlin et al., arXiv:1810.04805.

B texts of L tokens, D width.
"""

import json
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.shared.pretrained import minilm


class Embeddings(nn.Module):
    """The sum of word, position and token type embeddings, normalized."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids (B, L) -> (B, L, D)"""
        types = self.token_type_embeddings(torch.zeros_like(input_ids))
        states = self.word_embeddings(input_ids) + types
        states = states + self.position_embeddings.weight[: input_ids.shape[1]]
        return self.dropout(self.LayerNorm(states))


class SelfAttention(nn.Module):
    def __init__(self, config: SimpleNamespace):
        super().__init__()
        width = config.hidden_size
        self.num_heads, self.dropout = (
            config.num_attention_heads,
            config.attention_probs_dropout_prob,
        )
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states (B, L, D), mask (B, 1, 1, L): true at keys that are attended to -> (B, L, D)"""
        query, key, value = (
            project(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return mixed.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """A linear layer with dropout, added to the input of its block and normalized."""

    def __init__(self, config: SimpleNamespace, input_width: int):
        super().__init__()
        self.dense = nn.Linear(input_width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, block_input: Tensor) -> Tensor:
        """states (B, L, input_width), block_input (B, L, D) -> (B, L, D)"""
        return self.LayerNorm(self.dropout(self.dense(states)) + block_input)


class Layer(nn.Module):
    def __init__(self, config: SimpleNamespace):
        super().__init__()
        width = config.hidden_size
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config), "output": Residual(config, width)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.intermediate_size)})
        self.output = Residual(config, config.intermediate_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states (B, L, D), mask (B, 1, 1, L): true at tokens without padding -> (B, L, D)"""
        states = self.attention["output"](self.attention["self"](states, mask), states)
        return self.output(F.gelu(self.intermediate["dense"](states)), states)


class MiniLMBert(nn.Module):
    """MiniLM in evaluation mode, without its pooler."""

    def __init__(self) -> None:
        super().__init__()
        folder = minilm.get_model_dir()
        self.config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
        with torch.device("meta"):  # no random numbers are drawn for weights that are then loaded
            self.embeddings = Embeddings(self.config)
            layers = [Layer(self.config) for _ in range(self.config.num_hidden_layers)]
            self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        weights = load_file(folder / "model.safetensors")
        names = self.state_dict()
        self.load_state_dict({n: w for n, w in weights.items() if n in names}, assign=True)
        self.eval().requires_grad_(False)


class MiniLMTokenizer:
    """The tokenizer of MiniLM, with the methods of transformers' tokenizers that are used here."""

    def __init__(self) -> None:
        self._tokenizer = minilm.load_tokenizer()
        added = self._tokenizer.get_added_tokens_decoder()
        self.all_special_ids = [number for number, token in added.items() if token.special]
        self.unk_token_id = self._tokenizer.token_to_id("[UNK]")
        self.cls_token_id = self._tokenizer.token_to_id("[CLS]")
        self.sep_token_id = self._tokenizer.token_to_id("[SEP]")

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """`input_ids`: the ids of each text."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return {"input_ids": [encoding.ids for encoding in encodings]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        tokens = map(self._tokenizer.id_to_token, ids)
        return [token for token in tokens if token is not None]  # ids are the tokenizer's own
