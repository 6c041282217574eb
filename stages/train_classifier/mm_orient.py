"""How MM-ORIENT learns: from memes and their paraphrases, all that is read of them frozen.

The weights that are kept are those with the best accuracy, the mean over the tasks.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient.checkpoint import Reader, Run, save
from stages.models.mm_orient.dataset import UNJUDGED, Memes
from stages.shared.features import store as feature_store
from stages.shared.runtime.stage import WrongInput
from stages.shared.training.loop import (
    Batch,
    Validation,
    batch_of,
    fingerprint,
    fit,
    means,
    seed_everything,
    to_device,
)

__all__ = ["Run", "save", "train"]  # what stages/train_classifier/__main__.py asks for
Log = Callable[[dict[str, float], int], None]


def score(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """The accuracy of each task, by its place, of the items that somebody judged.  (N, T) twice"""
    found = {}
    for place in range(labels.shape[1]):
        judged = labels[:, place] != UNJUDGED
        if judged.any():
            right = predicted[judged, place] == labels[judged, place]
            found[place] = right.double().mean().item()
    return found


def validation(reader: Reader, items: Memes, batch: int) -> Callable[[nn.Module], Validation]:
    """1 - the mean accuracy of all validation items, and how the model behaves on them."""

    def validate(model) -> Validation:
        device = next(model.parameters()).device
        predicted, seen = [], []
        for start in range(0, len(items), batch):
            indices = list(range(start, min(start + batch, len(items))))
            shown = to_device(items.batch(indices), device)
            decided = reader.paper.decide(model, shown).labels
            predicted.append(torch.stack([decided[task] for task in items.tasks], 1).cpu())
            seen.append(reader.paper.behaviour(model, shown))
        by_place = score(torch.cat(predicted), items.labels)
        reached = sum(by_place.values()) / len(by_place)
        by_task = {f"score_{list(items.tasks)[place]}": value for place, value in by_place.items()}
        return Validation({"score": reached, **by_task, **means(seen)}, 1 - reached)

    return validate


def train(
    name: str, run: Run, folders: list[Path], kind: str, log: Log
) -> tuple[Reader, list[dict[str, float]], Memes]:
    """The trained reader, a row of history for each step, and the items of the train split.

    folders: PICTURES, RECORDS and FEATURES; log: takes a row and its step. Raises WrongInput if
    there is nothing to train on.
    """
    pictures, records, feature_folder = folders
    seed_everything(run.training.seed)
    rows = meme_dataset.read_rows(records)
    if not rows["train"]:
        raise WrongInput(
            f"{records / 'records.parquet'} holds no record of the train split: give the corpus"
            " some"
        )
    known = feature_store.read(feature_folder)
    reader = mm_orient_checkpoint.create(
        run, rows["train"], meme_dataset.read_tasks(records), known
    )
    items = reader.items(rows["train"], known, pictures)
    held_out = reader.items(rows["validation"], known, pictures)
    paper, device = reader.paper, next(reader.model.parameters()).device
    paper.measure(reader.model, to_device(items.frame(list(range(len(items)))), device))
    can_choose = len(held_out) and (held_out.labels != UNJUDGED).any()

    def batch_at(step: int) -> Batch:
        return items.batch(batch_of(len(items), run.training.batch, run.training.seed, step))

    steps = fit(
        reader.model,
        paper.loss,
        batch_at,
        run.training,
        name=f"train_classifier@{name}",
        key=fingerprint([run, reader.config, reader.model, *reader.frozen()], folders),
        validate=validation(reader, held_out, run.batch) if can_choose else None,
        log=log,
    )
    return reader, steps, items
