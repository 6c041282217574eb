"""The schedule of a training run: steps, batch size, learning rate and validation."""

import math
from typing import Literal

from stages.shared.core.config import Field, config_class


@config_class
class Schedule:
    """Hyperparameters of one training run with AdamW."""

    seed: int = Field(description="seed of initialization, shuffling and every step")
    max_steps: int = Field(ge=0, description="optimizer steps; 0 evaluates the initial weights")
    batch_size: int = Field(ge=1, description="items per step")
    learning_rate: float = Field(ge=0, description="peak learning rate")
    warmup_ratio: float = Field(ge=0, le=1, description="fraction of steps with linear warm-up")
    weight_decay: float = Field(ge=0, description="decoupled weight decay of weight matrices")
    max_grad_norm: float = Field(ge=0, description="norm to which gradients are clipped")
    eval_steps: int = Field(ge=1, description="steps between two validations")
    patience: int = Field(ge=1, description="validations without improvement that end the run")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = Field(
        description="after the warm-up"
    )
    keep: Literal["best", "last"] = Field(
        description="weights of the best validation, or the last ones"
    )

    def lr_scale(self, step: int) -> float:
        """Fraction of the peak learning rate at a step, from 0.

        Linear warm-up, then decay to zero by a cosine or linearly, or none.
        """
        warmup = max(1, round(self.warmup_ratio * self.max_steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.max_steps - warmup)
        match self.lr_scheduler_type:
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * progress))
            case "linear":
                return 1 - progress
            case "constant":
                return 1.0
