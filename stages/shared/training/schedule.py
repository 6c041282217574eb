"""How a training run is scheduled: steps, batch size, learning rate, validation and patience."""

import math

from stages.shared.core.config import Field, config_class


@config_class
class Schedule:
    """Steps, learning rate and validation of one training run, with AdamW as the optimizer."""

    seed: int = Field(description="seed of initialization, shuffling and every step")
    max_steps: int = Field(ge=0, description="optimizer steps; 0 evaluates the initial weights")
    batch_size: int = Field(ge=1, description="items per step")
    learning_rate: float = Field(ge=0, description="peak learning rate")
    warmup_ratio: float = Field(ge=0, le=1, description="fraction of steps with linear warm-up")
    weight_decay: float = Field(ge=0, description="decoupled weight decay of weight matrices")
    max_grad_norm: float = Field(
        ge=0, description="gradient norm above which gradients are clipped"
    )
    eval_steps: int = Field(ge=1, description="steps between two validations")
    patience: int = Field(ge=1, description="validations without improvement that end the run")

    def lr_scale(self, step: int) -> float:
        """Learning rate of a step as a share of the peak: linear warm-up, then cosine to zero."""
        warmup = max(1, round(self.warmup_ratio * self.max_steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.max_steps - warmup)))
