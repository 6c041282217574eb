import math
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stages.models.muse.show_attend_tell import (
    EOS,
    PAD,
    SOS,
    UNK,
    ShowAttendTell,
    ShowAttendTellConfig,
    Vocabulary,
)
from stages.shared.core.config import build_config
from stages.shared.runtime.stage import InputError

TINY = ShowAttendTellConfig(
    embedding_dim=4, hidden_size=5, attention_dim=3, dropout=0.0, doubly_stochastic_weight=0.7
)
WORDS, WIDTH, CELLS = 9, 6, 4
CAPTIONS = torch.tensor([[SOS, 5, 8, 4, EOS], [SOS, 7, EOS, PAD, PAD]])


def build_decoder(config: ShowAttendTellConfig = TINY) -> ShowAttendTell:
    torch.manual_seed(0)
    model = ShowAttendTell(config, WORDS, WIDTH).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight))
    return model


def cells(count: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, CELLS, WIDTH, dtype=torch.float64)


# ------------------------------------------------------------------------------- vocabulary
def test_frequent_words_have_ids_after_the_special_tokens():
    vocabulary = Vocabulary([["A", "cat", "a"], ["the", "cat", "sat"]], min_count=2)
    assert vocabulary.words == ["a", "cat"] and len(vocabulary) == 6
    assert vocabulary.encode(["a", "CAT", "sat", "unseen"], 10) == [SOS, 4, 5, UNK, UNK, EOS]
    assert vocabulary.decode([5, UNK]) == ["cat", "<unk>"]


@pytest.mark.parametrize("words, expected", [(0, 2), (7, 9), (8, 10), (9, 10), (50, 10)])
def test_a_caption_is_never_longer_than_max_length_and_keeps_its_end(words, expected):
    ids = Vocabulary([["a"]], 1).encode(["a"] * words, max_length=10)
    assert len(ids) == expected and ids[0] == SOS and ids[-1] == EOS


def test_a_limit_without_room_for_a_word_is_rejected():
    with pytest.raises(InputError, match="at most 2 ids"):
        Vocabulary([["a"]], 1).encode(["a"], max_length=2)


def test_a_restored_vocabulary_is_the_same():
    vocabulary = Vocabulary([["b", "a", "ß", "😀"], ["c", "c", "I", "SOS"]], min_count=1)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again.words == vocabulary.words and again.word_to_id == vocabulary.word_to_id


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embedding_dim": 0}, "embedding_dim is 0: give 1 or more"),
        ({"hidden_size": 0, "attention_dim": -1}, "hidden_size is 0: .*attention_dim is -1: give"),
        ({"doubly_stochastic_weight": -1.0}, "doubly_stochastic_weight is -1.0: give 0 or more"),
        ({"dropout": 1.0}, "dropout is 1.0: give less than 1"),
    ],
)
def test_values_out_of_bounds_are_rejected(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        build_config(ShowAttendTellConfig, asdict(TINY) | changes, "decoder")


# ------------------------------------------------------------------------------- equations
def linear(layer: torch.nn.Linear, v: Tensor) -> Tensor:
    return layer.weight @ v + (0 if layer.bias is None else layer.bias)


def loop_loss(model: ShowAttendTell, a: Tensor, caption: list[int]) -> tuple[float, float]:
    """Equations 1 to 7 and 14 as loops over words and cells.  -> nats, second term"""
    mean = sum(a) / len(a)
    h, c = linear(model.init_h, mean), linear(model.init_c, mean)
    nats, total_weights = 0.0, [0.0] * len(a)
    for y, target in pairwise(caption):
        hidden = [torch.tanh(linear(model.att_a, cell) + linear(model.att_h, h)) for cell in a]
        e = [linear(model.att, v).item() for v in hidden]
        alpha = [math.exp(score) / sum(map(math.exp, e)) for score in e]
        beta = torch.sigmoid(linear(model.beta, h))
        z = beta * sum(weight * cell for weight, cell in zip(alpha, a, strict=True))
        read = torch.cat([model.E.weight[y], z])
        gates = model.lstm.weight_ih @ read + model.lstm.bias_ih
        gates = gates + model.lstm.weight_hh @ h + model.lstm.bias_hh
        i, f, g, o = gates.chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        deep = model.E.weight[y] + linear(model.L_h, h) + linear(model.L_z, z)
        nats -= linear(model.L_o, deep).log_softmax(0)[target].item()
        total_weights = [total + weight for total, weight in zip(total_weights, alpha, strict=True)]
    return nats, TINY.doubly_stochastic_weight * sum((1 - total) ** 2 for total in total_weights)


def test_the_loss_matches_the_equations_written_as_loops():
    model, a = build_decoder(), cells()
    loss = model(a, CAPTIONS)
    assert loss.tokens.tolist() == [4, 2]
    for b, length in enumerate([5, 3]):
        nats, stochastic = loop_loss(model, a[b], CAPTIONS[b, :length].tolist())
        assert loss.nats[b].item() == pytest.approx(nats, rel=1e-9)
        assert loss.stochastic[b].item() == pytest.approx(stochastic, rel=1e-9)


def test_the_loss_of_uniform_attention_equals_the_value_by_hand():
    """4 cells, 2 predicted ids: a cell has a total weight of 2/4, its term is 0.7 * (1 - 2/4)^2."""
    model = build_decoder()
    torch.nn.init.zeros_(model.att.weight)
    torch.nn.init.zeros_(model.L_o.weight)
    torch.nn.init.zeros_(model.L_o.bias)
    loss = model(cells(), CAPTIONS)
    assert loss.stochastic[1].item() == pytest.approx(0.7)
    assert loss.stochastic[0].item() == pytest.approx(0)
    assert loss.nats.tolist() == pytest.approx([4 * math.log(WORDS), 2 * math.log(WORDS)])


def test_padding_and_the_split_of_a_batch_change_nothing():
    model, a = build_decoder(), cells()
    whole = model(a, torch.nn.functional.pad(CAPTIONS, (0, 3)))
    for b, length in enumerate([5, 3]):
        single_loss = model(a[b : b + 1], CAPTIONS[b : b + 1, :length])
        for part, expected in zip(whole, single_loss, strict=True):
            torch.testing.assert_close(part[b : b + 1], expected, rtol=1e-9, atol=0)


def test_an_item_without_caption_has_no_loss_and_no_gradient():
    model, a = build_decoder(), cells().requires_grad_()
    empty = torch.cat([CAPTIONS[:1], torch.full((1, 5), PAD)])
    loss = model(a, empty)
    assert [part[1].item() for part in loss] == [0, 0, 0]
    (loss.nats + loss.stochastic).sum().backward()
    assert a.grad[0].any() and not a.grad[1].any()


def test_a_word_depends_only_on_the_words_before_it():
    model, a = build_decoder(), cells(1)
    caption, other = CAPTIONS[:1], torch.tensor([[SOS, 5, 8, 6, EOS]])
    short = [model(a, ids[:, :3]).nats for ids in (caption, other)]
    assert torch.equal(*short)
    assert not torch.equal(model(a, caption).nats, model(a, other).nats)


def test_every_weight_and_every_cell_gets_a_gradient():
    model, a = build_decoder().train(), cells().requires_grad_()
    loss = model(a, CAPTIONS)
    (loss.nats + loss.stochastic).sum().backward()
    assert [name for name, w in model.named_parameters() if not w.grad.abs().sum() > 0] == []
    assert (a.grad.abs().sum(2) > 0).all()


# ------------------------------------------------------------------------------- learning
@pytest.fixture(scope="module")
def trained() -> tuple[ShowAttendTell, Tensor, list[list[int]]]:
    """A decoder that memorized four captions of different length, their cells and their words."""
    torch.manual_seed(0)
    model = ShowAttendTell(
        ShowAttendTellConfig(
            embedding_dim=8,
            hidden_size=16,
            attention_dim=8,
            dropout=0.0,
            doubly_stochastic_weight=0.1,
        ),
        vocabulary=8,
        cell_width=WIDTH,
    )
    words = [[4, 5, 6, 7], [5, 4], [UNK], []]
    rows = [[SOS, *ids, EOS] for ids in words]
    captions = torch.tensor([row + [PAD] * (6 - len(row)) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(cells(4).float(), captions)
        (loss.nats + loss.stochastic).sum().backward()
        optimizer.step()
    assert (loss.nats / loss.tokens).max() < 0.1
    return model.eval(), cells(4).float(), words


def test_one_batch_is_memorized_and_reproduced(trained):
    model, a, words = trained
    assert model.greedy_decode(a, max_length=10) == words


def test_a_greedy_caption_counts_both_ends_in_max_length(trained):
    model, a, words = trained
    assert model.greedy_decode(a, max_length=4) == [ids[:2] for ids in words]


def test_greedy_words_do_not_depend_on_the_batch(trained):
    model, _, _ = trained
    images = torch.randn(5, CELLS, WIDTH)
    separate = [model.greedy_decode(image[None], max_length=8)[0] for image in images]
    assert model.greedy_decode(images, max_length=8) == separate
    assert not {PAD, SOS, EOS} & {word for ids in separate for word in ids}
