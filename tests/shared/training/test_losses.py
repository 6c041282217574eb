import math

import pytest
import torch
import torch.nn.functional as F

from stages.shared.training.losses import (
    IGNORE_INDEX,
    info_nce_loss,
    pairwise_dpo_loss,
    softmax_dpo_loss,
    token_log_probs,
)


def test_token_log_probs_match_log_softmax_and_are_zero_where_ignored():
    logits, labels = (
        torch.randn(2, 3, 5),
        torch.tensor([[1, IGNORE_INDEX, 2], [IGNORE_INDEX, 4, 0]]),
    )
    expected = torch.zeros(2, 3)
    for b in range(2):
        for t in range(3):
            if labels[b, t] != IGNORE_INDEX:
                expected[b, t] = logits[b, t].log_softmax(-1)[labels[b, t]]
    torch.testing.assert_close(token_log_probs(logits, labels), expected)


def test_info_nce_of_indistinguishable_pairs_is_log_batch():
    same = torch.ones(4, 8)
    loss = info_nce_loss(same, same, torch.eye(4, dtype=torch.bool), temperature=0.5)
    torch.testing.assert_close(loss, torch.tensor(math.log(4)))


def test_info_nce_with_two_equal_captions_matches_loops():
    torch.manual_seed(0)
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    b[1] = b[0]
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    scores = [[F.cosine_similarity(x, y, dim=0) / 0.3 for y in b] for x in a]
    expected = torch.tensor(0.0)
    for i in range(3):
        row = torch.stack(scores[i]).log_softmax(0)
        column = torch.stack([scores[j][i] for j in range(3)]).log_softmax(0)
        for j in range(3):
            if same[i, j]:
                expected -= (row[j] + column[j]) / same[i].sum() / 6
    torch.testing.assert_close(info_nce_loss(a, b, same, 0.3), expected)


def test_dpo_matches_a_value_derived_by_hand():
    """beta 0.1, one gap of 10: -log sigmoid(1) = log(1 + 1/e)."""
    gaps, allowed = torch.tensor([[10.0]]), torch.tensor([[True]])
    expected = torch.tensor(math.log(1 + math.exp(-1)))
    torch.testing.assert_close(pairwise_dpo_loss(gaps, allowed, 0.1), expected)
    torch.testing.assert_close(softmax_dpo_loss(gaps, allowed, 0.1), expected)


@pytest.mark.parametrize("loss", [pairwise_dpo_loss, softmax_dpo_loss])
def test_pairs_that_are_not_allowed_have_no_effect_and_no_gradient(loss):
    gaps = torch.tensor([[1.0, 2.0, 50.0], [7.0, 7.0, 7.0]], requires_grad=True)
    allowed = torch.tensor([[True, True, False], [False, False, False]])
    value = loss(gaps, allowed, 0.5)
    torch.testing.assert_close(value, loss(gaps[:1, :2], allowed[:1, :2], 0.5))
    value.backward()
    assert torch.isfinite(gaps.grad).all()
    assert torch.equal(gaps.grad != 0, allowed)


def test_softmax_dpo_matches_its_equation_with_two_rejected():
    gaps = torch.tensor([[1.0, -2.0]])
    expected = -math.log(1 / (1 + math.exp(-0.5 * 1) + math.exp(0.5 * 2)))
    loss = softmax_dpo_loss(gaps, torch.ones(1, 2, dtype=torch.bool), 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
