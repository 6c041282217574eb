"""The items of a reader as the page shows them: labels, the exchange, and what its decoders made.

reads   02_clean/<corpus>/records.parquet
        11_classify/<reader>/labels.parquet, exchanges.parquet, regularised.parquet, drawn.parquet
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.report.attention_maps import Map
from stages.report.classifier_section import INPUTS
from stages.report.plots import heatmaps
from stages.shared.core import schemas
from stages.shared.data import image_store
from stages.shared.metrics.classification import lenient


@dataclass(frozen=True)
class Segment:
    """Some words in a row of what was labelled; kind "": in no entity; right: as the gold ones."""

    text: str
    kind: str
    right: bool


@dataclass(frozen=True)
class Said:
    """The labels of one item from some inputs."""

    inputs: str  # "gold": what is to be said
    segments: list[Segment]  # of a tweet's words
    label: str  # of a post
    probability: float | None  # of that label
    right: bool


@dataclass(frozen=True)
class Layer:
    """What one layer exchanged. A piece: what it spells, its share of the attention of cls relative
    to the largest, and whether it was exchanged."""

    number: int
    pieces: list[tuple[str, float, bool]]
    cells: tuple[int, int]  # exchanged, of how many
    map: Map | None  # of the cells, where they are a grid

    @property
    def exchanged(self) -> int:
        return sum(exchanged for _, _, exchanged in self.pieces)


@dataclass(frozen=True)
class Item:
    record: str
    language: str
    text: str
    image: str | None
    said: list[Said]
    layers: list[Layer]
    regularised: dict[str, Any]  # caption_nats, drawing_bits, caption; of nothing: empty
    drawn: list[Map]


@dataclass(frozen=True)
class Labelled:
    """What 11_classify holds of the items that are shown."""

    records: dict[str, dict]  # CLEAN, by record
    labels: list[dict]
    exchanges: list[dict]
    regularised: dict[str, dict]
    drawn: list[dict]


def read(clean: Path, label: Path, kind: str, split: str, count: int) -> Labelled:
    """At most `count` items of a split, those whose exchange was kept before others."""
    records = {
        row["id"]: row for row in schemas.read(clean / "records.parquet", schemas.CLEAN[kind])
    }
    exchanges = schemas.read(label / "exchanges.parquet", schemas.EXCHANGES)
    labels = schemas.read(label / "labels.parquet", schemas.LABELS)
    seen = {row["record"] for row in exchanges}
    names = sorted(
        {r["record"] for r in labels if r["split"] == split}, key=lambda n: (n not in seen, n)
    )
    shown = dict.fromkeys(names[:count])

    def of(rows: list[dict]) -> list[dict]:
        return [row for row in rows if row["record"] in shown]

    regularised = of(schemas.read(label / "regularised.parquet", schemas.REGULARISED))
    return Labelled(
        {name: records[name] for name in shown},
        of(labels),
        of(exchanges),
        {row["record"]: row for row in regularised},
        of(schemas.read(label / "drawn.parquet", schemas.DRAWN)),
    )


def items(
    found: Labelled, files: dict[str, bytes], middle: bool, side: int, folder: Path, name: str
) -> list[Item]:
    """Every item, its maps and drawings written into FOLDER/exchanges and FOLDER/drawn.

    files: pictures by hash; middle: only their middle square was read; side: longest of a map.
    """
    shown = []
    for number, (record, row) in enumerate(found.records.items(), start=1):
        picture = None
        if row["image"] in files:
            picture = image_store.decode(files[row["image"]])
            picture.thumbnail((side, side))
        shown.append(
            Item(
                record,
                row["language"],
                " ".join(row["words"]) if "words" in row else row["text"],
                row["image"],
                said(row, [label for label in found.labels if label["record"] == record]),
                _layers(record, found.exchanges, picture, middle, folder, f"{name}/{number}"),
                found.regularised.get(record, {}),
                _drawn(record, found.drawn, folder, f"{name}/{number}"),
            )
        )
    return shown


def said(row: dict, labels: list[dict]) -> list[Said]:
    """The gold labels of a record (CLEAN), then what was predicted from each inputs.

    Of a record without picture, what was predicted from both is from its text.
    """
    gold = labels[0]["gold"]
    by_inputs = {label["inputs"]: label for label in labels}
    names = INPUTS if row["image"] else {"both": INPUTS["text"]}
    found = [("gold", gold, None)] + [
        (names[inputs], by_inputs[inputs]["predicted"], by_inputs[inputs]["probability"])
        for inputs in ("both", "text", "picture")
        if inputs in by_inputs and inputs in names
    ]
    if labels[0]["task"] == "entities":
        return [
            Said(
                inputs, segments(row["words"], tags, gold), "", None, lenient(tags) == lenient(gold)
            )
            for inputs, tags, _ in found
        ]
    return [
        Said(inputs, [], tags[0], probability[0] if probability else None, tags == gold)
        for inputs, tags, probability in found
    ]


def segments(words: list[str], tags: list[str], gold: list[str]) -> list[Segment]:
    """The words cut at the entities of these tags, read leniently."""
    right, found, start = lenient(gold), [], 0
    for kind, first, stop in sorted(lenient(tags), key=lambda entity: entity[1]):
        if first > start:
            found.append(Segment(" ".join(words[start:first]), "", True))
        found.append(Segment(" ".join(words[first:stop]), kind, (kind, first, stop) in right))
        start = stop
    return [*found, Segment(" ".join(words[start:]), "", True)] if start < len(words) else found


def _layers(
    record: str,
    exchanges: list[dict],
    picture: Image.Image | None,
    middle: bool,
    folder: Path,
    name: str,
) -> list[Layer]:
    rows = {(r["layer"], r["modality"]): r for r in exchanges if r["record"] == record}
    layers = []
    for number in sorted({layer for layer, _ in rows}):
        of_text, of_picture = rows.get((number, "text")), rows.get((number, "picture"))
        cells, drawn = (0, 0), None
        if of_picture:
            weights, places = np.array(of_picture["weights"], dtype=float), of_picture["exchanged"]
            cells = len(places), len(weights)
            if picture and heatmaps.grid(weights) is not None:
                image = heatmaps.exchanged(picture, weights, places, middle)
                about = (
                    f"The picture, warm where cls looks in layer {number}; the {len(places)} cells"
                    " in frames were exchanged"
                )
                path = f"exchanges/{name}-{number}.png"
                drawn = Map(path, *image.size, f"layer {number}", about)
                heatmaps.save(image, folder / path)
        layers.append(Layer(number, pieces(of_text) if of_text else [], cells, drawn))
    return layers


def pieces(row: dict) -> list[tuple[str, float, bool]]:
    """The pieces of an EXCHANGES row of a text as a `Layer` holds them."""
    largest, exchanged = max(row["weights"], default=0.0) or 1.0, set(row["exchanged"])
    return [
        (token, weight / largest, place in exchanged)
        for place, (token, weight) in enumerate(zip(row["tokens"], row["weights"], strict=True))
    ]


def _drawn(record: str, rows: list[dict], folder: Path, name: str) -> list[Map]:
    found = []
    for row in sorted(rows, key=lambda row: row["number"]):
        if row["record"] == record:
            picture = image_store.decode(row["picture"])
            path = f"drawn/{name}-{row['number']}.png"
            about = f"Picture {row['number'] + 1} that was drawn from the text"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            image_store.redraw(picture, max(picture.size)).save(folder / path)
            found.append(Map(path, *picture.size, "", about))
    return found
