"""Predictions, diagnostics and attention maps of MM-ORIENT.

writes  labels.parquet, behaviour.parquet (diagnostics of the scored split, from both inputs),
        looks.parquet (attention maps of example items of it)
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from stages.classify.batching import CLASSIFIED_SPLITS, INPUT_MODES, iter_batches, mask_inputs
from stages.classify.config import ClassifyConfig
from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient import model as mm_orient_model
from stages.models.mm_orient.checkpoint import MmOrientClassifier, MmOrientRun
from stages.models.mm_orient.dataset import UNLABELED, MemeDataset
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.core import schemas
from stages.shared.features import store as feature_store
from stages.shared.metrics.common import evenly_spaced_indices
from stages.shared.torch_setup.devices import inference_context

TABLES = {
    "labels": schemas.LABEL_PREDICTIONS,
    "behaviour": schemas.DIAGNOSTICS,
    "looks": schemas.ATTENTION_MAPS,
}
RUN_CONFIG = MmOrientRun
Rows = list[dict]


def label_rows(
    classifier: MmOrientClassifier,
    items: MemeDataset,
    split: str,
    input_modes: Sequence[str],
    batch_size: int,
) -> Rows:
    """LABEL_PREDICTIONS of all items of a split: a row per item, input mode and task."""
    rows = []
    for indices, batch in iter_batches(classifier, items, list(range(len(items))), batch_size):
        for inputs in input_modes:
            predictions = classifier.paper.predict(classifier.model, mask_inputs(batch, inputs))
            for task, names in classifier.tasks.items():
                label_ids = predictions.labels[task].tolist()
                probability = predictions.probabilities[task].max(-1).values.tolist()
                for position, index in enumerate(indices):
                    gold = meme_dataset.get_label(items.rows[index], task)
                    rows.append(
                        {
                            "record": items.rows[index]["id"],
                            "split": split,
                            "inputs": inputs,
                            "task": task,
                            "gold": [] if gold is None else [gold],
                            "predicted": [names[label_ids[position]]],
                            "probability": [probability[position]],
                            "cut": items.num_truncated_words(index),
                        }
                    )
    return rows


def diagnostics_rows(
    classifier: MmOrientClassifier, items: MemeDataset, split: str, batch_size: int
) -> Rows:
    """DIAGNOSTICS of all items of a split; NaN values have no row."""
    rows = []
    for indices, batch in iter_batches(classifier, items, list(range(len(items))), batch_size):
        for name, values in classifier.paper.diagnostics(classifier.model, batch).items():
            rows += [
                {"record": items.rows[index]["id"], "split": split, "name": name, "value": value}
                for index, value in zip(indices, values.tolist(), strict=True)
                if value == value  # not NaN
            ]
    return rows


def attention_rows(
    classifier: MmOrientClassifier, items: MemeDataset, indices: list[int], batch_size: int
) -> Rows:
    """ATTENTION_MAPS of some items: attention to subwords of the text and regions of the image."""
    rows = []
    for batch_indices, batch in iter_batches(classifier, items, indices, batch_size):
        maps = mm_orient_model.attention_maps(classifier.model, batch)
        for position, index in enumerate(batch_indices):
            row, tokens = items.rows[index], items.subwords(index)
            key = {"record": row["id"]}
            if maps.subwords is not None and row["text"]:
                weights = unpadded_weights(maps.subwords[position], len(tokens))
                rows.append(key | {"modality": "text", "tokens": tokens, "weights": weights})
            if maps.regions is not None and row["image"]:
                weights = unpadded_weights(maps.regions[position], None)
                rows.append(key | {"modality": "picture", "tokens": [], "weights": weights})
    return rows


def unpadded_weights(weights: Tensor, count: int | None) -> list[float]:
    """The first `count` weights of an item, which exclude padding; None: all."""
    return weights[:count].tolist()


def choose_scored_split(splits: dict[str, MemeDataset]) -> str:
    """test, or validation if no test item has a label."""
    is_labeled = (splits["test"].labels != UNLABELED).any()
    return "test" if is_labeled or not len(splits["validation"]) else "validation"


def classify(
    corpus: CorpusFolders, model: Path, kind: str, config: ClassifyConfig, batch_size: int
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Rows of each table of TABLES, and the parameter counts of the model."""
    features = feature_store.read_features(corpus.features)
    rows = meme_dataset.load_splits(corpus.records)
    classifier = mm_orient_checkpoint.restore(model)
    splits = {
        split: classifier.build_dataset(rows[split], features, corpus.images)
        for split in CLASSIFIED_SPLITS
    }
    scored_split = choose_scored_split(splits)
    tables: dict[str, Rows] = {table: [] for table in TABLES}
    with inference_context():
        for split, items in splits.items():
            has_images = any(row["image"] for row in items.rows)
            input_modes = INPUT_MODES if split == scored_split and has_images else INPUT_MODES[:1]
            tables["labels"] += label_rows(classifier, items, split, input_modes, batch_size)
        items = splits[scored_split]
        tables["behaviour"] += diagnostics_rows(classifier, items, scored_split, batch_size)
        examples = evenly_spaced_indices(len(items), config.num_examples)
        tables["looks"] += attention_rows(classifier, items, examples, batch_size)
    return tables, classifier.config["parameters"]
