"""Examples of a classifier of tweets or posts: labels, feature exchange and decoder outputs.

reads   02_clean/<corpus>/records.parquet
        11_classify/<run>/labels.parquet, exchanges.parquet, regularised.parquet, drawn.parquet
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.report.attention_maps import ReportFigure
from stages.report.classifier_section import INPUT_LABELS
from stages.report.plots import heatmaps
from stages.shared.core import schemas
from stages.shared.data import image_store
from stages.shared.metrics.classification import extract_lenient_entities


@dataclass(frozen=True)
class TextSegment:
    """Consecutive words that are one entity, or that are in no entity."""

    text: str
    entity_type: str  # "" outside entities
    correct: bool  # whether the gold labels have the same entity


@dataclass(frozen=True)
class ExamplePrediction:
    """The gold labels of an item, or its predictions from some inputs."""

    inputs: str  # "gold" or a label of the inputs
    segments: list[TextSegment]  # of a tweet
    label: str  # of a post
    probability: float | None  # of `label`
    correct: bool


@dataclass(frozen=True)
class ExchangeLayer:
    """What one layer of MuSE exchanged between text and image."""

    number: int
    subwords: list[tuple[str, float, bool]]  # subword, CLS attention over its maximum, exchanged?
    cells: tuple[int, int]  # exchanged cells, all cells
    heatmap: ReportFigure | None  # of the cells, if they form a grid

    @property
    def num_exchanged(self) -> int:
        return sum(exchanged for _, _, exchanged in self.subwords)


@dataclass(frozen=True)
class TaggingExample:
    record: str
    language: str
    text: str
    image: str | None  # SHA-256
    predictions: list[ExamplePrediction]
    layers: list[ExchangeLayer]
    decoder_outputs: dict[str, Any]  # caption_nats, drawing_bits, caption; empty if there are none
    sampled_images: list[ReportFigure]


@dataclass(frozen=True)
class TaggingData:
    """The records of the shown items and what 11_classify holds of them."""

    records: dict[str, dict]  # record -> CLEAN_RECORDS
    labels: list[dict]  # LABEL_PREDICTIONS
    exchanges: list[dict]  # EXCHANGES
    decoder_outputs: dict[str, dict]  # record -> REGULARIZER_OUTPUTS
    sampled_images: list[dict]  # SAMPLED_IMAGES


def load_tagging_data(clean: Path, labels: Path, kind: str, split: str, count: int) -> TaggingData:
    """Load at most `count` items of a split. Items with recorded exchanges come first."""
    records = {
        row["id"]: row
        for row in schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS[kind])
    }
    exchanges = schemas.read_parquet(labels / "exchanges.parquet", schemas.EXCHANGES)
    label_rows = schemas.read_parquet(labels / "labels.parquet", schemas.LABEL_PREDICTIONS)
    recorded = {row["record"] for row in exchanges}
    names = sorted(
        {row["record"] for row in label_rows if row["split"] == split},
        key=lambda name: (name not in recorded, name),
    )
    selected = dict.fromkeys(names[:count])

    def select(rows: list[dict]) -> list[dict]:
        return [row for row in rows if row["record"] in selected]

    decoder_outputs = select(
        schemas.read_parquet(labels / "regularised.parquet", schemas.REGULARIZER_OUTPUTS)
    )
    return TaggingData(
        {name: records[name] for name in selected},
        select(label_rows),
        select(exchanges),
        {row["record"]: row for row in decoder_outputs},
        select(schemas.read_parquet(labels / "drawn.parquet", schemas.SAMPLED_IMAGES)),
    )


def build_tagging_examples(
    data: TaggingData,
    files: dict[str, bytes],
    crop_fraction: float | None,
    side: int,
    folder: Path,
    name: str,
) -> list[TaggingExample]:
    """Build the examples. Writes images into `folder`/exchanges/`name` and `folder`/sampled/`name`.

    files: image files by SHA-256. crop_fraction: as in `heatmaps.draw_overlay`.
    side: longest side of a map, pixels.
    """
    examples = []
    for number, (record, row) in enumerate(data.records.items(), start=1):
        image = None
        if row["image"] in files:
            image = image_store.decode_image(files[row["image"]])
            image.thumbnail((side, side))
        labels = [label for label in data.labels if label["record"] == record]
        exchanges = [exchange for exchange in data.exchanges if exchange["record"] == record]
        samples = [sample for sample in data.sampled_images if sample["record"] == record]
        examples.append(
            TaggingExample(
                record,
                row["language"],
                " ".join(row["words"]) if "words" in row else row["text"],
                row["image"],
                build_predictions(row, labels),
                _build_layers(exchanges, image, crop_fraction, folder, f"{name}/{number}"),
                data.decoder_outputs.get(record, {}),
                _save_sampled_images(samples, folder, f"{name}/{number}"),
            )
        )
    return examples


def build_predictions(row: dict, labels: list[dict]) -> list[ExamplePrediction]:
    """The gold labels of a record (CLEAN_RECORDS), then the predictions from each input.

    For a record without image, the prediction from both inputs is shown as that from the text.
    """
    gold = labels[0]["gold"]
    by_inputs = {label["inputs"]: label for label in labels}
    names = INPUT_LABELS if row["image"] else {"both": INPUT_LABELS["text"]}
    predictions = [("gold", gold, None)] + [
        (names[inputs], by_inputs[inputs]["predicted"], by_inputs[inputs]["probability"])
        for inputs in ("both", "text", "picture")
        if inputs in by_inputs and inputs in names
    ]
    if labels[0]["task"] == "entities":
        return [
            ExamplePrediction(
                inputs,
                split_segments(row["words"], tags, gold),
                "",
                None,
                extract_lenient_entities(tags) == extract_lenient_entities(gold),
            )
            for inputs, tags, _ in predictions
        ]
    return [
        ExamplePrediction(
            inputs, [], tags[0], probability[0] if probability else None, tags == gold
        )
        for inputs, tags, probability in predictions
    ]


def split_segments(words: list[str], tags: list[str], gold: list[str]) -> list[TextSegment]:
    """Split the words at the entities of `tags`, with lenient decoding of BIO tags."""
    gold_entities, segments, start = extract_lenient_entities(gold), [], 0
    entities = sorted(extract_lenient_entities(tags), key=lambda entity: entity[1])
    for entity_type, first, stop in entities:
        if first > start:
            segments.append(TextSegment(" ".join(words[start:first]), "", True))
        correct = (entity_type, first, stop) in gold_entities
        segments.append(TextSegment(" ".join(words[first:stop]), entity_type, correct))
        start = stop
    if start < len(words):
        segments.append(TextSegment(" ".join(words[start:]), "", True))
    return segments


def _build_layers(
    exchanges: list[dict],
    image: Image.Image | None,
    crop_fraction: float | None,
    folder: Path,
    name: str,
) -> list[ExchangeLayer]:
    """exchanges: EXCHANGES rows of one record."""
    rows = {(row["layer"], row["modality"]): row for row in exchanges}
    layers = []
    for number in sorted({layer for layer, _ in rows}):
        text_row, image_row = rows.get((number, "text")), rows.get((number, "picture"))
        cells, heatmap = (0, 0), None
        if image_row:
            weights, indices = np.array(image_row["weights"], dtype=float), image_row["exchanged"]
            cells = len(indices), len(weights)
            if image and heatmaps.to_grid(weights) is not None:
                drawn = heatmaps.draw_exchanges(image, weights, indices, crop_fraction)
                alt_text = (
                    f"The image; cells with much CLS attention in layer {number} are orange; the"
                    f" {len(indices)} framed cells were exchanged"
                )
                path = f"exchanges/{name}-{number}.png"
                heatmap = ReportFigure(path, *drawn.size, f"layer {number}", alt_text)
                heatmaps.save_png(drawn, folder / path)
        subwords = compute_subword_shares(text_row) if text_row else []
        layers.append(ExchangeLayer(number, subwords, cells, heatmap))
    return layers


def compute_subword_shares(row: dict) -> list[tuple[str, float, bool]]:
    """The `subwords` of an ExchangeLayer, from the EXCHANGES row of a text."""
    largest, exchanged = max(row["weights"], default=0.0) or 1.0, set(row["exchanged"])
    return [
        (token, weight / largest, index in exchanged)
        for index, (token, weight) in enumerate(zip(row["tokens"], row["weights"], strict=True))
    ]


def _save_sampled_images(samples: list[dict], folder: Path, name: str) -> list[ReportFigure]:
    """samples: SAMPLED_IMAGES rows of one record."""
    figures = []
    for row in sorted(samples, key=lambda row: row["number"]):
        image = image_store.decode_image(row["picture"])
        path = f"sampled/{name}-{row['number']}.png"
        alt_text = f"Image {row['number'] + 1} that was sampled from the text"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        image_store.resize_and_strip_metadata(image, max(image.size)).save(folder / path)
        figures.append(ReportFigure(path, *image.size, "", alt_text))
    return figures
