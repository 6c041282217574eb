"""The exchange of MuSE against loops over items and tokens, ours and the public code's rule."""

import math

import numpy as np
import pytest
import torch

from stages.models.muse.model import exchange_tokens, select_exchange_tokens
from stages.shared.modeling.layers import masked_mean
from tests.support import tiny_muse


def scores_and_mask(items=6, tokens=11):
    """Scores with ties, and texts of 0, 1, 2 ... tokens with padding in between and at the end."""
    torch.manual_seed(0)
    mask = torch.arange(tokens) < torch.tensor([[0], [1], [2], [7], [10], [tokens]])[:items]
    mask[4, 3] = False
    return torch.randint(6, (items, tokens)).float(), mask


def chosen_by_loop(scores, mask, network):
    places = torch.zeros_like(mask)
    for item in range(len(scores)):
        valid = [token for token in range(scores.shape[1]) if mask[item, token]]
        number = math.floor(network.theta * len(valid) + 1e-9)
        if network.theta > 0:
            number = max(number, network.min_exchanged_tokens)
        number = min(number, len(valid) - 1)
        for token in sorted(valid, key=lambda token: (scores[item, token].item(), token))[
            : max(number, 0)
        ]:
            places[item, token] = True
    return places


@pytest.mark.parametrize("theta", [0.0, 0.05, 0.1, 0.29, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("at_least", [0, 1, 3])
def test_chosen_places_are_those_of_a_loop_ties_by_place(theta, at_least):
    network = tiny_muse.build_model_config(theta=theta, min_exchanged_tokens=at_least)
    scores, mask = scores_and_mask()
    places = select_exchange_tokens(scores, mask, network)
    assert torch.equal(places, chosen_by_loop(scores, mask, network))
    assert not (places & ~mask).any()  # bug 4 of the public code: padding went first


def test_a_share_of_the_tokens_is_exact():
    """0.29 of 100 tokens, 28.999...96 in floating point, are 29."""
    scores, mask = torch.rand(1, 100), torch.ones(1, 100, dtype=torch.bool)
    for theta, count in ((0.1, 10), (0.29, 29), (0.3, 30), (0.57, 57), (0.999, 99)):
        assert (
            select_exchange_tokens(scores, mask, tiny_muse.build_model_config(theta=theta)).sum()
            == count
        )


def test_by_hand():
    """Five tokens, the fourth of them padding; 0.5 of four are two: the least, 0.1 and 0.2."""
    scores = torch.tensor([[0.3, 0.1, 0.2, 0.0, 0.4]])
    mask = torch.tensor([[True, True, True, False, True]])
    network = tiny_muse.build_model_config(theta=0.5)
    assert select_exchange_tokens(scores, mask, network).tolist() == [
        [False, True, True, False, False]
    ]
    # The quantile of 0.1, 0.2, 0.3, 0.4 at 0.5 is 0.25, at 1/3 0.2, which is not below itself.
    quantile = tiny_muse.build_model_config(theta=0.5, exchange_count="quantile")
    assert select_exchange_tokens(scores, mask, quantile).tolist() == [
        [False, True, True, False, False]
    ]
    quantile = tiny_muse.build_model_config(theta=1 / 3, exchange_count="quantile")
    assert select_exchange_tokens(scores, mask, quantile).tolist() == [
        [False, True, False, False, False]
    ]


def streams(items=4, tokens=(7, 5), width=3, whole=True):
    """X_t, X_v with whole numbers, whose sums are exact in any order, and masks, cls first."""
    torch.manual_seed(1)
    lengths = torch.tensor([[7], [3], [1], [5]])[:items]
    text = torch.randint(-9, 9, (items, 1 + tokens[0], width)).double()
    picture = torch.randint(-9, 9, (items, 1 + tokens[1], width)).double()
    if not whole:
        text, picture = torch.randn_like(text), torch.randn_like(picture)
    every = torch.ones(items, 1 + tokens[1], dtype=torch.bool)
    return (text, picture), (torch.arange(1 + tokens[0]) < 1 + lengths, every)


def exchanged_by_loop(streams, masks, chosen, network):
    out = [x.clone() for x in streams]
    for item in range(len(streams[0])):
        means = []
        for x, mask in zip(streams, masks, strict=True):
            first = 0 if network.padding_mask == "ignored" else 1
            tokens = [x[item, t] for t in range(first, x.shape[1]) if mask[item, t]]
            means.append(sum(tokens) / len(tokens))
        for own, other in ((0, 1), (1, 0)):
            for token in range(chosen[own].shape[1]):
                if chosen[own][item, token]:
                    x = streams[own][item, 1 + token]
                    new = means[other] + x if network.exchange == "residual" else means[other]
                    out[own][item, 1 + token] = new
    return tuple(out)


@pytest.mark.parametrize("kind", ["replace", "residual"])
@pytest.mark.parametrize("masks", ["respected", "ignored"])
def test_the_exchange_equals_a_loop_over_tokens_exactly(kind, masks):
    network = tiny_muse.build_model_config(exchange=kind, padding_mask=masks)
    given, of = streams()
    if masks == "ignored":
        of = tuple(torch.ones_like(mask) for mask in of)
    chosen = tuple(
        select_exchange_tokens(x[:, 1:, 0], m[:, 1:], network)
        for x, m in zip(given, of, strict=True)
    )
    assert all(places.any() for places in chosen)
    before = [x.clone() for x in given]
    found = exchange_tokens(given, of, chosen, network)
    expected = exchanged_by_loop(given, of, chosen, network)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # Bug 9: nothing is written into what came in.
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert all(torch.equal(a[:, 0], b[:, 0]) for a, b in zip(found, given, strict=True))  # cls


def public_rule(text, picture, text_weights, picture_weights, theta):
    """What the public code does with one layer: no masks, means of all 65 positions, cls among
    them; each weight strictly below the quantile of its row without cls takes the other's mean on
    top. Weights (B, 65) are those of cls to all positions."""
    found = [text.clone(), picture.clone()]
    for item in range(len(text)):
        means = picture[item].mean(0), text[item].mean(0)
        for place, weights in enumerate((text_weights, picture_weights)):
            threshold = np.quantile(weights[item, 1:].numpy(), theta)
            for token in range(1, weights.shape[1]):
                if weights[item, token] < threshold:
                    found[place][item, token] = means[place] + found[place][item, token]
    return tuple(found)


@pytest.mark.parametrize("theta", [0.05, 0.1, 0.2, 0.25])
def test_the_legacy_options_are_the_rule_of_the_public_code(theta):
    network = tiny_muse.build_model_config(
        theta=theta, exchange_count="quantile", exchange="residual", padding_mask="ignored"
    )
    torch.manual_seed(0)
    given = tuple(torch.randint(-9, 9, (3, 65, 4)).double() for _ in range(2))
    weights = tuple(torch.rand(3, 65).double() for _ in range(2))
    masks = tuple(torch.ones(3, 65, dtype=torch.bool) for _ in range(2))
    chosen = tuple(
        select_exchange_tokens(w[:, 1:], m[:, 1:], network)
        for w, m in zip(weights, masks, strict=True)
    )
    found = exchange_tokens(given, masks, chosen, network)
    expected = public_rule(*given, *weights, theta)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_quantile_is_that_of_what_is_no_padding():
    """Padding gets little attention: with it, the quantile of 0.4 to 0.7 would be 0."""
    scores = torch.tensor([[0.6, 0.4, 0.7, 0.5, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.arange(8)[None] < 4
    network = tiny_muse.build_model_config(
        theta=0.4, exchange_count="quantile"
    )  # 0.4 + 0.4 * 3 * 0.1 = 0.52
    assert select_exchange_tokens(scores, mask, network)[0].nonzero()[:, 0].tolist() == [1, 3]


def test_both_directions_see_what_was_there_before():
    """One piece and one cell: with replacement they change places."""
    network = tiny_muse.build_model_config()
    given = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.0], [5.0]]])
    masks = tuple(torch.ones(1, 2, dtype=torch.bool) for _ in range(2))
    chosen = tuple(torch.ones(1, 1, dtype=torch.bool) for _ in range(2))
    text, picture = exchange_tokens(given, masks, chosen, network)
    assert (text[0, 1].item(), picture[0, 1].item()) == (5.0, 1.0)


def test_padding_changes_neither_means_nor_places():
    (text, _), (mask, _) = streams(whole=False)
    longer = torch.cat([text, 100 * torch.ones(4, 6, 3)], 1)
    padded = torch.nn.functional.pad(mask, (0, 6))
    torch.testing.assert_close(masked_mean(longer, padded), masked_mean(text, mask))
    network = tiny_muse.build_model_config(theta=0.4)
    places = select_exchange_tokens(longer[:, 1:, 0], padded[:, 1:], network)
    assert torch.equal(places[:, :7], select_exchange_tokens(text[:, 1:, 0], mask[:, 1:], network))
    assert not places[:, 7:].any()


def test_nothing_has_no_mean_and_nothing_is_chosen_from_it():
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert masked_mean(torch.randn(1, 4, 3), nothing).tolist() == [[0.0, 0.0, 0.0]]
    for count in ("floor", "quantile"):
        assert not select_exchange_tokens(
            torch.rand(1, 4), nothing, tiny_muse.build_model_config(exchange_count=count)
        ).any()


def test_gradients_pass_through_means_and_not_through_what_was_replaced():
    network = tiny_muse.build_model_config()
    text = torch.randn(1, 3, 2, requires_grad=True)
    picture = torch.randn(1, 3, 2, requires_grad=True)
    masks = tuple(torch.ones(1, 3, dtype=torch.bool) for _ in range(2))
    chosen = torch.tensor([[True, False]]), torch.tensor([[False, False]])
    exchange_tokens((text, picture), masks, chosen, network)[0][0, 1].sum().backward()
    assert not text.grad.any()  # of the token that was replaced
    torch.testing.assert_close(picture.grad[0, 1:], torch.full((2, 2), 0.5))
    assert not picture.grad[0, 0].any()  # cls is no part of the mean
