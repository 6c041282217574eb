"""Training of a classifier: the steps that all papers share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from stages.shared.backbones.classifier import Classifier, ClassifierPaper, CorpusFolders
from stages.shared.runtime.stage import InputError
from stages.shared.training.batching import Batch, BatchDataset, evaluation_batches
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import (
    ValidationResult,
    average_item_metrics,
    fit,
    seed_everything,
)

Validator = Callable[[nn.Module], ValidationResult]


class TrainDataset(BatchDataset, Protocol):
    """The items of the train split."""

    @property
    def num_truncated(self) -> int:
        """Items whose text was truncated."""
        ...


@dataclass(frozen=True)
class TrainingSetup:
    """What a paper prepares for the training loop. validate: None keeps the last weights."""

    classifier: Classifier
    dataset: TrainDataset
    batch_at: Callable[[int], Batch]
    validate: Validator | None
    lr_multipliers: Mapping[str, float]  # by prefix of the weights' names, see `fit`
    frozen_modules: list[nn.Module]  # encoders outside the model, part of the checkpoint's key


class Trainer(Protocol):
    """The module of a paper in this folder."""

    RUN_CONFIG: type[Any]  # config class of a row of params.yaml: classifiers

    def prepare(self, run: Any, network: Any, corpus: CorpusFolders, kind: Any) -> TrainingSetup:
        """A new classifier and its data; network: the ModelConfig; kind: of the corpus."""
        ...

    def save(self, classifier: Any, folder: Path, encoder: Path) -> None:
        """Write a folder that loads by path; encoder: the folder of the aligned encoder."""
        ...


def train(
    name: str,
    trainer: Trainer,
    run: Any,
    network: Any,
    corpus: CorpusFolders,
    kind: str,
    *,
    checkpoint_interval_seconds: float,
    log: Callable[[dict[str, float], int], None],
) -> tuple[Any, list[dict[str, float]], TrainDataset]:
    """Train a classifier.  -> the classifier, a history row per step, the train dataset

    log: called with the metrics of a step and its number. Raises InputError if the train split is
    empty or has no label.
    """
    seed_everything(run.training.seed)
    setup = trainer.prepare(run, network, corpus, kind)
    classifier = setup.classifier
    history = fit(
        classifier.model,
        classifier.paper.compute_loss,
        setup.batch_at,
        run.training,
        name=f"train_classifier@{name}",
        key=fingerprint(
            [run, classifier.config, classifier.model, *setup.frozen_modules],
            [corpus.images, corpus.records, corpus.features],
            "train_classifier",
            run.model,
        ),
        checkpoint_interval_seconds=checkpoint_interval_seconds,
        lr_multipliers=setup.lr_multipliers,
        validate=setup.validate,
        log=log,
    )
    return classifier, history, setup.dataset


def check_train_split(rows: list[dict], records: Path) -> None:
    """Raises InputError if the train split is empty."""
    if not rows:
        raise InputError(
            f"{records / 'records.parquet'} has no record of the train split: add some to the "
            "corpus"
        )


def predict_with_diagnostics(
    paper: ClassifierPaper[Any], model: nn.Module, dataset: BatchDataset, batch_size: int
) -> tuple[list[tuple[list[int], Any]], dict[str, float]]:
    """Item indices and label ids of each batch, and the mean of the paper's diagnostics."""
    device = next(model.parameters()).device
    predictions, diagnostics = [], []
    for indices, batch in evaluation_batches(dataset, batch_size, device):
        predictions.append((indices, paper.predict(model, batch).labels))
        diagnostics.append(paper.diagnostics(model, batch))
    return predictions, average_item_metrics(diagnostics)
