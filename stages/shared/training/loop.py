"""The one training loop. What is minimised comes in as a function: the loop never asks who it is.

Every step seeds itself from (seed, step) and takes `batch_at(step)`, so a run that was killed and
is started again needs only its weights, the optimizer and the step to end with the same bits.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.shared.core.config import Field, config_class, load_config
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import inference_context, supports_bf16
from stages.shared.training.batching import Batch, to_device
from stages.shared.training.checkpoint import Checkpoint
from stages.shared.training.schedule import Schedule

LossTerms = dict[str, Tensor]  # the named terms of a loss; their sum is minimised
UNIFORM_LR: Mapping[str, float] = MappingProxyType({})  # every weight learns at the schedule's rate


@config_class
class TrainingConfig:
    """The section `training`."""

    checkpoint_interval_seconds: float = Field(ge=0, description="seconds between two checkpoints")


@dataclass(frozen=True)
class ValidationResult:
    """What was measured, the loss that the best weights minimise, and whether to stop at once."""

    metrics: dict[str, float]
    loss: float
    stop: bool = False


def average_item_metrics(seen: list[dict[str, Tensor]]) -> dict[str, float]:
    """Of what batches say of their items, over those with a figure: NaN stands for none."""
    figures = {name: torch.cat([of[name] for of in seen]) for name in seen[0]}
    return {
        name: values.nanmean().item()
        for name, values in figures.items()
        if not values.isnan().all()
    }


class TrainingPhase(Protocol):
    """What a phase keeps beside weights and optimizer, such as texts that several steps read."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: the checkpoint is read with weights_only=True."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the phase that gave this state."""

    def step_metrics(self) -> dict[str, float]:
        """What the latest step measured beside its loss, for its row of the history."""


class ModelWithLoss(nn.Module):
    """The model and its loss as one module, so that accelerate can wrap its forward."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], LossTerms]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> LossTerms:
        return self.loss(self.model, batch)


def seed_everything(seed: int, step: int = 0) -> None:
    """Seed Python and torch for one step; far seeds for near numbers."""
    mixed = int.from_bytes(sha256(f"{seed}/{step}".encode()).digest()[:8], "big") >> 1
    random.seed(mixed)
    torch.manual_seed(mixed)


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], LossTerms],
    batch_at: Callable[[int], Batch],
    schedule: Schedule,
    *,
    name: str,
    key: str,
    validate: Callable[[nn.Module], ValidationResult] | None = None,
    phase: TrainingPhase | None = None,
    rates: Mapping[str, float] = UNIFORM_LR,
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
) -> list[dict[str, float]]:
    """Minimise the sum of `loss(model, batch_at(step))`; leave the best weights in `model`.

    name and key: of the checkpoint under POLYMUSE_HOME; a run with the same key resumes.
    validate: called before the first step, every `validate_every` steps and at the end; the
    weights with its lowest loss are kept, and `patience` calls without a lower one end the run.
    phase: whose state the checkpoint holds too; batch_at may then depend on earlier weights.
    rates: the factor on the learning rate of weights whose names in `model` begin so ("text.");
    of several beginnings the longest counts. The factors belong to the key.
    Returns one row a step: step, loss, each term, learning_rate, what the phase noted, and
    validation_* where measured; without any step, the row of step 0.
    """
    run = _Trainer(model, loss, schedule, validate, phase, rates, log)
    checkpoint = Checkpoint(name, key)
    if state := checkpoint.read():
        run.load_state_dict(state)
    saved, every = (
        time.monotonic(),
        load_config(TrainingConfig, "training").checkpoint_interval_seconds,
    )
    for step in progress_bar(
        range(run.step, schedule.max_steps), name, schedule.max_steps, run.step
    ):
        if run.stopped:
            break
        run.train_step(batch_at(step))
        if time.monotonic() - saved > every:
            checkpoint.write(run.state_dict())
            saved = time.monotonic()
    if not schedule.max_steps:
        run.run_validation({"step": 0})
    run.finish()
    return run.history


class _Trainer:
    """The state of one training run, all of it that a checkpoint must hold."""

    def __init__(self, model, loss, schedule, validate, phase, rates, log):
        from accelerate import Accelerator

        self.accelerator = Accelerator(mixed_precision="bf16" if supports_bf16() else "no")
        if self.accelerator.num_processes > 1:
            raise InputError("training runs in one process: start it without torchrun")
        self.model, self.schedule, self.validate, self.log = model, schedule, validate, log
        self.phase = phase
        self.trainable_parameters = [
            weight for weight in model.parameters() if weight.requires_grad
        ]
        groups = _parameter_groups(model, schedule, rates)
        optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate)
        self.objective, self.optimizer = self.accelerator.prepare(
            ModelWithLoss(model, loss), optimizer
        )
        self.step, self.stopped, self.history = 0, False, []
        self.best_loss, self.best_weights, self.validations_without_improvement = math.inf, None, 0

    def train_step(self, batch: Batch) -> None:
        if self.step == 0:
            self.run_validation({"step": 0})
        seed_everything(self.schedule.seed, self.step)
        rate = self.schedule.learning_rate * self.schedule.lr_scale(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.model.train()
        terms = self.objective(to_device(batch, self.accelerator.device))
        total = sum(terms.values())
        self.optimizer.zero_grad()
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_(self.trainable_parameters, self.schedule.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        row = {"step": self.step, "loss": total.item(), "learning_rate": rate}
        row |= {term: value.item() for term, value in terms.items()}
        if not math.isfinite(row["loss"]):
            raise InputError(
                f"the loss became {row['loss']} at step {self.step}: lower learning_rate"
            )
        if self.phase:
            row |= self.phase.step_metrics()
        last = self.step == self.schedule.max_steps
        if last or self.step % self.schedule.eval_steps == 0:
            self.run_validation(row)
        else:
            self._record_row(row)

    def _record_row(self, row: dict[str, float]) -> None:
        self.history.append(row)
        self._log(row)

    def _log(self, row: dict[str, float]) -> None:
        self.log({name: value for name, value in row.items() if name != "step"}, row["step"])

    def run_validation(self, row: dict[str, float]) -> None:
        if self.validate is None:
            if row["step"] or not self.schedule.max_steps:
                self._record_row(row)
            return
        self.model.eval()
        seed_everything(self.schedule.seed, -1)
        with inference_context():
            result = self.validate(self.model)
        metrics = {"loss": result.loss} | result.metrics
        self._record_row(row | {f"validation_{name}": value for name, value in metrics.items()})
        self.validations_without_improvement += 1
        if not result.stop and result.loss < self.best_loss:
            self.best_loss, self.validations_without_improvement = result.loss, 0
            self.best_weights = _clone_state_dict(self.model.state_dict())
        self.stopped = result.stop or self.validations_without_improvement >= self.schedule.patience

    def finish(self) -> None:
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_weights": self.best_weights,
            "plain": [
                self.step,
                self.stopped,
                self.history,
                self.best_loss,
                self.validations_without_improvement,
            ],
            "phase": self.phase.state_dict() if self.phase else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_weights = state["best_weights"]
        (
            self.step,
            self.stopped,
            self.history,
            self.best_loss,
            self.validations_without_improvement,
        ) = state["plain"]
        if self.phase:
            self.phase.load_state_dict(state["phase"])
        for row in self.history:  # the tracked run is a new one and lacks what came before
            self._log(row)


def _parameter_groups(
    model: nn.Module, schedule: Schedule, rates: Mapping[str, float]
) -> list[dict]:
    """Groups of the optimizer by the factor on their rate. Matrices decay; biases, gains and
    scalars do not."""
    weights: dict[float, dict[str, nn.Parameter]] = {1.0: {}}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weights.setdefault(_lr_multiplier(name, rates), {})[name] = weight
    return [
        {"params": [w for name, w in found.items() if _has_weight_decay(name, w) == decays]}
        | {"factor": factor, "weight_decay": schedule.weight_decay if decays else 0.0}
        for factor, found in weights.items()
        for decays in (True, False)
    ]


def _has_weight_decay(name: str, weight: Tensor) -> bool:
    """The gains of PyTorch's weight norm have the dimensions of what they scale."""
    return weight.ndim > 1 and not name.endswith(".original0")


def _lr_multiplier(weight: str, rates: Mapping[str, float]) -> float:
    """The factor of the longest beginning that a weight's name has; 1 where it has none."""
    found = [beginning for beginning in rates if weight.startswith(beginning)]
    return rates[max(found, key=len)] if found else 1.0


def _clone_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
