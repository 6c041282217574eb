"""The training loop of all models; the loss is passed in as a function.

Every step is seeded with (seed, step) and takes `batch_at(step)`. A killed run therefore needs only
its weights, the optimizer state and the step to resume and end with the same bits.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stages.shared.core.config import Field, config_class
from stages.shared.runtime.progress import progress_bar
from stages.shared.runtime.stage import InputError
from stages.shared.torch_setup.devices import get_device, inference_context, supports_bf16
from stages.shared.training.batching import Batch, to_device
from stages.shared.training.checkpoint import Checkpoint
from stages.shared.training.schedule import Schedule

LossTerms = dict[str, Tensor]  # the named terms of a loss; their sum is minimized
ModelT = TypeVar("ModelT", bound=nn.Module)
MAX_CHECKPOINT_SHARE = 0.02  # of the time of a run
FETCH_SECONDS = 0.5  # between two transfers of losses from the device
UNIFORM_LR: Mapping[str, float] = MappingProxyType({})  # all weights use the schedule's rate


@config_class
class TrainingConfig:
    """The section `training`."""

    checkpoint_interval_seconds: float = Field(
        ge=0,
        description="least seconds between two checkpoints, longer where writing one is slow; 0: "
        "a checkpoint after every step",
    )


@dataclass(frozen=True)
class ValidationResult:
    """The outcome of one validation."""

    metrics: dict[str, float]
    loss: float  # the best weights minimize it
    stop: bool = False  # end the run at once; these weights are not the best


def average_item_metrics(batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of each metric over the items of all batches, without NaN; all-NaN metrics are left out.

    batches: per batch, metric name -> (B,); a batch may lack metrics that none of its items has
    """
    names = dict.fromkeys(name for batch in batches for name in batch)
    metrics = {
        name: torch.cat([batch[name] for batch in batches if name in batch]) for name in names
    }
    return {
        name: values.nanmean().item()
        for name, values in metrics.items()
        if not values.isnan().all()
    }


class TrainingPhase(Protocol):
    """State of a phase besides weights and optimizer, such as rollouts that several steps use."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only: the checkpoint is read with weights_only=True."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...

    def step_metrics(self) -> dict[str, float]:
        """Metrics of the latest step besides its loss, for its row of the history."""
        ...


def sum_terms(terms: LossTerms) -> Tensor:
    """The loss that these terms add up to."""
    return reduce(torch.add, terms.values())


class ModelWithLoss(nn.Module):
    """A model and its loss as one module, so that accelerate can wrap the forward pass."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], LossTerms]):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> LossTerms:
        return self.loss(self.model, batch)


def seed_everything(seed: int, step: int = 0) -> None:
    """Seed Python and PyTorch for one step; adjacent steps get unrelated seeds."""
    mixed = int.from_bytes(sha256(f"{seed}/{step}".encode()).digest()[:8], "big") >> 1
    random.seed(mixed)
    torch.manual_seed(mixed)


def fit(
    model: ModelT,
    loss: Callable[[ModelT, Batch], LossTerms],
    batch_at: Callable[[int], Batch],
    schedule: Schedule,
    *,
    name: str,
    key: str,
    checkpoint_interval_seconds: float,
    validate: Callable[[ModelT], ValidationResult] | None = None,
    after_step: Callable[[ModelT], None] | None = None,
    phase: TrainingPhase | None = None,
    lr_multipliers: Mapping[str, float] = UNIFORM_LR,
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None,
) -> list[dict[str, float]]:
    """Minimize the sum of `loss(model, batch_at(step))`; leave the best or last weights in `model`.

    name, key: of the checkpoint under POLYMUSE_HOME; a run with the same key resumes.
    checkpoint_interval_seconds: shortest time between two checkpoints. It is longer if writing one
    would take more than MAX_CHECKPOINT_SHARE of the time, unless it is 0.
    validate: called before the first step, every `eval_steps` steps and at the end. The weights
    with its lowest loss are kept, unless the schedule keeps the last ones; `patience` calls without
    a lower loss end the run.
    after_step: called with `model` after each optimizer step, e.g. to update running statistics.
    phase: its state is part of the checkpoint; `batch_at` may then depend on earlier weights.
    lr_multipliers: factors on the learning rate by prefix of the weights' names in `model`, such as
    "text."; the longest matching prefix counts. Include them in the key.
    log: called with the metrics and the step of each row of the history.

    Returns one row per step: step, loss, each loss term, learning_rate, the phase's step metrics,
    and validation_* after a validation. Without any step it returns the row of step 0.
    Raises InputError if the loss is not finite.
    """
    trainer = _Trainer(model, loss, schedule, validate, after_step, phase, lr_multipliers, log)
    checkpoint = Checkpoint(name, key)
    if state := checkpoint.read():
        trainer.load_state_dict(state)
    next_checkpoint = time.monotonic() + checkpoint_interval_seconds
    steps = range(trainer.step, schedule.max_steps)
    for step in progress_bar(steps, name, schedule.max_steps, trainer.step):
        if trainer.stopped:
            break
        trainer.train_step(batch_at(step))
        if (started := time.monotonic()) > next_checkpoint:
            trainer.record_pending()
            checkpoint.write(trainer.state_dict())
            finished = time.monotonic()
            next_checkpoint = finished + compute_checkpoint_pause(
                finished - started, checkpoint_interval_seconds
            )
    if not schedule.max_steps:
        trainer.run_validation({"step": 0})
    trainer.finish()
    return trainer.history


def compute_checkpoint_pause(cost: float, least_interval: float) -> float:
    """Seconds until the next checkpoint after one that took `cost` seconds; 0 if the least is 0."""
    return max(least_interval, cost / MAX_CHECKPOINT_SHARE) if least_interval else 0.0


@dataclass(frozen=True)
class PendingRow:
    """A step whose losses are still on the device."""

    step: int
    learning_rate: float
    losses: LossTerms  # the sum, then the terms
    phase_metrics: dict[str, float]


class _Trainer:
    """One training run, with all the state that a checkpoint must hold."""

    def __init__(self, model, loss, schedule, validate, after_step, phase, lr_multipliers, log):
        from accelerate import Accelerator

        self.accelerator = Accelerator(
            cpu=get_device().type == "cpu",  # it would choose MPS, which no other stage uses
            mixed_precision="bf16" if supports_bf16() else "no",
        )
        if self.accelerator.num_processes > 1:
            raise InputError("training supports a single process: start it without torchrun")
        self.model, self.schedule, self.validate, self.log = model, schedule, validate, log
        self.after_step, self.phase = after_step, phase
        self.trainable_parameters = [
            weight for weight in model.parameters() if weight.requires_grad
        ]
        groups = _parameter_groups(model, schedule, lr_multipliers)
        optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=True)
        self.objective, self.optimizer = self.accelerator.prepare(
            ModelWithLoss(model, loss), optimizer
        )
        self.step, self.stopped, self.history = 0, False, []
        self.pending: list[PendingRow] = []
        self.next_fetch = 0.0
        self.best_loss, self.best_weights, self.validations_without_improvement = math.inf, None, 0

    def train_step(self, batch: Batch) -> None:
        if self.step == 0:
            self.run_validation({"step": 0})
        seed_everything(self.schedule.seed, self.step)
        learning_rate = self.schedule.learning_rate * self.schedule.lr_scale(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["factor"]
        self.model.train()
        terms = self.objective(to_device(batch, self.accelerator.device))
        total = sum_terms(terms)
        self.optimizer.zero_grad()
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_(self.trainable_parameters, self.schedule.max_grad_norm)
        self.optimizer.step()
        if self.after_step:
            self.after_step(self.model)
        self.step += 1
        self.pending.append(
            PendingRow(
                self.step,
                learning_rate,
                {"loss": total.detach()} | {name: term.detach() for name, term in terms.items()},
                self.phase.step_metrics() if self.phase else {},
            )
        )
        is_last = self.step == self.schedule.max_steps
        if is_last or self.step % self.schedule.eval_steps == 0:
            *rows, row = self._fetch_losses()
            self._record_rows(rows)
            self.run_validation(row)
        elif time.monotonic() > self.next_fetch:
            self.record_pending()

    def record_pending(self) -> None:
        """Add the steps whose losses are still on the device to the history."""
        self._record_rows(self._fetch_losses())

    def _fetch_losses(self) -> list[dict[str, float]]:
        """The rows of the pending steps.

        Each fetch waits for the GPU, which is then idle until the next step is launched. Raises
        InputError if a loss is not finite.
        """
        rows = []
        for pending in self.pending:
            loss, *terms = [(name, value.item()) for name, value in pending.losses.items()]
            if not math.isfinite(loss[1]):
                raise InputError(
                    f"the loss became {loss[1]} at step {pending.step}: lower learning_rate"
                )
            head = {"step": pending.step, "loss": loss[1], "learning_rate": pending.learning_rate}
            rows.append(head | dict(terms) | pending.phase_metrics)
        self.pending, self.next_fetch = [], time.monotonic() + FETCH_SECONDS
        return rows

    def _record_rows(self, rows: list[dict[str, float]]) -> None:
        for row in rows:
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
            if self.schedule.keep == "best":
                self.best_weights = _clone_state_dict(self.model.state_dict())
        self.stopped = result.stop or self.validations_without_improvement >= self.schedule.patience

    def finish(self) -> None:
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        assert not self.pending
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
        for row in self.history:  # the resumed run is tracked as a new run
            self._log(row)


def _parameter_groups(
    model: nn.Module, schedule: Schedule, lr_multipliers: Mapping[str, float]
) -> list[dict]:
    """Optimizer groups by learning rate factor and weight decay.

    Matrices decay; biases, gains and scalars do not.
    """
    weights_by_factor: dict[float, dict[str, nn.Parameter]] = {1.0: {}}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            factor = _lr_multiplier(name, lr_multipliers)
            weights_by_factor.setdefault(factor, {})[name] = weight
    return [
        {"params": [w for name, w in weights.items() if _has_weight_decay(name, w) == decays]}
        | {"factor": factor, "weight_decay": schedule.weight_decay if decays else 0.0}
        for factor, weights in weights_by_factor.items()
        for decays in (True, False)
    ]


def _has_weight_decay(name: str, weight: Tensor) -> bool:
    # The gains of PyTorch's weight norm have as many dimensions as the weights that they scale.
    return weight.ndim > 1 and not name.endswith(".original0")


def _lr_multiplier(weight_name: str, lr_multipliers: Mapping[str, float]) -> float:
    """The factor of the longest prefix of the name; 1 without a match."""
    prefixes = [prefix for prefix in lr_multipliers if weight_name.startswith(prefix)]
    return lr_multipliers[max(prefixes, key=len)] if prefixes else 1.0


def _clone_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
