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

from stages.classify.batching import CLASSIFIED_SPLITS, INPUT_MODES, iter_batches, mask_inputs
from stages.classify.config import ClassifyConfig
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse import pixelcnn
from stages.models.muse.checkpoint import MuseClassifier, MuseRun
from stages.models.muse.dataset import TextImageDataset
from stages.shared.core import schemas
from stages.shared.core.config import load_config
from stages.shared.features import store as feature_store
from stages.shared.metrics.common import evenly_spaced_indices
from stages.shared.torch_setup.devices import inference_context
from stages.shared.training.batching import to_device

TABLES = {
    "labels": schemas.LABEL_PREDICTIONS,
    "regularised": schemas.REGULARIZER_OUTPUTS,
    "exchanges": schemas.EXCHANGES,
    "drawn": schemas.SAMPLED_IMAGES,
    "embeddings": schemas.EMBEDDINGS,
}
Rows = list[dict]


def label_rows(
    reader: MuseClassifier, items: TextImageDataset, split: str, inputs: Sequence[str], size: int
) -> Rows:
    """LABELS of all items of a split from each of these inputs."""
    found = []
    for indices, batch in iter_batches(reader, items, list(range(len(items))), size):
        for given in inputs:
            decided = reader.paper.predict(reader.model, mask_inputs(batch, given))
            names = reader.decode_labels(decided.labels, items, indices)
            found += [
                {
                    "record": items.rows[index]["id"],
                    "split": split,
                    "inputs": given,
                    "task": reader.codec.task,
                    "gold": muse_dataset.get_gold_labels(items.rows[index]),
                    "predicted": predicted,
                    "probability": probability,
                    "cut": items.num_truncated_words(index),
                }
                for index, predicted, probability in zip(
                    indices, names, decided.probability, strict=True
                )
            ]
    return found


def regularizer_rows(
    reader: MuseClassifier, items: TextImageDataset, split: str, size: int, written: dict[int, str]
) -> Rows:
    """REGULARISED of all items of a split; written: captions of some of them."""
    found = []
    for indices, batch in iter_batches(reader, items, list(range(len(items))), size):
        values = reader.paper.evaluate_regularizers(reader.model, batch)
        known = {name: some.tolist() for name, some in values.items()}
        for place, index in enumerate(indices):
            row = {"record": items.rows[index]["id"], "split": split}
            for name in ("caption_nats", "drawing_bits"):
                row[name] = nan_to_none(known[name][place]) if name in known else None
            found.append(row | {"caption": written.get(index)})
    return found


def nan_to_none(value: float) -> float | None:
    """A figure of an item; NaN stands for none."""
    return None if isnan(value) else value


def generate_captions(
    reader: MuseClassifier, items: TextImageDataset, places: list[int], size: int
) -> dict[int, str]:
    """What NIC-Att writes of the pictures of some items."""
    if not reader.model.network.use_captioning:
        return {}
    words, found = reader.codec.vocabulary, {}
    for indices, batch in iter_batches(reader, items, places, size):
        written = reader.paper.generate_captions(reader.model, batch)
        found |= {
            index: " ".join(words.decode(ids)) for index, ids in zip(indices, written, strict=True)
        }
    return found


def exchange_rows(
    reader: MuseClassifier, items: TextImageDataset, places: list[int], size: int
) -> Rows:
    """EXCHANGES of some items."""
    found = []
    for indices, batch in iter_batches(reader, items, places, size):
        for trace in reader.paper.attention_maps(reader.model, batch):
            of_texts, of_pictures = zip(trace.weights, trace.exchanged, strict=True)
            for place, index in enumerate(indices):
                spelt = items.subwords[index].tokens
                key = {"record": items.rows[index]["id"], "layer": trace.layer}
                text = exchange_columns(*(values[place, : len(spelt)] for values in of_texts))
                picture = exchange_columns(*(values[place] for values in of_pictures))
                found.append(key | {"modality": "text", "tokens": spelt} | text)
                found.append(key | {"modality": "picture", "tokens": []} | picture)
    return found


def exchange_columns(weights: Tensor, places: Tensor) -> dict[str, list]:
    """What a layer did to the tokens of one modality: weights (N,) and where it exchanged (N,)."""
    return {"weights": weights.tolist(), "exchanged": places.nonzero()[:, 0].tolist()}


def generated_image_rows(
    reader: MuseClassifier, items: TextImageDataset, places: list[int], params: ClassifyConfig
) -> Rows:
    """DRAWN of some items: `samples` pictures from the text of each."""
    if not (reader.model.network.use_image_generation and places):
        return []
    device = next(reader.model.parameters()).device
    shown = to_device(
        items.batch([place for place in places for _ in range(params.num_images_per_prompt)]),
        device,
    )
    generator = torch.Generator(device).manual_seed(params.seed)
    drawn = reader.paper.generate_images(reader.model, shown, generator)
    names = [
        (items.rows[place]["id"], n)
        for place in places
        for n in range(params.num_images_per_prompt)
    ]
    return [
        {"record": record, "number": n, "picture": encode_png(picture)}
        for (record, n), picture in zip(names, drawn, strict=True)
    ]


def encode_png(picture: Tensor) -> bytes:
    """(3, S, S) in [-1, 1] as a PNG file."""
    pixels = pixelcnn.float_to_uint8(picture).permute(1, 2, 0).cpu().numpy()
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def embedding_rows(
    reader: MuseClassifier, items: TextImageDataset, places: list[int], size: int
) -> Rows:
    """EMBEDDINGS of some items, all with a picture."""
    found = []
    for indices, batch in iter_batches(reader, items, places, size):
        for where, (text, picture) in reader.paper.pooled_embeddings(reader.model, batch).items():
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


def select_examples(items: TextImageDataset, count: int) -> list[int]:
    """At most so many items with a picture, evenly spaced."""
    shown = [place for place, row in enumerate(items.rows) if row["image"] is not None]
    return [shown[place] for place in evenly_spaced_indices(len(shown), count)]


def classify(
    name: str, kind: muse_dataset.CorpusKind, folders: list[Path], params: ClassifyConfig
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Rows of each table of TABLES, and how many weights the model has.

    folders: PICTURES, RECORDS, FEATURES and MODEL.
    """
    ingest, clean, feature_folder, model = folders
    cached, rows = (
        feature_store.read_features(feature_folder),
        muse_dataset.load_splits(clean, kind),
    )
    reader = muse_checkpoint.restore(model)
    splits = {
        split: reader.build_dataset(rows[split], cached, ingest) for split in CLASSIFIED_SPLITS
    }
    with inference_context():
        found = build_tables(
            reader, splits, params, load_config(MuseRun, "classifiers", name).eval_batch_size
        )
    return found, reader.config["parameters"]


def build_tables(
    reader: MuseClassifier, splits: dict[str, TextImageDataset], params: ClassifyConfig, size: int
) -> dict[str, Rows]:
    """The rows of each table of TABLES."""
    found: dict[str, Rows] = {name: [] for name in TABLES}
    scored = "test" if len(splits["test"]) else "validation"
    for split, items in splits.items():
        alone = split == scored and any(row["image"] for row in items.rows)
        inputs = INPUT_MODES if alone else INPUT_MODES[:1]
        found["labels"] += label_rows(reader, items, split, inputs, size)
        if reader.model.network.fusion == "text":
            continue  # no picture is read
        examples = select_examples(items, params.num_examples) if split == scored else []
        written = generate_captions(reader, items, examples, size)
        found["regularised"] += regularizer_rows(reader, items, split, size, written)
        if split == scored:
            found["exchanges"] += exchange_rows(reader, items, examples, size)
            found["drawn"] += generated_image_rows(
                reader, items, examples[: params.num_generation_examples], params
            )
            some = select_examples(items, params.num_projection_samples)
            found["embeddings"] += embedding_rows(reader, items, some, size)
    return found
