"""How MuSE learns: from tagged tweets or labelled posts, and the pixels of their pictures.

A batch holds texts of like length, since most of a step goes into reading them. The weights that
are kept are those with the best F1 of the entities, or accuracy.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse.checkpoint import Reader, Run, save
from stages.models.muse.dataset import Labelled, Task
from stages.shared.features import store as feature_store
from stages.shared.metrics import classification as classification_metrics
from stages.shared.runtime.stage import WrongInput
from stages.shared.training.loop import (
    Batch,
    Validation,
    bucketed,
    fingerprint,
    fit,
    means,
    seed_everything,
    to_device,
)

__all__ = ["Run", "save", "train"]  # what stages/train_classifier/__main__.py asks for
Log = Callable[[dict[str, float], int], None]


def score(task: Task, gold: list[list[str]], predicted: list[list[str]]) -> float:
    """What weights are chosen by, 0 to 1: lenient F1 of the entities, or accuracy."""
    if task == "entities":
        pairs = classification_metrics.entities(gold, predicted)["lenient"]
        return classification_metrics.f1_of(pairs)
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def validation(reader: Reader, items: Labelled, batch: int) -> Callable[[nn.Module], Validation]:
    """1 - score of all validation items, and how the model behaves on them."""

    def validate(model) -> Validation:
        device = next(model.parameters()).device
        predicted: list[list[str]] = []
        seen = []
        for start in range(0, len(items), batch):
            indices = list(range(start, min(start + batch, len(items))))
            shown = to_device(items.batch(indices), device)
            decided = reader.paper.decide(model, shown).labels
            predicted += reader.names(decided, items, indices)
            seen.append(reader.paper.behaviour(model, shown))
        gold = [muse_dataset.gold_of(row) for row in items.rows]
        reached = score(reader.coding.task, gold, predicted)
        return Validation({"score": reached, **means(seen)}, 1 - reached)

    return validate


def train(
    name: str, run: Run, folders: list[Path], kind: muse_dataset.Kind, log: Log
) -> tuple[Reader, list[dict[str, float]], Labelled]:
    """The trained reader, a row of history for each step, and the items of the train split.

    folders: PICTURES, RECORDS and FEATURES; log: takes a row and its step. Raises WrongInput if
    there is nothing to train on.
    """
    ingest, clean, feature_folder = folders
    seed_everything(run.training.seed)
    rows = muse_dataset.read_rows(clean, kind)
    if not rows["train"]:
        raise WrongInput(
            f"{clean / 'records.parquet'} holds no record of the train split: give the corpus some"
        )
    cached = feature_store.read(feature_folder)
    reader = muse_checkpoint.create(run, rows["train"], muse_dataset.TASKS[kind], cached)
    items = reader.items(rows["train"], cached, ingest)
    held_out = reader.items(rows["validation"], cached, ingest)
    lengths = [len(text.ids) for text in items.pieces]

    def batch_at(step: int) -> Batch:
        return items.batch(bucketed(lengths, run.training.batch, run.training.seed, step))

    steps = fit(
        reader.model,
        reader.paper.loss,
        batch_at,
        run.training,
        name=f"train_classifier@{name}",
        key=fingerprint([run, reader.config, reader.model], folders),
        rates=muse_checkpoint.rates(run),
        validate=validation(reader, held_out, run.batch) if len(held_out) else None,
        log=log,
    )
    return reader, steps, items
