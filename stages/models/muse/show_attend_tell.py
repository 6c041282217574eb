"""Show, Attend and Tell (arXiv:1502.03044), "NIC-Att" in MuSE: an image captioner.

B images, P cells of width D, C ids of a caption with both ends. m, n and A are the widths of word
embeddings, LSTM and attention; V is the vocabulary size.

eq. 1-3       the LSTM, whose input is E y, its own h and the context z: `lstm`
eq. 4-6       alpha = softmax(f_att(a, h)) over the cells: `_attend`
eq. 7         the next word from E y, h and z: `_deep_output`
sec. 4.2      soft attention, z = beta sum alpha a with a gate beta = sigmoid(f_beta(h)): `_attend`
eq. 14        -log p(caption), plus doubly stochastic attention: the weights of a cell sum to about
              one over a caption: `CaptionLoss`

Where the paper is silent: f_att has one hidden layer with tanh, f_init,h and f_init,c are linear,
and dropout is applied before the last layer of the deep output.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.shared.core.config import Field, config_class
from stages.shared.runtime.stage import InputError
from stages.shared.training.losses import token_log_probs

PAD, SOS, EOS, UNK = range(4)
SPECIAL_TOKENS = ["<pad>", "<sos>", "<eos>", "<unk>"]


@config_class
class ShowAttendTellConfig:
    embedding_dim: int = Field(ge=1, description="width m of word embeddings")
    hidden_size: int = Field(ge=1, description="width n of the LSTM")
    attention_dim: int = Field(ge=1, description="width inside the attention")
    dropout: float = Field(ge=0, lt=1, description="dropout of the deep output, 0 to below 1")
    doubly_stochastic_weight: float = Field(
        ge=0, description="weight of the term that makes it attend to all cells"
    )


class CaptionLoss(NamedTuple):
    """eq. 14 for each caption, each (B,).

    nats: -log p, summed; tokens: the number of predicted ids, EOS included; stochastic: the second
    term, weighted by `doubly_stochastic_weight`. All are 0 for a caption that is only PAD.
    """

    nats: Tensor
    tokens: Tensor
    stochastic: Tensor


class Vocabulary:
    """The words that occur `min_count` times or more in the train captions, in lower case."""

    def __init__(self, captions: Iterable[list[str]], min_count: int):
        counts = Counter(word.lower() for words in captions for word in words)
        # Words of equal frequency keep their order, so that a restored vocabulary is the same.
        self.words = [word for word, count in counts.most_common() if count >= min_count]
        self.word_to_id = {
            word: index for index, word in enumerate(self.words, len(SPECIAL_TOKENS))
        }

    def __len__(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.words)

    def encode(self, words: list[str], max_length: int) -> list[int]:
        """SOS, the words that fit, EOS: at most `max_length` ids.

        Raises InputError if `max_length` leaves no room for a word.
        """
        if max_length < 3:
            raise InputError(
                f"params.yaml: a caption of at most {max_length} ids has no room for a word "
                "between its two ends: give 3 or more"
            )
        return [
            SOS,
            *(self.word_to_id.get(word.lower(), UNK) for word in words[: max_length - 2]),
            EOS,
        ]

    def decode(self, ids: list[int]) -> list[str]:
        return [(SPECIAL_TOKENS + self.words)[word_id] for word_id in ids]

    def to_json(self) -> str:
        return json.dumps(self.words, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        return cls([json.loads(text)], min_count=1)


class ShowAttendTell(nn.Module):
    """p(caption | cells). vocabulary: number of ids V; cell_width: D"""

    def __init__(self, config: ShowAttendTellConfig, vocabulary: int, cell_width: int):
        super().__init__()
        m, n = config.embedding_dim, config.hidden_size
        self.doubly_stochastic_weight = config.doubly_stochastic_weight
        self.E = nn.Embedding(vocabulary, m, padding_idx=PAD)
        self.init_h, self.init_c = nn.Linear(cell_width, n), nn.Linear(cell_width, n)
        self.att_a = nn.Linear(cell_width, config.attention_dim, bias=False)
        self.att_h = nn.Linear(n, config.attention_dim)
        self.att = nn.Linear(config.attention_dim, 1, bias=False)
        self.beta = nn.Linear(n, 1)
        self.lstm = nn.LSTMCell(m + cell_width, n)
        self.L_h, self.L_z = nn.Linear(n, m), nn.Linear(cell_width, m, bias=False)
        self.L_o = nn.Linear(m, vocabulary)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, cells: Tensor, caption: Tensor) -> CaptionLoss:
        """The loss of a caption, word by word with teacher forcing.

        cells a (B, P, D); caption (B, C) from SOS to EOS, then PAD
        """
        inputs, targets = self.E(caption[:, :-1]), caption[:, 1:]
        keys, (h, c) = self.att_a(cells), self._init_state(cells)
        hidden, context, weights = [], [], []
        for y in inputs.unbind(1):
            z, alpha = self._attend(cells, keys, h)
            h, c = self.lstm(torch.cat([y, z], 1), (h, c))  # eq. 1-3
            hidden.append(h)
            context.append(z)
            weights.append(alpha)
        mask = targets != PAD
        states = (part[mask] for part in (inputs, torch.stack(hidden, 1), torch.stack(context, 1)))
        log_p = token_log_probs(self._deep_output(*states), targets[mask])
        nats = -log_p.new_zeros(mask.shape).masked_scatter(mask, log_p).sum(1)
        total_weights = (torch.stack(weights, 1) * mask[..., None]).sum(1)  # (B, P)
        penalty = (1 - total_weights).square().sum(1)  # eq. 14
        stochastic = self.doubly_stochastic_weight * penalty
        return CaptionLoss(nats, mask.sum(1), stochastic * mask.any(1))

    @torch.no_grad()
    def greedy_decode(self, cells: Tensor, max_length: int) -> list[list[int]]:
        """Ids of the most probable word at each step, without SOS and EOS.

        Both ends count towards `max_length`.
        """
        assert not self.training
        keys, (h, c) = self.att_a(cells), self._init_state(cells)
        y = torch.full((len(cells),), SOS, device=cells.device)
        ids = []
        for _ in range(max_length - 2):
            z, _ = self._attend(cells, keys, h)
            h, c = self.lstm(torch.cat([self.E(y), z], 1), (h, c))
            logits = self._deep_output(self.E(y), h, z)
            logits[:, [PAD, SOS]] = -torch.inf
            y = logits.argmax(1)
            ids.append(y)
        rows = torch.stack(ids, 1).tolist()
        return [row[: row.index(EOS)] if EOS in row else row for row in rows]

    def _init_state(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """h and c before the first word (B, n), from the mean cell"""
        mean = cells.mean(1)
        return self.init_h(mean), self.init_c(mean)

    def _attend(self, cells: Tensor, keys: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, D) and alpha (B, P); keys (B, P, A), the part of f_att from the cells"""
        e = self.att(torch.tanh(keys + self.att_h(h)[:, None])).squeeze(2)  # eq. 4
        alpha = e.softmax(1)  # eq. 5
        beta = torch.sigmoid(self.beta(h))
        return beta * (alpha[:, None] @ cells).squeeze(1), alpha

    def _deep_output(self, y: Tensor, h: Tensor, z: Tensor) -> Tensor:
        """eq. 7: logits (..., V)"""
        return self.L_o(self.dropout(y + self.L_h(h) + self.L_z(z)))
