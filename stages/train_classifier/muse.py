"""How MuSE learns: from tagged tweets or labelled posts, and the pixels of their pictures.

A batch holds texts of like length, since most of a step goes into reading them. The weights that
are kept are those with the best F1 of the entities, or accuracy.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse.checkpoint import MuseClassifier, MuseRun, save
from stages.models.muse.dataset import Task, TextImageDataset
from stages.shared.features import store as feature_store
from stages.shared.metrics import classification as classification_metrics
from stages.shared.runtime.stage import InputError
from stages.shared.training.batching import Batch, length_bucketed_batch, to_device
from stages.shared.training.checkpoint import fingerprint
from stages.shared.training.loop import ValidationResult, average_item_metrics, fit, seed_everything

__all__ = ["RUN_CONFIG", "save", "train"]  # what stages/train_classifier/__main__.py asks for
RUN_CONFIG = MuseRun
LogFunction = Callable[[dict[str, float], int], None]


def selection_score(task: Task, gold: list[list[str]], predicted: list[list[str]]) -> float:
    """What weights are chosen by, 0 to 1: lenient F1 of the entities, or accuracy."""
    if task == "entities":
        pairs = classification_metrics.extract_entities(gold, predicted)["lenient"]
        return classification_metrics.compute_entity_f1(pairs)
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def build_validator(
    reader: MuseClassifier, items: TextImageDataset, batch: int
) -> Callable[[nn.Module], ValidationResult]:
    """1 - score of all validation items, and how the model behaves on them."""

    def validate(model) -> ValidationResult:
        device = next(model.parameters()).device
        predicted: list[list[str]] = []
        seen = []
        for start in range(0, len(items), batch):
            indices = list(range(start, min(start + batch, len(items))))
            shown = to_device(items.batch(indices), device)
            decided = reader.paper.predict(model, shown).labels
            predicted += reader.decode_labels(decided, items, indices)
            seen.append(reader.paper.diagnostics(model, shown))
        gold = [muse_dataset.get_gold_labels(row) for row in items.rows]
        reached = selection_score(reader.codec.task, gold, predicted)
        return ValidationResult({"score": reached, **average_item_metrics(seen)}, 1 - reached)

    return validate


def train(
    name: str, run: MuseRun, folders: list[Path], kind: muse_dataset.CorpusKind, log: LogFunction
) -> tuple[MuseClassifier, list[dict[str, float]], TextImageDataset]:
    """The trained reader, a row of history for each step, and the items of the train split.

    folders: PICTURES, RECORDS and FEATURES; log: takes a row and its step. Raises WrongInput if
    there is nothing to train on.
    """
    ingest, clean, feature_folder = folders
    seed_everything(run.training.seed)
    rows = muse_dataset.load_splits(clean, kind)
    if not rows["train"]:
        raise InputError(
            f"{clean / 'records.parquet'} holds no record of the train split: give the corpus some"
        )
    cached = feature_store.read_features(feature_folder)
    reader = muse_checkpoint.create(
        run, rows["train"], muse_dataset.TASK_BY_CORPUS_KIND[kind], cached
    )
    items = reader.build_dataset(rows["train"], cached, ingest)
    held_out = reader.build_dataset(rows["validation"], cached, ingest)
    lengths = [len(text.ids) for text in items.subwords]

    def batch_at(step: int) -> Batch:
        return items.batch(
            length_bucketed_batch(lengths, run.training.batch_size, run.training.seed, step)
        )

    steps = fit(
        reader.model,
        reader.paper.compute_loss,
        batch_at,
        run.training,
        name=f"train_classifier@{name}",
        key=fingerprint([run, reader.config, reader.model], folders),
        lr_multipliers=muse_checkpoint.lr_multipliers(run),
        validate=build_validator(reader, held_out, run.eval_batch_size) if len(held_out) else None,
        log=log,
    )
    return reader, steps, items
