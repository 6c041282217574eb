"""Predictions of MuSE, and exchange, decoder outputs and embeddings of the scored split.

writes  labels.parquet, regularised.parquet, exchanges.parquet, drawn.parquet, embeddings.parquet
"""

from collections.abc import Sequence
from io import BytesIO
from math import isnan
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stages.classify.batching import CLASSIFIED_SPLITS, iter_batches, mask_inputs
from stages.classify.config import ClassifyConfig
from stages.models.muse import checkpoint as muse_checkpoint
from stages.models.muse import dataset as muse_dataset
from stages.models.muse import model as muse_model
from stages.models.muse import pixelcnn
from stages.models.muse.checkpoint import MuseClassifier, MuseRun
from stages.models.muse.dataset import TextImageDataset
from stages.shared.backbones.classifier import CorpusFolders
from stages.shared.core import schemas
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
RUN_CONFIG = MuseRun
Rows = list[dict]


def label_rows(
    classifier: MuseClassifier,
    items: TextImageDataset,
    split: str,
    input_modes: Sequence[str],
    batch_size: int,
) -> Rows:
    """LABEL_PREDICTIONS of all items of a split: a row per item and input mode."""
    rows = []
    for indices, batch in iter_batches(classifier, items, list(range(len(items))), batch_size):
        for inputs in input_modes:
            predictions = classifier.paper.predict(classifier.model, mask_inputs(batch, inputs))
            names = classifier.decode_labels(predictions.labels, items, indices)
            rows += [
                {
                    "record": items.rows[index]["id"],
                    "split": split,
                    "inputs": inputs,
                    "task": classifier.codec.task,
                    "gold": muse_dataset.get_gold_labels(items.rows[index]),
                    "predicted": predicted,
                    "probability": probability,
                    "cut": items.num_truncated_words(index),
                }
                for index, predicted, probability in zip(
                    indices, names, predictions.probability, strict=True
                )
            ]
    return rows


def regularizer_rows(
    classifier: MuseClassifier,
    items: TextImageDataset,
    split: str,
    batch_size: int,
    captions: dict[int, str],
) -> Rows:
    """REGULARIZER_OUTPUTS of all items of a split; captions: by index, of some of them."""
    rows = []
    for indices, batch in iter_batches(classifier, items, list(range(len(items))), batch_size):
        outputs = muse_model.evaluate_regularizers(classifier.model, batch)
        values = {name: output.tolist() for name, output in outputs.items()}
        for position, index in enumerate(indices):
            row = {"record": items.rows[index]["id"], "split": split}
            for name in ("caption_nats", "drawing_bits"):
                row[name] = nan_to_none(values[name][position]) if name in values else None
            rows.append(row | {"caption": captions.get(index)})
    return rows


def nan_to_none(value: float) -> float | None:
    """None for NaN, else the value."""
    return None if isnan(value) else value


def generate_captions(
    classifier: MuseClassifier, items: TextImageDataset, indices: list[int], batch_size: int
) -> dict[int, str]:
    """Captions of NIC-Att for the images of some items, by index."""
    if not classifier.model.network.use_captioning:
        return {}
    vocabulary, captions = classifier.codec.vocabulary, {}
    for batch_indices, batch in iter_batches(classifier, items, indices, batch_size):
        word_ids = muse_model.generate_captions(classifier.model, batch)
        captions |= {
            index: " ".join(vocabulary.decode(ids))
            for index, ids in zip(batch_indices, word_ids, strict=True)
        }
    return captions


def exchange_rows(
    classifier: MuseClassifier, items: TextImageDataset, indices: list[int], batch_size: int
) -> Rows:
    """EXCHANGES of some items: two rows, of text and image, per item and layer."""
    rows = []
    for batch_indices, batch in iter_batches(classifier, items, indices, batch_size):
        for trace in muse_model.attention_maps(classifier.model, batch):
            text_trace, image_trace = zip(trace.weights, trace.exchanged, strict=True)
            for position, index in enumerate(batch_indices):
                tokens = items.subwords[index].tokens
                key = {"record": items.rows[index]["id"], "layer": trace.layer}
                text = exchange_columns(*(t[position, : len(tokens)] for t in text_trace))
                image = exchange_columns(*(t[position] for t in image_trace))
                rows.append(key | {"modality": "text", "tokens": tokens} | text)
                rows.append(key | {"modality": "picture", "tokens": []} | image)
    return rows


def exchange_columns(weights: Tensor, exchanged: Tensor) -> dict[str, list]:
    """Attention weights (N,) of an item's tokens and the indices where `exchanged` (N,) is true."""
    return {"weights": weights.tolist(), "exchanged": exchanged.nonzero()[:, 0].tolist()}


def generated_image_rows(
    classifier: MuseClassifier, items: TextImageDataset, indices: list[int], config: ClassifyConfig
) -> Rows:
    """SAMPLED_IMAGES of some items: `num_images_per_prompt` images from the text of each."""
    if not (classifier.model.network.use_image_generation and indices):
        return []
    device = next(classifier.model.parameters()).device
    keys = [(index, n) for index in indices for n in range(config.num_images_per_prompt)]
    batch = to_device(items.batch([index for index, _ in keys]), device)
    generator = torch.Generator(device).manual_seed(config.seed)
    images = muse_model.generate_images(classifier.model, batch, generator)
    return [
        {"record": items.rows[index]["id"], "number": n, "picture": encode_png(image)}
        for (index, n), image in zip(keys, images, strict=True)
    ]


def encode_png(image: Tensor) -> bytes:
    """(3, S, S) in [-1, 1] -> content of a PNG file"""
    pixels = pixelcnn.float_to_uint8(image).permute(1, 2, 0).cpu().numpy()
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def embedding_rows(
    classifier: MuseClassifier, items: TextImageDataset, indices: list[int], batch_size: int
) -> Rows:
    """EMBEDDINGS of some items, all with an image."""
    rows = []
    for batch_indices, batch in iter_batches(classifier, items, indices, batch_size):
        embeddings = muse_model.pooled_embeddings(classifier.model, batch)
        for where, (text, image) in embeddings.items():
            for modality, vectors in (("text", text), ("picture", image)):
                rows += [
                    {
                        "record": items.rows[index]["id"],
                        "modality": modality,
                        "where": where,
                        "vector": vector.tolist(),
                    }
                    for index, vector in zip(batch_indices, vectors, strict=True)
                ]
    return rows


def select_examples(items: TextImageDataset, max_count: int) -> list[int]:
    """Indices of at most `max_count` items with an image, evenly spaced."""
    with_image = [index for index, row in enumerate(items.rows) if row["image"] is not None]
    return [with_image[i] for i in evenly_spaced_indices(len(with_image), max_count)]


def classify(
    corpus: CorpusFolders,
    model: Path,
    kind: muse_dataset.CorpusKind,
    config: ClassifyConfig,
    batch_size: int,
) -> tuple[dict[str, Rows], dict[str, int]]:
    """Rows of each table of TABLES, and the parameter counts of the model."""
    features = feature_store.read_features(corpus.features)
    rows = muse_dataset.load_splits(corpus.records, kind)
    classifier = muse_checkpoint.restore(model)
    splits = {
        split: classifier.build_dataset(rows[split], features, corpus.images)
        for split in CLASSIFIED_SPLITS
    }
    with inference_context():
        tables = build_tables(
            classifier,
            splits,
            trained_input_modes(classifier.model.network, rows["train"]),
            config,
            batch_size,
        )
    return tables, classifier.config["parameters"]


def trained_input_modes(network: muse_model.ModelConfig, train_rows: Rows) -> list[str]:
    """`both`, and the single inputs with which the placeholder of the other one was trained."""
    modes = ["both"]
    if network.image_drop_prob or any(row["image"] is None for row in train_rows):
        modes.append("text")
    if network.text_drop_prob or not all(map(muse_dataset.get_words, train_rows)):
        modes.append("picture")
    return modes


def build_tables(
    classifier: MuseClassifier,
    splits: dict[str, TextImageDataset],
    input_modes: list[str],
    config: ClassifyConfig,
    batch_size: int,
) -> dict[str, Rows]:
    """The rows of each table of TABLES. input_modes: of the scored split, if it has images."""
    tables: dict[str, Rows] = {name: [] for name in TABLES}
    scored_split = "test" if len(splits["test"]) else "validation"
    for split, items in splits.items():
        is_scored = split == scored_split
        has_images = any(row["image"] for row in items.rows)
        modes = input_modes if is_scored and has_images else ["both"]
        tables["labels"] += label_rows(classifier, items, split, modes, batch_size)
        if classifier.model.network.fusion == "text":
            continue  # the model reads no images
        examples = select_examples(items, config.num_examples) if is_scored else []
        captions = generate_captions(classifier, items, examples, batch_size)
        tables["regularised"] += regularizer_rows(classifier, items, split, batch_size, captions)
        if is_scored:
            tables["exchanges"] += exchange_rows(classifier, items, examples, batch_size)
            prompts = examples[: config.num_generation_examples]
            tables["drawn"] += generated_image_rows(classifier, items, prompts, config)
            samples = select_examples(items, config.num_projection_samples)
            tables["embeddings"] += embedding_rows(classifier, items, samples, batch_size)
    return tables
