"""What MM-ORIENT labels, how its attention and its graphs behave, and where it looks.

writes  labels.parquet, behaviour.parquet (of the split that is scored, both inputs), looks.parquet
        (of some items of it)
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from stages.classify.batching import CLASSIFIED_SPLITS, INPUT_MODES, iter_batches, mask_inputs
from stages.classify.config import ClassifyConfig
from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient.checkpoint import MmOrientClassifier, MmOrientRun
from stages.models.mm_orient.dataset import UNLABELED, MemeDataset
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from stages.shared.metrics.common import evenly_spaced_indices
from stages.shared.torch_setup.devices import inference_context

TABLES = {
    "labels": schemas.LABEL_PREDICTIONS,
    "behaviour": schemas.DIAGNOSTICS,
    "looks": schemas.ATTENTION_MAPS,
}
Rows = list[dict]


def label_rows(
    reader: MmOrientClassifier, items: MemeDataset, split: str, inputs: Sequence[str], size: int
) -> Rows:
    """LABELS of all items of a split from each of these inputs, a row for each task."""
    found = []
    for indices, batch in iter_batches(reader, items, list(range(len(items))), size):
        for given in inputs:
            decided = reader.paper.predict(reader.model, mask_inputs(batch, given))
            for task, names in reader.tasks.items():
                chosen = decided.labels[task].tolist()
                probability = decided.probabilities[task].max(-1).values.tolist()
                for place, index in enumerate(indices):
                    gold = meme_dataset.get_label(items.rows[index], task)
                    found.append(
                        {
                            "record": items.rows[index]["id"],
                            "split": split,
                            "inputs": given,
                            "task": task,
                            "gold": [] if gold is None else [gold],
                            "predicted": [names[chosen[place]]],
                            "probability": [probability[place]],
                            "cut": items.num_truncated_words(index),
                        }
                    )
    return found


def diagnostics_rows(reader: MmOrientClassifier, items: MemeDataset, split: str, size: int) -> Rows:
    """BEHAVIOUR of all items of a split: what has no figure has no row."""
    found = []
    for indices, batch in iter_batches(reader, items, list(range(len(items))), size):
        for name, values in reader.paper.diagnostics(reader.model, batch).items():
            found += [
                {"record": items.rows[index]["id"], "split": split, "name": name, "value": value}
                for index, value in zip(indices, values.tolist(), strict=True)
                if value == value  # NaN stands for none
            ]
    return found


def attention_rows(
    reader: MmOrientClassifier, items: MemeDataset, places: list[int], size: int
) -> Rows:
    """LOOKS of some items: attention to the pieces of the text, to the regions of the picture."""
    found = []
    for indices, batch in iter_batches(reader, items, places, size):
        look = reader.paper.attention_maps(reader.model, batch)
        for place, index in enumerate(indices):
            spelt, row = items.subwords(index), items.rows[index]
            for modality, weights, tokens in (
                ("text", look.subwords, spelt),
                ("picture", look.regions, []),
            ):
                if weights is not None and row["text" if modality == "text" else "image"]:
                    seen = unpadded_weights(
                        weights[place], len(spelt) if modality == "text" else None
                    )
                    found.append(
                        {"record": row["id"], "modality": modality}
                        | {"tokens": tokens, "weights": seen}
                    )
    return found


def unpadded_weights(weights: Tensor, count: int | None) -> list[float]:
    """The weights of an item without those of padding."""
    return weights[:count].tolist()


def choose_scored_split(splits: dict[str, MemeDataset]) -> str:
    """Test, or validation where nobody judged a test item."""
    judged = (splits["test"].labels != UNLABELED).any()
    return "test" if judged or not len(splits["validation"]) else "validation"


def classify(
    name: str, kind: str, folders: list[Path], params: ClassifyConfig
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Rows of each table of TABLES, and how many weights the model has.

    folders: PICTURES, RECORDS, FEATURES and MODEL.
    """
    pictures, records, feature_folder, model = folders
    known, rows = feature_store.read_features(feature_folder), meme_dataset.load_splits(records)
    reader = mm_orient_checkpoint.restore(model)
    size = load_config(MmOrientRun, "classifiers", name).eval_batch_size
    splits = {
        split: reader.build_dataset(rows[split], known, pictures) for split in CLASSIFIED_SPLITS
    }
    scored = choose_scored_split(splits)
    found: dict[str, Rows] = {name: [] for name in TABLES}
    with inference_context():
        for split, items in splits.items():
            alone = split == scored and any(row["image"] for row in items.rows)
            inputs = INPUT_MODES if alone else INPUT_MODES[:1]
            found["labels"] += label_rows(reader, items, split, inputs, size)
        items = splits[scored]
        found["behaviour"] += diagnostics_rows(reader, items, scored, size)
        found["looks"] += attention_rows(
            reader, items, evenly_spaced_indices(len(items), params.num_examples), size
        )
    return found, reader.config["parameters"]
