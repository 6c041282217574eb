"""A reader of memes as the page shows it: its tiles, tables and warnings, and items.

reads   04_augment/<corpus>/records.parquet, or where the reader's records are
        11_classify/<reader>/labels.parquet, looks.parquet
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.report.attention_maps import Map
from stages.report.classifier_section import AVERAGES, INPUTS, Figure, Reader, errors, weights
from stages.report.plots import curves, heatmaps
from stages.shared.core import schemas
from stages.shared.data import image_store
from stages.shared.metrics import attention

SHOWN = {inputs: INPUTS[inputs] for inputs in ("both", "text", "picture")}  # their columns
MODALITIES = {"t": "texts", "i": "pictures"}
LOOKED = {"words": "words", "regions": "regions of the picture"}
Tasks = dict[str, list[str]]  # task -> its labels, in order


@dataclass(frozen=True)
class Bounds:
    """Of graphs and of attention: beyond them they tell nothing."""

    inert_density: float  # share of pairs, and less
    inert_isolated: float  # share of items without a neighbour, and more
    complete_density: float
    even_attention: float

    def flag(self, density: float, isolated: float) -> str:
        """What to say of a graph: inert, nearly complete or nothing."""
        if density <= self.inert_density or isolated >= self.inert_isolated:
            return "inert"
        return "nearly complete" if density >= self.complete_density else ""


class MemeReader(Reader):
    """A reader of memes, of several tasks."""

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """As of every reader; the mean accuracy with its error, which stands beside `score`."""
        return {name: of | {"accuracy": of["score"]} for name, of in super().splits.items()}

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        return self.metrics["tasks"]

    @property
    def single(self) -> dict[str, dict[str, Any]]:
        """The figures from one input, by it; empty where no item has a picture."""
        return self.metrics.get("single_modality", {})

    @property
    def has_ceilings(self) -> bool:
        return any("ceilings" in found for found in self.tasks.values())

    def headline(self) -> list[Figure]:
        """The few figures to look at first, means over the tasks."""
        found, mean = self.metrics, f"mean of {len(self.tasks)} tasks"
        tiles = []
        if "skill" in found:
            note = f"{mean}, of what only text and picture together allow"
            tiles.append({"label": "Skill", "note": note, **found["skill"]})
        note = f"{mean}, {found['items']:,} items of the {found['split']} split"
        tiles.append({"label": "Accuracy", "note": note} | errors(found["score"]))
        for name, label in AVERAGES.items():
            tiles.append({"label": label, "note": mean, **found[name]})
        return [*tiles, weights(found["parameters"])]

    def by_task(self) -> list[Figure]:
        """Rows of the table of tasks; the last one is their mean.

        score and alone (by input) with their ceilings, skill, averages of F1; None where unknown.
        """
        rows = [
            _row(task, found, {inputs: of["tasks"].get(task) for inputs, of in self.single.items()})
            for task, found in self.tasks.items()
        ]
        return [*rows, _row("mean", self.metrics, self.single) | {"total": True}]

    def confusions(self, tasks: Tasks) -> dict[str, dict[str, dict[str, int]]]:
        """Task -> gold -> predicted -> count, labels in the order of the corpus."""
        return {task: _ordered(of["confusion"], tasks[task]) for task, of in self.tasks.items()}

    def graphs(self, bounds: Bounds) -> list[Figure]:
        """Rows of the table of relation graphs; empty of a model without."""
        found = self.metrics["behaviour"]
        rows = []
        for graph in curves.GRAPHS:
            density, isolated = (found.get(f"{name}_{graph}") for name in ("density", "isolated"))
            if density is not None:
                nodes, by = (MODALITIES[letter] for letter in graph)
                flag = bounds.flag(density, isolated)
                label = f"{nodes}, linked where {by} are alike"
                row = {"name": graph, "label": label, "density": density, "isolated": isolated}
                rows.append(row | {"flag": flag})
        return rows

    def evenness(self, bounds: Bounds) -> list[Figure]:
        """Rows of the table of attention: label, value, whether it is nearly a mean."""
        found = self.metrics["behaviour"]
        return [
            {"label": label, "value": value, "even": value >= bounds.even_attention}
            for name, label in LOOKED.items()
            if (value := found.get(f"evenness_{name}")) is not None
        ]

    def warnings(self, bounds: Bounds) -> list[str]:
        """What the graphs and the attention cannot tell."""
        said = {
            "inert": "is inert: it gives most items nothing but themselves",
            "nearly complete": "is nearly complete: it gives all items about the same",
        }
        graphs = [
            f"graph {row['name']} {said[row['flag']]} (density {row['density']:.3f},"
            f" {100 * row['isolated']:.1f} % of items without a neighbour)"
            for row in self.graphs(bounds)
            if row["flag"]
        ]
        return graphs + [
            f"the attention to {row['label']} is nearly a mean: its evenness is"
            f" {row['value']:.3f}, 1 is the same weight everywhere"
            for row in self.evenness(bounds)
            if row["even"]
        ]


def _row(label: str, found: dict[str, Any], alone: dict[str, Figure | None]) -> Figure:
    ceilings = found.get("ceilings")
    return {
        "label": label,
        "items": found["items"],
        "score": _of_ceiling(found["score"], ceilings, "both"),
        "alone": {inputs: _of_ceiling(one, ceilings, inputs) for inputs, one in alone.items()},
        "skill": found.get("skill"),
        **{name: {"standard_error": None} | found[name] for name in AVERAGES},
    }


def _of_ceiling(figure: Figure | None, ceilings: dict | None, inputs: str) -> Figure | None:
    if figure is None:
        return None
    return figure | {"of": ceilings[inputs]["realised"] if ceilings else None}


def _ordered(confusion: dict[str, dict[str, int]], labels: list[str]) -> dict[str, dict[str, int]]:
    names = [name for name in labels if name in confusion]
    return {gold: {name: confusion[gold][name] for name in names} for gold in names}


# ------------------------------------------------------------------------------- items
@dataclass(frozen=True)
class Said:
    """The label that was said of one task; right: None where nobody judged."""

    label: str
    probability: float
    right: bool | None


@dataclass(frozen=True)
class Answer:
    """One task of an item: its gold label, if somebody judged, and what was said by inputs."""

    task: str
    gold: str | None
    said: dict[str, Said | None]  # both, text, picture


@dataclass(frozen=True)
class Item:
    """evenness: of the attention, by modality, as far as there is some; 1 is a mean."""

    row: dict  # MEMES
    answers: list[Answer]
    pieces: list[tuple[str, float, bool]]  # of the text, beside the piece with the largest weight
    map: Map | None  # of regions, where they are a grid
    evenness: dict[str, float]


@dataclass(frozen=True)
class Shown:
    """What 11_classify holds of the items that are shown."""

    records: dict[str, dict]  # MEMES, by record
    labels: dict[str, list[dict]]  # LABELS
    looks: dict[str, dict[str, dict]]  # LOOKS by record and modality

    @property
    def pictures(self) -> set[str]:
        """The sha256 of their pictures, as the corpus has them and as the model read them."""
        rows = self.records.values()
        return {row[name] for row in rows for name in ("image", "pictured")} - {None}


def read(records: Path, label: Path, split: str, count: int) -> Shown:
    """At most `count` items of a split, those that were looked into before others."""
    rows = {row["id"]: row for row in schemas.read(records / "records.parquet", schemas.MEMES)}
    looks: dict[str, dict[str, dict]] = {}
    for row in schemas.read(label / "looks.parquet", schemas.LOOKS):
        looks.setdefault(row["record"], {})[row["modality"]] = row
    labels: dict[str, list[dict]] = {}
    for row in schemas.read(label / "labels.parquet", schemas.LABELS):
        if row["split"] == split:
            labels.setdefault(row["record"], []).append(row)
    names = sorted(labels, key=lambda name: (name not in looks, name))[:count]
    return Shown(
        {name: rows[name] for name in names},
        {name: labels[name] for name in names},
        {name: looks.get(name, {}) for name in names},
    )


def items(
    found: Shown, files: dict[str, bytes], middle: bool, side: int, folder: Path, name: str
) -> list[Item]:
    """Every item, its heat map written into FOLDER/regions.

    files: pictures by hash; middle: only their middle square was read; side: longest of a map.
    """
    shown = []
    for number, (record, row) in enumerate(found.records.items(), start=1):
        looks = found.looks[record]
        weights = {
            modality: np.array(look["weights"], dtype=float) for modality, look in looks.items()
        }
        drawn = None
        if "picture" in weights and row["image"] in files:
            content = files[row["image"]]
            drawn = _heat(content, weights["picture"], middle, side, folder, f"{name}/{number}")
        shown.append(
            Item(
                row,
                answers(row, found.labels[record]),
                _pieces(looks["text"]["tokens"], weights["text"]) if "text" in looks else [],
                drawn,
                {
                    modality: even
                    for modality, of in weights.items()
                    if (even := evenness(of)) is not None
                },
            )
        )
    return shown


def _heat(
    content: bytes, weights: np.ndarray, middle: bool, side: int, folder: Path, name: str
) -> Map | None:
    grid = heatmaps.grid(weights)
    if grid is None:
        return None
    picture = heatmaps.overlay(
        image_store.redraw(image_store.decode(content), side), grid, middle, None
    )
    path = f"regions/{name}.png"
    heatmaps.save(picture, folder / path)
    about = "The picture as it was read, warm where the attention to its regions is"
    return Map(path, *picture.size, "regions", about)


def _pieces(tokens: list[str], weights: np.ndarray) -> list[tuple[str, float, bool]]:
    largest = weights.max(initial=0.0) or 1.0
    shares = (weights / largest).tolist()
    return [(token, share, False) for token, share in zip(tokens, shares, strict=True)]


def evenness(weights: np.ndarray) -> float | None:
    """Of weights (N,): 1 all alike, 0 one alone; None where there is nothing to choose."""
    total = weights.sum()
    return float(attention.entropy(weights / total)) if len(weights) > 1 and total > 0 else None


def answers(row: dict, labels: list[dict]) -> list[Answer]:
    """What was said of each task of a meme (MEMES).

    Of a meme that lacks text or picture, what was predicted from both is from the other alone.
    """
    names = {inputs: inputs for inputs in SHOWN}
    if not (row["text"] and row["image"]):
        names = {"text": "both"} if row["text"] else {"picture": "both"}
    by_task: dict[str, dict[str, dict]] = {}
    for label in labels:
        by_task.setdefault(label["task"], {})[label["inputs"]] = label
    return [
        Answer(
            task,
            next(iter(found["both"]["gold"]), None),
            {inputs: _said(found.get(names.get(inputs))) for inputs in SHOWN},
        )
        for task, found in by_task.items()
    ]


def _said(label: dict | None) -> Said | None:
    if label is None:
        return None
    right = label["gold"] == label["predicted"] if label["gold"] else None
    return Said(label["predicted"][0], label["probability"][0], right)
