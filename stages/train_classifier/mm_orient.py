"""How MM-ORIENT learns: from memes and their paraphrases, all that is read of them frozen.

The weights that are kept are those with the best accuracy, the mean over the tasks.
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

__all__ = ["RUN_CONFIG", "save", "train"]  # what stages/train_classifier/__main__.py asks for
RUN_CONFIG = MmOrientRun
LogFunction = Callable[[dict[str, float], int], None]


def compute_accuracies(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """The accuracy of each task, by its place, of the items that somebody judged.  (N, T) twice"""
    found = {}
    for place in range(labels.shape[1]):
        judged = labels[:, place] != UNLABELED
        if judged.any():
            right = predicted[judged, place] == labels[judged, place]
            found[place] = right.double().mean().item()
    return found


def build_validator(
    reader: MmOrientClassifier, items: MemeDataset, batch: int
) -> Callable[[nn.Module], ValidationResult]:
    """1 - the mean accuracy of all validation items, and how the model behaves on them."""

    def validate(model) -> ValidationResult:
        device = next(model.parameters()).device
        predicted, seen = [], []
        for start in range(0, len(items), batch):
            indices = list(range(start, min(start + batch, len(items))))
            shown = to_device(items.batch(indices), device)
            decided = reader.paper.predict(model, shown).labels
            predicted.append(torch.stack([decided[task] for task in items.tasks], 1).cpu())
            seen.append(reader.paper.diagnostics(model, shown))
        by_place = compute_accuracies(torch.cat(predicted), items.labels)
        reached = sum(by_place.values()) / len(by_place)
        by_task = {f"score_{list(items.tasks)[place]}": value for place, value in by_place.items()}
        return ValidationResult(
            {"score": reached, **by_task, **average_item_metrics(seen)}, 1 - reached
        )

    return validate


def train(
    name: str, run: MmOrientRun, folders: list[Path], kind: str, log: LogFunction
) -> tuple[MmOrientClassifier, list[dict[str, float]], MemeDataset]:
    """The trained reader, a row of history for each step, and the items of the train split.

    folders: PICTURES, RECORDS and FEATURES; log: takes a row and its step. Raises WrongInput if
    there is nothing to train on.
    """
    pictures, records, feature_folder = folders
    seed_everything(run.training.seed)
    rows = meme_dataset.load_splits(records)
    if not rows["train"]:
        raise InputError(
            f"{records / 'records.parquet'} holds no record of the train split: give the corpus"
            " some"
        )
    known = feature_store.read_features(feature_folder)
    reader = mm_orient_checkpoint.create(
        run, rows["train"], meme_dataset.load_tasks(records), known
    )
    items = reader.build_dataset(rows["train"], known, pictures)
    held_out = reader.build_dataset(rows["validation"], known, pictures)
    paper, device = reader.paper, next(reader.model.parameters()).device
    paper.fit_statistics(
        reader.model, to_device(items.pooled_batch(list(range(len(items)))), device)
    )
    can_choose = len(held_out) and (held_out.labels != UNLABELED).any()

    def batch_at(step: int) -> Batch:
        return items.batch(
            shuffled_batch(len(items), run.training.batch_size, run.training.seed, step)
        )

    steps = fit(
        reader.model,
        paper.compute_loss,
        batch_at,
        run.training,
        name=f"train_classifier@{name}",
        key=fingerprint([run, reader.config, reader.model, *reader.frozen_modules()], folders),
        validate=build_validator(reader, held_out, run.eval_batch_size) if can_choose else None,
        log=log,
    )
    return reader, steps, items
