"""Modality dropout: hide one input of some training items, so that the model copes without it."""

import torch

from stages.shared.training.batching import Batch


def drop_modality(
    batch: Batch, image_prob: float, text_prob: float, text_key: str = "has_topic"
) -> Batch:
    """Hide the images of a random part of the items and the text of another part.

    An item that lacks one of the two keeps the other, so that none loses both.
    text_key: of the mask (B,) of items with text. The mask `has_picture` is (B,) or (B, N).
    """
    has_text, has_image = batch[text_key], batch["has_picture"]
    u = torch.rand(len(has_text), device=has_text.device)
    drops_image = (u < image_prob) & has_text
    drops_text = (u > 1 - text_prob) & has_image.view(len(u), -1).any(1)
    keeps_image = ~drops_image.view(-1, *[1] * (has_image.ndim - 1))
    return batch | {"has_picture": has_image & keeps_image, text_key: has_text & ~drops_text}
