"""The items of a training step, batches for evaluation, and moving batches to a device."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = dict[str, Any]  # tensors; the first dimension is the batch
BUCKET_BATCHES = 8  # batches per length bucket


class BatchDataset(Protocol):
    """A dataset that makes batches of its items."""

    def __len__(self) -> int: ...
    def batch(self, indices: list[int]) -> Batch: ...


def shuffled_batch(num_items: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Indices of the items of a step: consecutive slices of endlessly repeated, seeded shuffles."""
    return _shuffled_indices(num_items, seed, range(step * batch_size, (step + 1) * batch_size))


def length_bucketed_batch(
    lengths: Sequence[int], batch_size: int, seed: int, step: int
) -> list[int]:
    """Like `shuffled_batch`, but with items of similar length, which reduces padding.

    lengths: of all items. Each bucket of BUCKET_BATCHES batches, at most one epoch, is sorted by
    length and sliced; its batches then come in random order.
    """
    bucket_batches = max(1, min(BUCKET_BATCHES, len(lengths) // batch_size))
    bucket_index, place = divmod(step, bucket_batches)
    size = bucket_batches * batch_size
    positions = range(bucket_index * size, (bucket_index + 1) * size)
    bucket = _shuffled_indices(len(lengths), seed, positions)
    bucket.sort(key=lambda item: lengths[item])
    first = _epoch_permutation(bucket_batches, seed, bucket_index)[place] * batch_size
    return bucket[first : first + batch_size]


def _shuffled_indices(num_items: int, seed: int, positions: range) -> list[int]:
    epochs = {position // num_items for position in positions}
    orders = {epoch: _epoch_permutation(num_items, seed, epoch) for epoch in epochs}
    return [orders[position // num_items][position % num_items] for position in positions]


def _epoch_permutation(num_items: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_items, generator=generator).tolist()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; other values are kept."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def evaluation_batches(
    dataset: BatchDataset,
    batch_size: int,
    device: torch.device,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], Batch]]:
    """Yields item indices and their batch on `device`, in order; the last batch may be smaller.

    indices: of the items; None for all items of the dataset.
    """
    indices = range(len(dataset)) if indices is None else indices
    for start in range(0, len(indices), batch_size):
        batch_indices = list(indices[start : start + batch_size])
        yield batch_indices, to_device(dataset.batch(batch_indices), device)
