"""What is shown to a reader: some items of a split, from both inputs or one."""

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
    hidden = "has_picture" if inputs == "text" else "has_text"
    return batch | {hidden: torch.zeros_like(batch[hidden])}


def iter_batches(
    reader: HasModel, items: BatchSource, places: list[int], size: int
) -> Iterator[tuple]:
    """Some items in batches on the model's device, and which they are."""
    device = next(reader.model.parameters()).device
    for start in progress_bar(range(0, len(places), size), "label"):
        indices = places[start : start + size]
        yield indices, to_device(items.batch(indices), device)
