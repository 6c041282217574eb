"""Batches of a split for prediction, from both inputs or from one."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from stages.shared.runtime.progress import progress_bar
from stages.shared.training.batching import Batch, to_device

CLASSIFIED_SPLITS = ("validation", "test")
INPUT_MODES = ("both", "text", "picture")


class HasModel(Protocol):
    model: nn.Module


class BatchSource(Protocol):
    def batch(self, indices: list[int]) -> Batch: ...


def mask_inputs(batch: Batch, inputs: str) -> Batch:
    """The batch with only the inputs that are named: both | text | picture."""
    if inputs == "both":
        return batch
    masked = "has_picture" if inputs == "text" else "has_text"
    return batch | {masked: torch.zeros_like(batch[masked])}


def iter_batches(
    classifier: HasModel, items: BatchSource, indices: list[int], batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Item indices and their batch, on the model's device."""
    device = next(classifier.model.parameters()).device
    for start in progress_bar(range(0, len(indices), batch_size), "classify"):
        batch_indices = indices[start : start + batch_size]
        yield batch_indices, to_device(items.batch(batch_indices), device)
