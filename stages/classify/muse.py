"""What MuSE labels, and what its exchange and its decoders did to some items of the scored split.

writes  labels.parquet, regularised.parquet, exchanges.parquet, drawn.parquet, embeddings.parquet
"""

from collections.abc import Sequence
from io import BytesIO
from math import isnan
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stages.classify.batching import INPUTS, SPLITS, batches, show
from stages.classify.config import Params
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse import pixelcnn
from stages.models.muse.checkpoint import Reader, Run
from stages.models.muse.dataset import Labelled
from stages.shared.core import schemas
from stages.shared.core.config import load
from stages.shared.features import store as feature_store
from stages.shared.metrics.common import evenly
from stages.shared.torch_setup.devices import inference
from stages.shared.training.loop import to_device

TABLES = {
    "labels": schemas.LABELS,
    "regularised": schemas.REGULARISED,
    "exchanges": schemas.EXCHANGES,
    "drawn": schemas.DRAWN,
    "embeddings": schemas.EMBEDDINGS,
}
Rows = list[dict]


def label_rows(
    reader: Reader, items: Labelled, split: str, inputs: Sequence[str], size: int
) -> Rows:
    """LABELS of all items of a split from each of these inputs."""
    found = []
    for indices, batch in batches(reader, items, list(range(len(items))), size):
        for given in inputs:
            decided = reader.paper.decide(reader.model, show(batch, given))
            names = reader.names(decided.labels, items, indices)
            found += [
                {
                    "record": items.rows[index]["id"],
                    "split": split,
                    "inputs": given,
                    "task": reader.coding.task,
                    "gold": muse_dataset.gold_of(items.rows[index]),
                    "predicted": predicted,
                    "probability": probability,
                    "cut": items.words_cut(index),
                }
                for index, predicted, probability in zip(
                    indices, names, decided.probability, strict=True
                )
            ]
    return found


def regularised_rows(
    reader: Reader, items: Labelled, split: str, size: int, written: dict[int, str]
) -> Rows:
    """REGULARISED of all items of a split; written: captions of some of them."""
    found = []
    for indices, batch in batches(reader, items, list(range(len(items))), size):
        values = reader.paper.regularisers(reader.model, batch)
        known = {name: some.tolist() for name, some in values.items()}
        for place, index in enumerate(indices):
            row = {"record": items.rows[index]["id"], "split": split}
            for name in ("caption_nats", "drawing_bits"):
                row[name] = number(known[name][place]) if name in known else None
            found.append(row | {"caption": written.get(index)})
    return found


def number(value: float) -> float | None:
    """A figure of an item; NaN stands for none."""
    return None if isnan(value) else value


def captions(reader: Reader, items: Labelled, places: list[int], size: int) -> dict[int, str]:
    """What NIC-Att writes of the pictures of some items."""
    if not reader.model.network.use_captioning:
        return {}
    words, found = reader.coding.vocabulary, {}
    for indices, batch in batches(reader, items, places, size):
        written = reader.paper.caption(reader.model, batch)
        found |= {
            index: " ".join(words.decode(ids)) for index, ids in zip(indices, written, strict=True)
        }
    return found


def exchange_rows(reader: Reader, items: Labelled, places: list[int], size: int) -> Rows:
    """EXCHANGES of some items."""
    found = []
    for indices, batch in batches(reader, items, places, size):
        for trace in reader.paper.look(reader.model, batch):
            of_texts, of_pictures = zip(trace.weights, trace.exchanged, strict=True)
            for place, index in enumerate(indices):
                spelt = items.pieces[index].spelt
                key = {"record": items.rows[index]["id"], "layer": trace.layer}
                text = exchanged(*(values[place, : len(spelt)] for values in of_texts))
                picture = exchanged(*(values[place] for values in of_pictures))
                found.append(key | {"modality": "text", "tokens": spelt} | text)
                found.append(key | {"modality": "picture", "tokens": []} | picture)
    return found


def exchanged(weights: Tensor, places: Tensor) -> dict[str, list]:
    """What a layer did to the tokens of one modality: weights (N,) and where it exchanged (N,)."""
    return {"weights": weights.tolist(), "exchanged": places.nonzero()[:, 0].tolist()}


def drawn_rows(reader: Reader, items: Labelled, places: list[int], params: Params) -> Rows:
    """DRAWN of some items: `samples` pictures from the text of each."""
    if not (reader.model.network.use_drawing and places):
        return []
    device = next(reader.model.parameters()).device
    shown = to_device(
        items.batch([place for place in places for _ in range(params.samples)]), device
    )
    generator = torch.Generator(device).manual_seed(params.seed)
    drawn = reader.paper.draw(reader.model, shown, generator)
    names = [(items.rows[place]["id"], n) for place in places for n in range(params.samples)]
    return [
        {"record": record, "number": n, "picture": png(picture)}
        for (record, n), picture in zip(names, drawn, strict=True)
    ]


def png(picture: Tensor) -> bytes:
    """(3, S, S) in [-1, 1] as a PNG file."""
    pixels = pixelcnn.to_bytes(picture).permute(1, 2, 0).cpu().numpy()
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def embedding_rows(reader: Reader, items: Labelled, places: list[int], size: int) -> Rows:
    """EMBEDDINGS of some items, all with a picture."""
    found = []
    for indices, batch in batches(reader, items, places, size):
        for where, (text, picture) in reader.paper.embeddings(reader.model, batch).items():
            for modality, vectors in (("text", text), ("picture", picture)):
                found += [
                    {
                        "record": items.rows[index]["id"],
                        "modality": modality,
                        "where": where,
                        "vector": vector.tolist(),
                    }
                    for index, vector in zip(indices, vectors, strict=True)
                ]
    return found


def spaced(items: Labelled, count: int) -> list[int]:
    """At most so many items with a picture, evenly spaced."""
    shown = [place for place, row in enumerate(items.rows) if row["image"] is not None]
    return [shown[place] for place in evenly(len(shown), count)]


def label(
    name: str, kind: muse_dataset.Kind, folders: list[Path], params: Params
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Rows of each table of TABLES, and how many weights the model has.

    folders: PICTURES, RECORDS, FEATURES and MODEL.
    """
    ingest, clean, feature_folder, model = folders
    cached, rows = feature_store.read(feature_folder), muse_dataset.read_rows(clean, kind)
    reader = muse_checkpoint.restore(model)
    splits = {split: reader.items(rows[split], cached, ingest) for split in SPLITS}
    with inference():
        found = tables_of(reader, splits, params, load(Run, "readers", name).batch)
    return found, reader.config["parameters"]


def tables_of(
    reader: Reader, splits: dict[str, Labelled], params: Params, size: int
) -> dict[str, Rows]:
    """The rows of each table of TABLES."""
    found: dict[str, Rows] = {name: [] for name in TABLES}
    scored = "test" if len(splits["test"]) else "validation"
    for split, items in splits.items():
        alone = split == scored and any(row["image"] for row in items.rows)
        inputs = INPUTS if alone else INPUTS[:1]
        found["labels"] += label_rows(reader, items, split, inputs, size)
        if reader.model.network.fusion == "text":
            continue  # no picture is read
        examples = spaced(items, params.examples) if split == scored else []
        written = captions(reader, items, examples, size)
        found["regularised"] += regularised_rows(reader, items, split, size, written)
        if split == scored:
            found["exchanges"] += exchange_rows(reader, items, examples, size)
            found["drawn"] += drawn_rows(reader, items, examples[: params.drawn], params)
            some = spaced(items, params.embedded)
            found["embeddings"] += embedding_rows(reader, items, some, size)
    return found
