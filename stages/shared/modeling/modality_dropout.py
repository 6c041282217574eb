"""Training items shown without one of their inputs, so that a model learns to do without it."""

import torch

from stages.shared.training.batching import Batch


def drop_modality(
    batch: Batch, missing_picture: float, missing_words: float, words: str = "has_topic"
) -> Batch:
    """A batch with a share of its items without pictures, another without words; none without both.

    words: the key of what says which items have some (B,); has_picture (B,) or (B, N). What has one
    of the two only keeps it.
    """
    has_words, has_picture = batch[words], batch["has_picture"]
    u = torch.rand(len(has_words), device=has_words.device)
    no_picture = (u < missing_picture) & has_words
    no_words = (u > 1 - missing_words) & has_picture.view(len(u), -1).any(1)
    seen = ~no_picture.view(-1, *[1] * (has_picture.ndim - 1))
    return batch | {"has_picture": has_picture & seen, words: has_words & ~no_words}
