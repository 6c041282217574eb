"""Train MM-ORIENT on memes and their paraphrases, with frozen text and image encoders.

The weights with the best validation accuracy, averaged over the tasks, are kept.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient.checkpoint import MmOrientClassifier, MmOrientRun, save
from stages.models.mm_orient.dataset import UNLABELED, MemeDataset
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import InputError
from stages.shared.training.batching import Batch, shuffled_batch, to_device
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import ValidationResult, average_item_metrics, fit, seed_everything

__all__ = ["RUN_CONFIG", "save", "train"]  # used by stages/train_classifier/__main__.py
RUN_CONFIG = MmOrientRun
LogFunction = Callable[[dict[str, float], int], None]


def compute_accuracies(predicted: Tensor, labels: Tensor) -> dict[int, float]:
    """Accuracy of each task on its labeled items, by task index; no entry without labeled items.

    predicted, labels (N, T)
    """
    accuracies = {}
    for task in range(labels.shape[1]):
        labeled = labels[:, task] != UNLABELED
        if labeled.any():
            correct = predicted[labeled, task] == labels[labeled, task]
            accuracies[task] = correct.double().mean().item()
    return accuracies


def build_validator(
    classifier: MmOrientClassifier, items: MemeDataset, batch_size: int
) -> Callable[[nn.Module], ValidationResult]:
    """A function that evaluates a model on all items; its loss is 1 - mean accuracy."""
    tasks = list(items.tasks)

    def validate(model: nn.Module) -> ValidationResult:
        device = next(model.parameters()).device
        predicted, diagnostics = [], []
        for start in range(0, len(items), batch_size):
            indices = list(range(start, min(start + batch_size, len(items))))
            batch = to_device(items.batch(indices), device)
            label_ids = classifier.paper.predict(model, batch).labels
            predicted.append(torch.stack([label_ids[task] for task in tasks], 1).cpu())
            diagnostics.append(classifier.paper.diagnostics(model, batch))
        accuracies = compute_accuracies(torch.cat(predicted), items.labels)
        score = sum(accuracies.values()) / len(accuracies)
        by_task = {f"score_{tasks[index]}": value for index, value in accuracies.items()}
        metrics = {"score": score, **by_task, **average_item_metrics(diagnostics)}
        return ValidationResult(metrics, 1 - score)

    return validate


def train(
    name: str,
    run: MmOrientRun,
    folders: list[Path],
    kind: str,
    log: LogFunction,
    checkpoint_interval_seconds: float,
) -> tuple[MmOrientClassifier, list[dict[str, float]], MemeDataset]:
    """Train a classifier.  -> the classifier, a history row per step, the train dataset

    folders: IMAGES, RECORDS and FEATURES; log: called with the metrics of a step and its number.
    Raises InputError if the train split is empty or has no label.
    """
    images, records, feature_folder = folders
    seed_everything(run.training.seed)
    rows = meme_dataset.load_splits(records)
    if not rows["train"]:
        raise InputError(
            f"{records / 'records.parquet'} has no record of the train split: add some to the "
            "corpus"
        )
    features = feature_store.read_features(feature_folder)
    tasks = meme_dataset.load_tasks(records)
    classifier = mm_orient_checkpoint.create(run, rows["train"], tasks, features)
    items = classifier.build_dataset(rows["train"], features, images)
    validation = classifier.build_dataset(rows["validation"], features, images)
    validate = None
    if len(validation) and (validation.labels != UNLABELED).any():
        validate = build_validator(classifier, validation, run.eval_batch_size)
    paper, device = classifier.paper, next(classifier.model.parameters()).device
    all_items = to_device(items.pooled_batch(list(range(len(items)))), device)
    paper.fit_statistics(classifier.model, all_items)

    def batch_at(step: int) -> Batch:
        return items.batch(
            shuffled_batch(len(items), run.training.batch_size, run.training.seed, step)
        )

    hashed = [run, classifier.config, classifier.model, *classifier.frozen_modules()]
    history = fit(
        classifier.model,
        paper.compute_loss,
        batch_at,
        run.training,
        name=f"train_classifier@{name}",
        key=fingerprint(hashed, folders, "train_classifier", run.model),
        checkpoint_interval_seconds=checkpoint_interval_seconds,
        validate=validate,
        log=log,
    )
    return classifier, history, items
