"""Batches of a split for prediction, from both inputs or from one."""

from collections.abc import Iterator
from math import ceil
from typing import Protocol

import torch
from torch import nn

from stages.shared.runtime.progress import progress_bar
from stages.shared.training.batching import Batch, BatchDataset, evaluation_batches

CLASSIFIED_SPLITS = ("validation", "test")
INPUT_MODES = ("both", "text", "picture")


class HasModel(Protocol):
    @property
    def model(self) -> nn.Module: ...


def mask_inputs(batch: Batch, inputs: str) -> Batch:
    """The batch with only the inputs that are named: both | text | picture."""
    if inputs == "both":
        return batch
    masked = "has_picture" if inputs == "text" else "has_text"
    return batch | {masked: torch.zeros_like(batch[masked])}


def iter_batches(
    classifier: HasModel, items: BatchDataset, indices: list[int], batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Item indices and their batch, on the model's device, with a progress bar."""
    device = next(classifier.model.parameters()).device
    batches = evaluation_batches(items, batch_size, device, indices)
    return progress_bar(batches, "classify", ceil(len(indices) / batch_size))
