"""Train MM-ORIENT on memes and their paraphrases, with frozen encoders or a tuned EfficientNet.

The weights with the best validation accuracy, averaged over the tasks, are kept.
"""

import torch
from torch import Tensor, nn

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient import model as mm_orient_model
from stages.models.mm_orient.checkpoint import MmOrientClassifier, MmOrientRun, save
from stages.models.mm_orient.dataset import UNLABELED, MemeDataset
from stages.models.mm_orient.model import ModelConfig
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.features import store as feature_store
from stages.shared.training.batching import Batch, shuffled_batch, to_device
from stages.shared.training.loop import ValidationResult
from stages.train_classifier.common import (
    TrainingSetup,
    Validator,
    check_train_split,
    predict_with_diagnostics,
)

__all__ = ["RUN_CONFIG", "prepare", "save"]  # used by stages/train_classifier/__main__.py
RUN_CONFIG = MmOrientRun


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
) -> Validator:
    """A function that evaluates a model on all items; its loss is 1 - mean accuracy."""
    tasks = list(items.tasks)

    def validate(model: nn.Module) -> ValidationResult:
        predictions, diagnostics = predict_with_diagnostics(
            classifier.paper, model, items, batch_size
        )
        predicted = [
            torch.stack([label_ids[task] for task in tasks], 1).cpu()
            for _, label_ids in predictions
        ]
        accuracies = compute_accuracies(torch.cat(predicted), items.labels)
        score = sum(accuracies.values()) / len(accuracies)
        by_task = {f"score_{tasks[index]}": value for index, value in accuracies.items()}
        return ValidationResult({"score": score, **by_task, **diagnostics}, 1 - score)

    return validate


def prepare(
    run: MmOrientRun, network: ModelConfig, corpus: CorpusFolders, kind: str
) -> TrainingSetup:
    """A new classifier, fitted to the statistics of the train split, and its data.

    Raises InputError if the train split is empty or has no label.
    """
    rows = meme_dataset.load_splits(corpus.records)
    check_train_split(rows["train"], corpus.records)
    features = feature_store.read_features(corpus.features)
    tasks = meme_dataset.load_tasks(corpus.records)
    classifier = mm_orient_checkpoint.create(run, network, rows["train"], tasks, features)
    items = classifier.build_dataset(rows["train"], features, corpus.images)
    mm_orient_checkpoint.fit_image_normalization(classifier, items)
    validation = classifier.build_dataset(rows["validation"], features, corpus.images)
    validate = None
    if len(validation) and (validation.labels != UNLABELED).any():
        validate = build_validator(classifier, validation, run.eval_batch_size)
    device = next(classifier.model.parameters()).device
    all_items = to_device(items.pooled_batch(list(range(len(items)))), device)
    mm_orient_model.fit_statistics(classifier.model, all_items)

    def batch_at(step: int) -> Batch:
        return items.batch(
            shuffled_batch(len(items), run.training.batch_size, run.training.seed, step)
        )

    lr_multipliers = mm_orient_checkpoint.lr_multipliers(run)
    return TrainingSetup(
        classifier, items, batch_at, validate, lr_multipliers, classifier.frozen_modules()
    )
