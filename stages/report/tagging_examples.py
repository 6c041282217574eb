"""The items of a reader as the page shows them: labels, the exchange, and what its decoders made.

reads   02_clean/<corpus>/records.parquet
        11_classify/<reader>/labels.parquet, exchanges.parquet, regularised.parquet, drawn.parquet
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
    """Some words in a row of what was labelled; kind "": in no entity; right: as the gold ones."""

    text: str
    entity_type: str
    correct: bool


@dataclass(frozen=True)
class ExamplePrediction:
    """The labels of one item from some inputs."""

    inputs: str  # "gold": what is to be said
    segments: list[TextSegment]  # of a tweet's words
    label: str  # of a post
    probability: float | None  # of that label
    correct: bool


@dataclass(frozen=True)
class ExchangeLayer:
    """What one layer exchanged. A piece: what it spells, its share of the attention of cls relative
    to the largest, and whether it was exchanged."""

    number: int
    subwords: list[tuple[str, float, bool]]
    cells: tuple[int, int]  # exchanged, of how many
    heatmap: ReportFigure | None  # of the cells, where they are a grid

    @property
    def num_exchanged(self) -> int:
        return sum(exchanged for _, _, exchanged in self.subwords)


@dataclass(frozen=True)
class TaggingExample:
    record: str
    language: str
    text: str
    image: str | None
    predictions: list[ExamplePrediction]
    layers: list[ExchangeLayer]
    decoder_outputs: dict[str, Any]  # caption_nats, drawing_bits, caption; of nothing: empty
    drawings: list[ReportFigure]


@dataclass(frozen=True)
class TaggingData:
    """What 11_classify holds of the items that are shown."""

    records: dict[str, dict]  # CLEAN, by record
    labels: list[dict]
    exchanges: list[dict]
    decoder_outputs: dict[str, dict]
    drawings: list[dict]


def load_tagging_data(clean: Path, label: Path, kind: str, split: str, count: int) -> TaggingData:
    """At most `count` items of a split, those whose exchange was kept before others."""
    records = {
        row["id"]: row
        for row in schemas.read_parquet(clean / "records.parquet", schemas.CLEAN_RECORDS[kind])
    }
    exchanges = schemas.read_parquet(label / "exchanges.parquet", schemas.EXCHANGES)
    labels = schemas.read_parquet(label / "labels.parquet", schemas.LABEL_PREDICTIONS)
    seen = {row["record"] for row in exchanges}
    names = sorted(
        {r["record"] for r in labels if r["split"] == split}, key=lambda n: (n not in seen, n)
    )
    shown = dict.fromkeys(names[:count])

    def of(rows: list[dict]) -> list[dict]:
        return [row for row in rows if row["record"] in shown]

    regularised = of(
        schemas.read_parquet(label / "regularised.parquet", schemas.REGULARIZER_OUTPUTS)
    )
    return TaggingData(
        {name: records[name] for name in shown},
        of(labels),
        of(exchanges),
        {row["record"]: row for row in regularised},
        of(schemas.read_parquet(label / "drawn.parquet", schemas.SAMPLED_IMAGES)),
    )


def build_tagging_examples(
    found: TaggingData, files: dict[str, bytes], middle: bool, side: int, folder: Path, name: str
) -> list[TaggingExample]:
    """Every item, its maps and drawings written into FOLDER/exchanges and FOLDER/drawn.

    files: pictures by hash; middle: only their middle square was read; side: longest of a map.
    """
    shown = []
    for number, (record, row) in enumerate(found.records.items(), start=1):
        picture = None
        if row["image"] in files:
            picture = image_store.decode_image(files[row["image"]])
            picture.thumbnail((side, side))
        shown.append(
            TaggingExample(
                record,
                row["language"],
                " ".join(row["words"]) if "words" in row else row["text"],
                row["image"],
                build_predictions(
                    row, [label for label in found.labels if label["record"] == record]
                ),
                _build_layers(record, found.exchanges, picture, middle, folder, f"{name}/{number}"),
                found.decoder_outputs.get(record, {}),
                _save_drawings(record, found.drawings, folder, f"{name}/{number}"),
            )
        )
    return shown


def build_predictions(row: dict, labels: list[dict]) -> list[ExamplePrediction]:
    """The gold labels of a record (CLEAN), then what was predicted from each inputs.

    Of a record without picture, what was predicted from both is from its text.
    """
    gold = labels[0]["gold"]
    by_inputs = {label["inputs"]: label for label in labels}
    names = INPUT_LABELS if row["image"] else {"both": INPUT_LABELS["text"]}
    found = [("gold", gold, None)] + [
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
            for inputs, tags, _ in found
        ]
    return [
        ExamplePrediction(
            inputs, [], tags[0], probability[0] if probability else None, tags == gold
        )
        for inputs, tags, probability in found
    ]


def split_segments(words: list[str], tags: list[str], gold: list[str]) -> list[TextSegment]:
    """The words cut at the entities of these tags, read leniently."""
    right, found, start = extract_lenient_entities(gold), [], 0
    for kind, first, stop in sorted(extract_lenient_entities(tags), key=lambda entity: entity[1]):
        if first > start:
            found.append(TextSegment(" ".join(words[start:first]), "", True))
        found.append(TextSegment(" ".join(words[first:stop]), kind, (kind, first, stop) in right))
        start = stop
    return [*found, TextSegment(" ".join(words[start:]), "", True)] if start < len(words) else found


def _build_layers(
    record: str,
    exchanges: list[dict],
    picture: Image.Image | None,
    middle: bool,
    folder: Path,
    name: str,
) -> list[ExchangeLayer]:
    rows = {(r["layer"], r["modality"]): r for r in exchanges if r["record"] == record}
    layers = []
    for number in sorted({layer for layer, _ in rows}):
        of_text, of_picture = rows.get((number, "text")), rows.get((number, "picture"))
        cells, drawn = (0, 0), None
        if of_picture:
            weights, places = np.array(of_picture["weights"], dtype=float), of_picture["exchanged"]
            cells = len(places), len(weights)
            if picture and heatmaps.to_grid(weights) is not None:
                image = heatmaps.draw_exchanges(picture, weights, places, middle)
                about = (
                    f"The picture, warm where cls looks in layer {number}; the {len(places)} cells"
                    " in frames were exchanged"
                )
                path = f"exchanges/{name}-{number}.png"
                drawn = ReportFigure(path, *image.size, f"layer {number}", about)
                heatmaps.save_png(image, folder / path)
        layers.append(
            ExchangeLayer(number, compute_subword_shares(of_text) if of_text else [], cells, drawn)
        )
    return layers


def compute_subword_shares(row: dict) -> list[tuple[str, float, bool]]:
    """The pieces of an EXCHANGES row of a text as a `Layer` holds them."""
    largest, exchanged = max(row["weights"], default=0.0) or 1.0, set(row["exchanged"])
    return [
        (token, weight / largest, place in exchanged)
        for place, (token, weight) in enumerate(zip(row["tokens"], row["weights"], strict=True))
    ]


def _save_drawings(record: str, rows: list[dict], folder: Path, name: str) -> list[ReportFigure]:
    found = []
    for row in sorted(rows, key=lambda row: row["number"]):
        if row["record"] == record:
            picture = image_store.decode_image(row["picture"])
            path = f"drawn/{name}-{row['number']}.png"
            about = f"Picture {row['number'] + 1} that was drawn from the text"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            image_store.resize_and_strip_metadata(picture, max(picture.size)).save(folder / path)
            found.append(ReportFigure(path, *picture.size, "", about))
    return found
