"""What MM-ORIENT labels, how its attention and its graphs behave, and where it looks.

writes  labels.parquet, behaviour.parquet (of the split that is scored, both inputs), looks.parquet
        (of some items of it)
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from stages.classify.batching import INPUTS, SPLITS, batches, show
from stages.classify.config import Params
from stages.models.mm_orient import checkpoint as mm_orient_checkpoint
from stages.models.mm_orient import dataset as meme_dataset
from stages.models.mm_orient.checkpoint import Reader, Run
from stages.models.mm_orient.dataset import UNJUDGED, Memes
from stages.shared.core import schemas
from stages.shared.core.config import load
from stages.shared.features import store as feature_store
from stages.shared.metrics.common import evenly
from stages.shared.torch_setup.devices import inference

TABLES = {"labels": schemas.LABELS, "behaviour": schemas.BEHAVIOUR, "looks": schemas.LOOKS}
Rows = list[dict]


def label_rows(reader: Reader, items: Memes, split: str, inputs: Sequence[str], size: int) -> Rows:
    """LABELS of all items of a split from each of these inputs, a row for each task."""
    found = []
    for indices, batch in batches(reader, items, list(range(len(items))), size):
        for given in inputs:
            decided = reader.paper.decide(reader.model, show(batch, given))
            for task, names in reader.tasks.items():
                chosen = decided.labels[task].tolist()
                probability = decided.probabilities[task].max(-1).values.tolist()
                for place, index in enumerate(indices):
                    gold = meme_dataset.label_of(items.rows[index], task)
                    found.append(
                        {
                            "record": items.rows[index]["id"],
                            "split": split,
                            "inputs": given,
                            "task": task,
                            "gold": [] if gold is None else [gold],
                            "predicted": [names[chosen[place]]],
                            "probability": [probability[place]],
                            "cut": items.words_cut(index),
                        }
                    )
    return found


def behaviour_rows(reader: Reader, items: Memes, split: str, size: int) -> Rows:
    """BEHAVIOUR of all items of a split: what has no figure has no row."""
    found = []
    for indices, batch in batches(reader, items, list(range(len(items))), size):
        for name, values in reader.paper.behaviour(reader.model, batch).items():
            found += [
                {"record": items.rows[index]["id"], "split": split, "name": name, "value": value}
                for index, value in zip(indices, values.tolist(), strict=True)
                if value == value  # NaN stands for none
            ]
    return found


def look_rows(reader: Reader, items: Memes, places: list[int], size: int) -> Rows:
    """LOOKS of some items: attention to the pieces of the text, to the regions of the picture."""
    found = []
    for indices, batch in batches(reader, items, places, size):
        look = reader.paper.look(reader.model, batch)
        for place, index in enumerate(indices):
            spelt, row = items.spelt(index), items.rows[index]
            for modality, weights, tokens in (
                ("text", look.words, spelt),
                ("picture", look.regions, []),
            ):
                if weights is not None and row["text" if modality == "text" else "image"]:
                    seen = of_item(weights[place], len(spelt) if modality == "text" else None)
                    found.append(
                        {"record": row["id"], "modality": modality}
                        | {"tokens": tokens, "weights": seen}
                    )
    return found


def of_item(weights: Tensor, count: int | None) -> list[float]:
    """The weights of an item without those of padding."""
    return weights[:count].tolist()


def scored_split(splits: dict[str, Memes]) -> str:
    """Test, or validation where nobody judged a test item."""
    judged = (splits["test"].labels != UNJUDGED).any()
    return "test" if judged or not len(splits["validation"]) else "validation"


def label(
    name: str, kind: str, folders: list[Path], params: Params
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Rows of each table of TABLES, and how many weights the model has.

    folders: PICTURES, RECORDS, FEATURES and MODEL.
    """
    pictures, records, feature_folder, model = folders
    known, rows = feature_store.read(feature_folder), meme_dataset.read_rows(records)
    reader = mm_orient_checkpoint.restore(model)
    size = load(Run, "readers", name).batch
    splits = {split: reader.items(rows[split], known, pictures) for split in SPLITS}
    scored = scored_split(splits)
    found: dict[str, Rows] = {name: [] for name in TABLES}
    with inference():
        for split, items in splits.items():
            alone = split == scored and any(row["image"] for row in items.rows)
            inputs = INPUTS if alone else INPUTS[:1]
            found["labels"] += label_rows(reader, items, split, inputs, size)
        items = splits[scored]
        found["behaviour"] += behaviour_rows(reader, items, scored, size)
        found["looks"] += look_rows(reader, items, evenly(len(items), params.examples), size)
    return found, reader.config["parameters"]
