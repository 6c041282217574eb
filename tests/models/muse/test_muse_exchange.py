"""The exchange of MuSE against loops over items and tokens: our rule and the public code's."""

import math

import numpy as np
import pytest
import torch

from stages.models.muse.model import exchange_tokens, select_exchange_tokens
from stages.shared.modeling.layers import masked_mean
from tests.support import tiny_muse


def scores_and_mask(items=6, tokens=11):
    """Scores with ties, and masks with 0, 1, 2, ... tokens and padding inside and at the end."""
    torch.manual_seed(0)
    mask = torch.arange(tokens) < torch.tensor([[0], [1], [2], [7], [10], [tokens]])[:items]
    mask[4, 3] = False
    return torch.randint(6, (items, tokens)).float(), mask


def select_by_loop(scores, mask, network):
    selected = torch.zeros_like(mask)
    for item in range(len(scores)):
        valid = [token for token in range(scores.shape[1]) if mask[item, token]]
        count = math.floor(network.theta * len(valid) + 1e-9)
        if network.theta > 0:
            count = max(count, network.min_exchanged_tokens)
        count = min(count, len(valid) - 1)
        for token in sorted(valid, key=lambda token: (scores[item, token].item(), token))[
            : max(count, 0)
        ]:
            selected[item, token] = True
    return selected


@pytest.mark.parametrize("theta", [0.0, 0.05, 0.1, 0.29, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("min_tokens", [0, 1, 3])
def test_selected_tokens_equal_those_of_a_loop_with_ties_by_position(theta, min_tokens):
    network = tiny_muse.build_model_config(theta=theta, min_exchanged_tokens=min_tokens)
    scores, mask = scores_and_mask()
    selected = select_exchange_tokens(scores, mask, network)
    assert torch.equal(selected, select_by_loop(scores, mask, network))
    assert not (selected & ~mask).any()  # bug 4 of the public code: padding was exchanged first


def test_the_number_of_exchanged_tokens_is_exact():
    """0.29 * 100 is 28.999...96 in floating point; 29 tokens are exchanged."""
    scores, mask = torch.rand(1, 100), torch.ones(1, 100, dtype=torch.bool)
    for theta, count in ((0.1, 10), (0.29, 29), (0.3, 30), (0.57, 57), (0.999, 99)):
        assert (
            select_exchange_tokens(scores, mask, tiny_muse.build_model_config(theta=theta)).sum()
            == count
        )


def test_selected_tokens_equal_those_by_hand():
    """Five tokens, the fourth is padding: 0.5 of four are the two smallest, 0.1 and 0.2."""
    scores = torch.tensor([[0.3, 0.1, 0.2, 0.0, 0.4]])
    mask = torch.tensor([[True, True, True, False, True]])
    network = tiny_muse.build_model_config(theta=0.5)
    assert select_exchange_tokens(scores, mask, network).tolist() == [
        [False, True, True, False, False]
    ]
    # The quantile of 0.1, 0.2, 0.3, 0.4 is 0.25 at 0.5, and 0.2 at 1/3; 0.2 is not below it.
    quantile = tiny_muse.build_model_config(theta=0.5, exchange_count="quantile")
    assert select_exchange_tokens(scores, mask, quantile).tolist() == [
        [False, True, True, False, False]
    ]
    quantile = tiny_muse.build_model_config(theta=1 / 3, exchange_count="quantile")
    assert select_exchange_tokens(scores, mask, quantile).tolist() == [
        [False, True, False, False, False]
    ]


def make_streams(items=4, tokens=(7, 5), width=3, whole=True):
    """X_t, X_v and their masks, cls first; whole numbers have exact sums in any order."""
    torch.manual_seed(1)
    lengths = torch.tensor([[7], [3], [1], [5]])[:items]
    text = torch.randint(-9, 9, (items, 1 + tokens[0], width)).double()
    image = torch.randint(-9, 9, (items, 1 + tokens[1], width)).double()
    if not whole:
        text, image = torch.randn_like(text), torch.randn_like(image)
    every = torch.ones(items, 1 + tokens[1], dtype=torch.bool)
    return (text, image), (torch.arange(1 + tokens[0]) < 1 + lengths, every)


def exchange_by_loop(streams, masks, selected, network):
    output = [x.clone() for x in streams]
    for item in range(len(streams[0])):
        means = []
        for x, mask in zip(streams, masks, strict=True):
            first = 0 if network.padding_mask == "ignored" else 1
            tokens = [x[item, t] for t in range(first, x.shape[1]) if mask[item, t]]
            means.append(sum(tokens) / len(tokens))
        for own, other in ((0, 1), (1, 0)):
            for token in range(selected[own].shape[1]):
                if selected[own][item, token]:
                    x = streams[own][item, 1 + token]
                    new = means[other] + x if network.exchange == "residual" else means[other]
                    output[own][item, 1 + token] = new
    return tuple(output)


@pytest.mark.parametrize("exchange_kind", ["replace", "residual"])
@pytest.mark.parametrize("masks", ["respected", "ignored"])
def test_the_exchange_equals_a_loop_over_tokens_exactly(exchange_kind, masks):
    network = tiny_muse.build_model_config(exchange=exchange_kind, padding_mask=masks)
    inputs, stream_masks = make_streams()
    if masks == "ignored":
        stream_masks = tuple(torch.ones_like(mask) for mask in stream_masks)
    selected = tuple(
        select_exchange_tokens(x[:, 1:, 0], m[:, 1:], network)
        for x, m in zip(inputs, stream_masks, strict=True)
    )
    assert all(tokens.any() for tokens in selected)
    before = [x.clone() for x in inputs]
    output = exchange_tokens(inputs, stream_masks, selected, network)
    expected = exchange_by_loop(inputs, stream_masks, selected, network)
    assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
    # Bug 9 of the public code: the inputs are not modified.
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert all(torch.equal(a[:, 0], b[:, 0]) for a, b in zip(output, inputs, strict=True))  # cls


def exchange_like_public_code(text, image, text_weights, image_weights, theta):
    """One layer of the public code: no masks, means of all 65 positions including cls. The mean of
    the other modality is added to tokens whose weight is strictly below the quantile of their row
    without cls. text_weights, image_weights (B, 65): attention of cls to all positions."""
    output = [text.clone(), image.clone()]
    for item in range(len(text)):
        means = image[item].mean(0), text[item].mean(0)
        for modality, weights in enumerate((text_weights, image_weights)):
            threshold = np.quantile(weights[item, 1:].numpy(), theta)
            for token in range(1, weights.shape[1]):
                if weights[item, token] < threshold:
                    output[modality][item, token] = means[modality] + output[modality][item, token]
    return tuple(output)


@pytest.mark.parametrize("theta", [0.05, 0.1, 0.2, 0.25])
def test_the_options_of_the_public_code_reproduce_its_rule(theta):
    network = tiny_muse.build_model_config(
        theta=theta, exchange_count="quantile", exchange="residual", padding_mask="ignored"
    )
    torch.manual_seed(0)
    inputs = tuple(torch.randint(-9, 9, (3, 65, 4)).double() for _ in range(2))
    weights = tuple(torch.rand(3, 65).double() for _ in range(2))
    masks = tuple(torch.ones(3, 65, dtype=torch.bool) for _ in range(2))
    selected = tuple(
        select_exchange_tokens(w[:, 1:], m[:, 1:], network)
        for w, m in zip(weights, masks, strict=True)
    )
    output = exchange_tokens(inputs, masks, selected, network)
    expected = exchange_like_public_code(*inputs, *weights, theta)
    assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))


def test_the_quantile_excludes_padding():
    """Padding gets little attention: included, it would lower the quantile to 0."""
    scores = torch.tensor([[0.6, 0.4, 0.7, 0.5, 0.0, 0.0, 0.0, 0.0]])
    mask = torch.arange(8)[None] < 4
    network = tiny_muse.build_model_config(theta=0.4, exchange_count="quantile")
    # The quantile is 0.4 + 0.4 * 3 * 0.1 = 0.52.
    assert select_exchange_tokens(scores, mask, network)[0].nonzero()[:, 0].tolist() == [1, 3]


def test_both_directions_use_the_values_before_the_exchange():
    """One subword and one cell: with replacement they swap values."""
    network = tiny_muse.build_model_config()
    inputs = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.0], [5.0]]])
    masks = tuple(torch.ones(1, 2, dtype=torch.bool) for _ in range(2))
    selected = tuple(torch.ones(1, 1, dtype=torch.bool) for _ in range(2))
    text, image = exchange_tokens(inputs, masks, selected, network)
    assert (text[0, 1].item(), image[0, 1].item()) == (5.0, 1.0)


def test_padding_changes_neither_means_nor_selected_tokens():
    (text, _), (mask, _) = make_streams(whole=False)
    longer = torch.cat([text, 100 * torch.ones(4, 6, 3)], 1)
    padded = torch.nn.functional.pad(mask, (0, 6))
    torch.testing.assert_close(masked_mean(longer, padded), masked_mean(text, mask))
    network = tiny_muse.build_model_config(theta=0.4)
    selected = select_exchange_tokens(longer[:, 1:, 0], padded[:, 1:], network)
    assert torch.equal(
        selected[:, :7], select_exchange_tokens(text[:, 1:, 0], mask[:, 1:], network)
    )
    assert not selected[:, 7:].any()


def test_an_empty_mask_has_mean_zero_and_no_selected_tokens():
    empty = torch.zeros(1, 4, dtype=torch.bool)
    assert masked_mean(torch.randn(1, 4, 3), empty).tolist() == [[0.0, 0.0, 0.0]]
    for count in ("floor", "quantile"):
        assert not select_exchange_tokens(
            torch.rand(1, 4), empty, tiny_muse.build_model_config(exchange_count=count)
        ).any()


def test_gradients_pass_through_means_and_not_through_replaced_tokens():
    network = tiny_muse.build_model_config()
    text = torch.randn(1, 3, 2, requires_grad=True)
    image = torch.randn(1, 3, 2, requires_grad=True)
    masks = tuple(torch.ones(1, 3, dtype=torch.bool) for _ in range(2))
    selected = torch.tensor([[True, False]]), torch.tensor([[False, False]])
    exchange_tokens((text, image), masks, selected, network)[0][0, 1].sum().backward()
    assert not text.grad.any()  # the token was replaced
    torch.testing.assert_close(image.grad[0, 1:], torch.full((2, 2), 0.5))
    assert not image.grad[0, 0].any()  # cls is not part of the mean
