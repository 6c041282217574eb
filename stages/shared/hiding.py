"""Training items shown without one of their inputs, so that a writer learns to do without it."""

import torch

from stages.shared.training import Batch


def hide(batch: Batch, missing_picture: float, missing_topic: float) -> Batch:
    """A batch with a share of its items without pictures, another without topic; none without both.

    has_topic (B,), has_picture (B,) or (B, N). What has one of the two only keeps it.
    """
    has_topic, has_picture = batch["has_topic"], batch["has_picture"]
    u = torch.rand(len(has_topic), device=has_topic.device)
    no_picture = (u < missing_picture) & has_topic
    no_topic = (u > 1 - missing_topic) & has_picture.view(len(u), -1).any(1)
    seen = ~no_picture.view(-1, *[1] * (has_picture.ndim - 1))
    return batch | {"has_picture": has_picture & seen, "has_topic": has_topic & ~no_topic}
