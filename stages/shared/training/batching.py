"""Which items a training step sees, and moving them to a device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]  # tensors; the first dimension is the batch
BUCKET_BATCHES = 8  # batches per length bucket


def shuffled_batch(items: int, batch: int, seed: int, step: int) -> list[int]:
    """The items of a step: an endless walk over seeded shuffles of range(items), cut in batches."""
    return _shuffled_indices(items, seed, range(step * batch, (step + 1) * batch))


def length_bucketed_batch(lengths: Sequence[int], batch: int, seed: int, step: int) -> list[int]:
    """As `batch_of`, of items that are about as long as each other, so that little is padded.

    lengths: of the items. What BUCKET batches of the walk hold, never more than an epoch, is
    sorted by length before it is cut; these batches then come in random order.
    """
    held = max(1, min(BUCKET_BATCHES, len(lengths) // batch))  # batches
    number, place = divmod(step, held)
    size = held * batch
    bucket = _shuffled_indices(len(lengths), seed, range(number * size, (number + 1) * size))
    bucket.sort(key=lambda item: lengths[item])
    first = _epoch_permutation(held, seed, number)[place] * batch
    return bucket[first : first + batch]


def _shuffled_indices(items: int, seed: int, positions: range) -> list[int]:
    epochs = {position // items for position in positions}
    orders = {epoch: _epoch_permutation(items, seed, epoch) for epoch in epochs}
    return [orders[position // items][position % items] for position in positions]


def _epoch_permutation(items: int, seed: int, number: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    return torch.randperm(items, generator=generator).tolist()


def to_device(batch: Batch, target: torch.device) -> Batch:
    return {k: v.to(target) if isinstance(v, Tensor) else v for k, v in batch.items()}
