"""Train MuSE on tagged tweets or labeled posts and their images.

A batch has texts of similar length, because most of the time of a step goes into encoding them.
The weights with the best validation score are kept: F1 of the entities, or accuracy.
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

__all__ = ["RUN_CONFIG", "save", "train"]  # used by stages/train_classifier/__main__.py
RUN_CONFIG = MuseRun
LogFunction = Callable[[dict[str, float], int], None]


def selection_score(task: Task, gold: list[list[str]], predicted: list[list[str]]) -> float:
    """The score by which weights are selected, 0 to 1: lenient F1 of the entities, or accuracy."""
    if task == "entities":
        pairs = classification_metrics.extract_entities(gold, predicted)["lenient"]
        return classification_metrics.compute_entity_f1(pairs)
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def build_validator(
    classifier: MuseClassifier, items: TextImageDataset, batch_size: int
) -> Callable[[nn.Module], ValidationResult]:
    """A function that evaluates a model on all items; its loss is 1 - score."""

    def validate(model: nn.Module) -> ValidationResult:
        device = next(model.parameters()).device
        predicted: list[list[str]] = []
        diagnostics = []
        for start in range(0, len(items), batch_size):
            indices = list(range(start, min(start + batch_size, len(items))))
            batch = to_device(items.batch(indices), device)
            label_ids = classifier.paper.predict(model, batch).labels
            predicted += classifier.decode_labels(label_ids, items, indices)
            diagnostics.append(classifier.paper.diagnostics(model, batch))
        gold = [muse_dataset.get_gold_labels(row) for row in items.rows]
        score = selection_score(classifier.codec.task, gold, predicted)
        return ValidationResult({"score": score, **average_item_metrics(diagnostics)}, 1 - score)

    return validate


def train(
    name: str,
    run: MuseRun,
    folders: list[Path],
    kind: muse_dataset.CorpusKind,
    log: LogFunction,
    checkpoint_interval_seconds: float,
) -> tuple[MuseClassifier, list[dict[str, float]], TextImageDataset]:
    """Train a classifier.  -> the classifier, a history row per step, the train dataset

    folders: IMAGES, RECORDS and FEATURES; log: called with the metrics of a step and its number.
    Raises InputError if the train split is empty.
    """
    ingest, clean, feature_folder = folders
    seed_everything(run.training.seed)
    rows = muse_dataset.load_splits(clean, kind)
    if not rows["train"]:
        raise InputError(
            f"{clean / 'records.parquet'} has no record of the train split: add some to the corpus"
        )
    features = feature_store.read_features(feature_folder)
    task = muse_dataset.TASK_BY_CORPUS_KIND[kind]
    classifier = muse_checkpoint.create(run, rows["train"], task, features)
    items = classifier.build_dataset(rows["train"], features, ingest)
    validation = classifier.build_dataset(rows["validation"], features, ingest)
    validate = None
    if len(validation):
        validate = build_validator(classifier, validation, run.eval_batch_size)
    lengths = [len(text.ids) for text in items.subwords]

    def batch_at(step: int) -> Batch:
        return items.batch(
            length_bucketed_batch(lengths, run.training.batch_size, run.training.seed, step)
        )

    history = fit(
        classifier.model,
        classifier.paper.compute_loss,
        batch_at,
        run.training,
        name=f"train_classifier@{name}",
        key=fingerprint(
            [run, classifier.config, classifier.model], folders, "train_classifier", run.model
        ),
        lr_multipliers=muse_checkpoint.lr_multipliers(run),
        checkpoint_interval_seconds=checkpoint_interval_seconds,
        validate=validate,
        log=log,
    )
    return classifier, history, items
