"""The items of a training step, batches for evaluation, and moving batches to a device."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Any]  # tensors; the first dimension is the batch
BUCKET_BATCHES = 8  # batches per length bucket
NUM_PREFETCHED = 2  # batches made ahead
NUM_CACHED_PERMUTATIONS = 8  # a step needs those of one or two epochs and of a bucket


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
    first = int(_epoch_permutation(bucket_batches, seed, bucket_index)[place]) * batch_size
    return bucket[first : first + batch_size]


def _shuffled_indices(num_items: int, seed: int, positions: range) -> list[int]:
    return [
        int(_epoch_permutation(num_items, seed, position // num_items)[position % num_items])
        for position in positions
    ]


@lru_cache(maxsize=NUM_CACHED_PERMUTATIONS)
def _epoch_permutation(num_items: int, seed: int, epoch: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_items, generator=generator).numpy()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; other values are kept."""
    to_gpu = device.type == "cuda"  # asynchronous from pinned memory, see Prefetcher
    return {
        k: v.to(device, non_blocking=to_gpu) if isinstance(v, Tensor) else v
        for k, v in batch.items()
    }


class Prefetcher:
    """`batch_at` whose next batches a thread makes while a step is running.

    For batches that decode images. `batch_at` must not use random numbers or what a step changes,
    so that its batches are the same in a thread. With CUDA they are in pinned memory, from which
    they are copied while the GPU computes.
    """

    def __init__(self, batch_at: Callable[[int], Batch], num_steps: int):
        self.batch_at, self.num_steps = batch_at, num_steps
        self.pool = ThreadPoolExecutor(1)
        self.batches: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of a step, usually made before. Raises the exceptions of `batch_at`."""
        for number in range(step, min(step + 1 + NUM_PREFETCHED, self.num_steps)):
            if number not in self.batches:
                self.batches[number] = self.pool.submit(self._make, number)
        return self.batches.pop(step).result()

    def _make(self, step: int) -> Batch:
        batch = self.batch_at(step)
        if torch.cuda.is_available():
            return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}
        return batch


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
