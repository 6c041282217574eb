"""Show, Attend and Tell (arXiv:1502.03044), "NIC-Att" in MuSE: writes a caption of a picture.

B pictures, P cells of width D, C ids of a caption with its ends, m, n, A widths of embeddings, of
the LSTM and of the attention, V words.

eq. 1-3       the LSTM, which reads E y, its own h and what it looks at, z: `lstm`
eq. 4-6       alpha = softmax(f_att(a, h)), over the cells: `_look`
eq. 7         the next word from E y, h and z: `_deep_output`
sec. 4.2      soft attention, z = beta sum alpha a with a gate beta = sigmoid(f_beta(h)): `_look`
eq. 14        - log p(caption), and doubly stochastic attention: what falls on a cell while a
              caption is told adds up to about one: `CaptionLoss`

Where the paper is silent: f_att has one hidden layer with tanh, f_init,h and f_init,c are linear,
and dropout is on what goes into the deep output.
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
    embedding_dim: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    attention_dim: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    doubly_stochastic_weight: float = Field(ge=0)


class CaptionLoss(NamedTuple):
    """eq. 14 by caption, each (B).

    nats: -log p, summed; tokens: how many ids that is, EOS included; stochastic: the second term,
    weighted by `doubly_stochastic`. All are 0 for a caption that is nothing but PAD.
    """

    nats: Tensor
    tokens: Tensor
    stochastic: Tensor


class Vocabulary:
    """The words of the train split that occur `min_count` times or more, in lower case."""

    def __init__(self, captions: Iterable[list[str]], min_count: int):
        counts = Counter(word.lower() for words in captions for word in words)
        # Equally frequent words stay as they came, so that a vocabulary read again is the same.
        self.words = [word for word, count in counts.most_common() if count >= min_count]
        self.word_to_id = {
            word: place for place, word in enumerate(self.words, len(SPECIAL_TOKENS))
        }

    def __len__(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.words)

    def encode(self, words: list[str], at_most: int) -> list[int]:
        """SOS, the words that fit, EOS: never more than `at_most` ids."""
        if at_most < 3:
            raise InputError(
                f"params.yaml: a caption of at most {at_most} ids has no room for a word "
                "between its two ends: give 3 or more"
            )
        return [
            SOS,
            *(self.word_to_id.get(word.lower(), UNK) for word in words[: at_most - 2]),
            EOS,
        ]

    def decode(self, ids: list[int]) -> list[str]:
        return [(SPECIAL_TOKENS + self.words)[one] for one in ids]

    def to_json(self) -> str:
        return json.dumps(self.words, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        return cls([json.loads(text)], min_count=1)


class ShowAttendTell(nn.Module):
    """p(caption | cells). vocabulary: number of ids V; cells_width: D"""

    def __init__(self, params: ShowAttendTellConfig, vocabulary: int, cells_width: int):
        super().__init__()
        m, n = params.embedding_dim, params.hidden_size
        self.doubly_stochastic = params.doubly_stochastic_weight
        self.E = nn.Embedding(vocabulary, m, padding_idx=PAD)
        self.init_h, self.init_c = nn.Linear(cells_width, n), nn.Linear(cells_width, n)
        self.att_a = nn.Linear(cells_width, params.attention_dim, bias=False)
        self.att_h = nn.Linear(n, params.attention_dim)
        self.att = nn.Linear(params.attention_dim, 1, bias=False)
        self.beta = nn.Linear(n, 1)
        self.lstm = nn.LSTMCell(m + cells_width, n)
        self.L_h, self.L_z = nn.Linear(n, m), nn.Linear(cells_width, m, bias=False)
        self.L_o = nn.Linear(m, vocabulary)
        self.dropout = nn.Dropout(params.dropout)

    def forward(self, cells: Tensor, caption: Tensor) -> CaptionLoss:
        """cells a (B, P, D); caption (B, C) from SOS to EOS, then PAD. Told word after word."""
        given, told = self.E(caption[:, :-1]), caption[:, 1:]
        keys, (h, c) = self.att_a(cells), self._init_state(cells)
        hidden, context, weights = [], [], []
        for y in given.unbind(1):
            z, alpha = self._attend(cells, keys, h)
            h, c = self.lstm(torch.cat([y, z], 1), (h, c))  # eq. 1-3
            hidden.append(h)
            context.append(z)
            weights.append(alpha)
        real = told != PAD
        at = (part[real] for part in (given, torch.stack(hidden, 1), torch.stack(context, 1)))
        log_p = token_log_probs(self._deep_output(*at), told[real])
        nats = -log_p.new_zeros(real.shape).masked_scatter(real, log_p).sum(1)
        looks = (torch.stack(weights, 1) * real[..., None]).sum(1)  # (B, P)
        stochastic = self.doubly_stochastic * (1 - looks).square().sum(1)  # eq. 14
        return CaptionLoss(nats, real.sum(1), stochastic * real.any(1))

    @torch.no_grad()
    def greedy_decode(self, cells: Tensor, at_most: int) -> list[list[int]]:
        """The likeliest word after each other, without SOS and EOS: they count in `at_most`."""
        assert not self.training
        keys, (h, c) = self.att_a(cells), self._init_state(cells)
        y = torch.full((len(cells),), SOS, device=cells.device)
        written = []
        for _ in range(at_most - 2):
            z, _ = self._attend(cells, keys, h)
            h, c = self.lstm(torch.cat([self.E(y), z], 1), (h, c))
            logits = self._deep_output(self.E(y), h, z)
            logits[:, [PAD, SOS]] = -torch.inf
            y = logits.argmax(1)
            written.append(y)
        rows = torch.stack(written, 1).tolist()
        return [row[: row.index(EOS)] if EOS in row else row for row in rows]

    def _init_state(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """h and c before the first word (B, n), from the mean cell"""
        mean = cells.mean(1)
        return self.init_h(mean), self.init_c(mean)

    def _attend(self, cells: Tensor, keys: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, D) and alpha (B, P); keys (B, P, A) are the part of f_att that no word changes."""
        e = self.att(torch.tanh(keys + self.att_h(h)[:, None])).squeeze(2)  # eq. 4
        alpha = e.softmax(1)  # eq. 5
        beta = torch.sigmoid(self.beta(h))
        return beta * (alpha[:, None] @ cells).squeeze(1), alpha

    def _deep_output(self, y: Tensor, h: Tensor, z: Tensor) -> Tensor:
        """eq. 7: logits (..., V)"""
        return self.L_o(self.dropout(y + self.L_h(h) + self.L_z(z)))
