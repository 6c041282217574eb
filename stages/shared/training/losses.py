"""Losses that several models use: pure functions of tensors, one equation each.

Shapes: B examples, T tokens, V vocabulary, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100  # label of a token that carries no loss: padding


def token_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(label) of each token in nats, 0 at IGNORE_INDEX.  (..., T, V), (..., T) -> (..., T)"""
    losses = F.cross_entropy(
        logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32)),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return -losses.view(labels.shape)


def info_nce_loss(a: Tensor, b: Tensor, same: Tensor, temperature: Tensor | float) -> Tensor:
    """Symmetric InfoNCE in nats (CLIP, arXiv:2103.00020, fig. 3) with several positives per row.

    a, b (B, D) are compared by cosine similarity; same (B, B) is true where row i of `a` belongs to
    row j of `b`, at least on the diagonal. Each row's target is uniform over its positives.
    """
    scores = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature  # (B, B)
    target = same.to(scores.dtype)
    rows = F.cross_entropy(scores, target / target.sum(1, keepdim=True))
    columns = F.cross_entropy(scores.T, target.T / target.sum(0)[:, None])
    return (rows + columns) / 2


def pairwise_dpo_loss(gaps: Tensor, allowed: Tensor, beta: float) -> Tensor:
    """DPO (arXiv:2305.18290, eq. 7): the mean over the allowed pairs of each row, then over rows.

    gaps (..., K): log p(chosen) - log p(rejected) of the policy, minus that of the reference.
    allowed (..., K): which pairs count; a row without any carries no loss.
    """
    losses = -F.logsigmoid(beta * gaps) * allowed
    return _mean_over_rows(losses.sum(-1) / allowed.sum(-1).clamp(min=1), allowed)


def softmax_dpo_loss(gaps: Tensor, allowed: Tensor, beta: float) -> Tensor:
    """S-DPO (arXiv:2406.09215, eq. 10): -log sigmoid(-log sum_j exp(-beta gap_j)).

    Arguments as in `pairwise_dpo_loss`.
    """
    exponents = (-beta * gaps).masked_fill(~allowed, -torch.inf)
    has_pair = allowed.any(-1)
    exponents = exponents.where(has_pair[..., None], torch.zeros_like(exponents))
    return _mean_over_rows(-F.logsigmoid(-exponents.logsumexp(-1)), allowed)


def _mean_over_rows(losses: Tensor, allowed: Tensor) -> Tensor:
    has_pair = allowed.any(-1)
    return (losses * has_pair).sum() / has_pair.sum().clamp(min=1)
