"""Train MuSE on tagged tweets or labeled posts and their images.

A batch has texts of similar length, because most of the time of a step goes into encoding them.
The weights with the best validation score are kept: F1 of the entities by the rule that the main
score has (`evaluate_classifier.entity_rule`), or accuracy.
"""

from torch import nn

from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse.checkpoint import MuseClassifier, MuseRun, save
from stages.models.muse.dataset import Task, TextImageDataset
from stages.models.muse.model import ModelConfig
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from stages.shared.metrics import classification as classification_metrics
from stages.shared.metrics.classification import EntityRule
from stages.shared.training.batching import Batch, Prefetcher, length_bucketed_batch
from stages.shared.training.loop import ValidationResult
from stages.train_classifier.common import (
    TrainingSetup,
    Validator,
    check_train_split,
    predict_with_diagnostics,
)

__all__ = ["RUN_CONFIG", "prepare", "save"]  # used by stages/train_classifier/__main__.py
RUN_CONFIG = MuseRun


def selection_score(
    task: Task, gold: list[list[str]], predicted: list[list[str]], rule: EntityRule
) -> float:
    """The score by which weights are selected, 0 to 1: F1 of the entities, or accuracy."""
    if task == "entities":
        pairs = classification_metrics.extract_entities(gold, predicted)[rule]
        return classification_metrics.compute_entity_f1(pairs)
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def build_validator(
    classifier: MuseClassifier, items: TextImageDataset, batch_size: int, rule: EntityRule
) -> Validator:
    """A function that evaluates a model on all items; its loss is 1 - score."""
    gold = [muse_dataset.get_gold_labels(row) for row in items.rows]

    def validate(model: nn.Module) -> ValidationResult:
        predictions, metrics = predict_with_diagnostics(classifier.paper, model, items, batch_size)
        predicted: list[list[str]] = []
        for indices, label_ids in predictions:
            predicted += classifier.decode_labels(label_ids, items, indices)
        score = selection_score(classifier.codec.task, gold, predicted, rule)
        return ValidationResult({"score": score, **metrics}, 1 - score)

    return validate


def prepare(
    run: MuseRun, network: ModelConfig, corpus: CorpusFolders, kind: muse_dataset.CorpusKind
) -> TrainingSetup:
    """A new classifier and its data. Raises InputError if the train split is empty."""
    rows = muse_dataset.load_splits(corpus.records, kind)
    check_train_split(rows["train"], corpus.records)
    features = feature_store.read_features(corpus.features)
    task = muse_dataset.TASK_BY_CORPUS_KIND[kind]
    classifier = muse_checkpoint.create(run, network, rows["train"], task, features)
    rule = load_config(EntityRule, "evaluate_classifier", "entity_rule")
    if task == "entities":
        classifier.config["entity_rule"] = rule  # by which the weights are selected
    items = classifier.build_dataset(rows["train"], features, corpus.images)
    muse_checkpoint.fit_image_normalization(classifier, items)
    validation = classifier.build_dataset(rows["validation"], features, corpus.images)
    validate = None
    if len(validation):
        validate = build_validator(classifier, validation, run.eval_batch_size, rule)
    lengths = [len(text.ids) for text in items.subwords]

    def batch_at(step: int) -> Batch:
        return items.batch(
            length_bucketed_batch(lengths, run.training.batch_size, run.training.seed, step)
        )

    batches = batch_at
    if classifier.codec.decodes_images:
        batches = Prefetcher(batch_at, run.training.max_steps)
    lr_multipliers = muse_checkpoint.lr_multipliers(run, network)
    return TrainingSetup(classifier, items, batches, validate, lr_multipliers, frozen_modules=[])
