"""A reader of memes as the page shows it: its tiles, tables and warnings, and items.

reads   04_augment/<corpus>/records.parquet, or where the reader's records are
        11_classify/<reader>/labels.parquet, looks.parquet
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.report.attention_maps import ReportFigure
from stages.report.classifier_section import (
    AVERAGE_LABELS,
    INPUT_LABELS,
    ClassifierSection,
    MetricValue,
    build_parameter_tile,
    select_value_and_error,
)
from stages.report.plots import curves, heatmaps
from stages.shared.core import schemas
from stages.shared.data import image_store
from stages.shared.metrics import attention

INPUT_COLUMNS = {
    inputs: INPUT_LABELS[inputs] for inputs in ("both", "text", "picture")
}  # their columns
MODALITY_LABELS = {"t": "texts", "i": "pictures"}
ATTENTION_LABELS = {"words": "words", "regions": "regions of the picture"}
LabelsByTask = dict[str, list[str]]  # task -> its labels, in order


@dataclass(frozen=True)
class DiagnosticThresholds:
    """Of graphs and of attention: beyond them they tell nothing."""

    inert_density: float  # share of pairs, and less
    inert_isolated: float  # share of items without a neighbour, and more
    complete_density: float
    even_attention: float

    def flag_graph(self, density: float, isolated: float) -> str:
        """What to say of a graph: inert, nearly complete or nothing."""
        if density <= self.inert_density or isolated >= self.inert_isolated:
            return "inert"
        return "nearly complete" if density >= self.complete_density else ""


class MemeSection(ClassifierSection):
    """A reader of memes, of several tasks."""

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """As of every reader; the mean accuracy with its error, which stands beside `score`."""
        return {name: of | {"accuracy": of["score"]} for name, of in super().splits.items()}

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        return self.metrics["tasks"]

    @property
    def single_modality(self) -> dict[str, dict[str, Any]]:
        """The figures from one input, by it; empty where no item has a picture."""
        return self.metrics.get("single_modality", {})

    @property
    def has_ceilings(self) -> bool:
        return any("ceilings" in found for found in self.tasks.values())

    def summary_tiles(self) -> list[MetricValue]:
        """The few figures to look at first, means over the tasks."""
        found, mean = self.metrics, f"mean of {len(self.tasks)} tasks"
        tiles = []
        if "skill" in found:
            note = f"{mean}, of what only text and picture together allow"
            tiles.append({"label": "Skill", "note": note, **found["skill"]})
        note = f"{mean}, {found['items']:,} items of the {found['split']} split"
        tiles.append({"label": "Accuracy", "note": note} | select_value_and_error(found["score"]))
        for name, label in AVERAGE_LABELS.items():
            tiles.append({"label": label, "note": mean, **found[name]})
        return [*tiles, build_parameter_tile(found["parameters"])]

    def task_rows(self) -> list[MetricValue]:
        """Rows of the table of tasks; the last one is their mean.

        score and alone (by input) with their ceilings, skill, averages of F1; None where unknown.
        """
        rows = [
            _build_task_row(
                task,
                found,
                {inputs: of["tasks"].get(task) for inputs, of in self.single_modality.items()},
            )
            for task, found in self.tasks.items()
        ]
        return [
            *rows,
            _build_task_row("mean", self.metrics, self.single_modality) | {"total": True},
        ]

    def confusion_matrices(self, tasks: LabelsByTask) -> dict[str, dict[str, dict[str, int]]]:
        """Task -> gold -> predicted -> count, labels in the order of the corpus."""
        return {
            task: _order_labels(of["confusion"], tasks[task]) for task, of in self.tasks.items()
        }

    def graph_rows(self, bounds: DiagnosticThresholds) -> list[MetricValue]:
        """Rows of the table of relation graphs; empty of a model without."""
        found = self.metrics["behaviour"]
        rows = []
        for graph in curves.GRAPHS:
            density, isolated = (found.get(f"{name}_{graph}") for name in ("density", "isolated"))
            if density is not None:
                nodes, by = (MODALITY_LABELS[letter] for letter in graph)
                flag = bounds.flag_graph(density, isolated)
                label = f"{nodes}, linked where {by} are alike"
                row = {"name": graph, "label": label, "density": density, "isolated": isolated}
                rows.append(row | {"flag": flag})
        return rows

    def attention_entropy_rows(self, bounds: DiagnosticThresholds) -> list[MetricValue]:
        """Rows of the table of attention: label, value, whether it is nearly a mean."""
        found = self.metrics["behaviour"]
        return [
            {"label": label, "value": value, "even": value >= bounds.even_attention}
            for name, label in ATTENTION_LABELS.items()
            if (value := found.get(f"evenness_{name}")) is not None
        ]

    def warnings(self, bounds: DiagnosticThresholds) -> list[str]:
        """What the graphs and the attention cannot tell."""
        said = {
            "inert": "is inert: it gives most items nothing but themselves",
            "nearly complete": "is nearly complete: it gives all items about the same",
        }
        graphs = [
            f"graph {row['name']} {said[row['flag']]} (density {row['density']:.3f},"
            f" {100 * row['isolated']:.1f} % of items without a neighbour)"
            for row in self.graph_rows(bounds)
            if row["flag"]
        ]
        return graphs + [
            f"the attention to {row['label']} is nearly a mean: its evenness is"
            f" {row['value']:.3f}, 1 is the same weight everywhere"
            for row in self.attention_entropy_rows(bounds)
            if row["even"]
        ]


def _build_task_row(
    label: str, found: dict[str, Any], alone: dict[str, MetricValue | None]
) -> MetricValue:
    ceilings = found.get("ceilings")
    return {
        "label": label,
        "items": found["items"],
        "score": _with_ceiling(found["score"], ceilings, "both"),
        "alone": {inputs: _with_ceiling(one, ceilings, inputs) for inputs, one in alone.items()},
        "skill": found.get("skill"),
        **{name: {"standard_error": None} | found[name] for name in AVERAGE_LABELS},
    }


def _with_ceiling(
    figure: MetricValue | None, ceilings: dict | None, inputs: str
) -> MetricValue | None:
    if figure is None:
        return None
    return figure | {"of": ceilings[inputs]["realised"] if ceilings else None}


def _order_labels(
    confusion: dict[str, dict[str, int]], labels: list[str]
) -> dict[str, dict[str, int]]:
    names = [name for name in labels if name in confusion]
    return {gold: {name: confusion[gold][name] for name in names} for gold in names}


# ------------------------------------------------------------------------------- items
@dataclass(frozen=True)
class LabelPrediction:
    """The label that was said of one task; right: None where nobody judged."""

    label: str
    probability: float
    correct: bool | None


@dataclass(frozen=True)
class TaskResult:
    """One task of an item: its gold label, if somebody judged, and what was said by inputs."""

    task: str
    gold: str | None
    predictions: dict[str, LabelPrediction | None]  # both, text, picture


@dataclass(frozen=True)
class MemeExample:
    """evenness: of the attention, by modality, as far as there is some; 1 is a mean."""

    row: dict  # MEMES
    task_results: list[TaskResult]
    subwords: list[tuple[str, float, bool]]  # of the text, beside the piece with the largest weight
    heatmap: ReportFigure | None  # of regions, where they are a grid
    normalized_entropy: dict[str, float]


@dataclass(frozen=True)
class DisplayedItems:
    """What 11_classify holds of the items that are shown."""

    records: dict[str, dict]  # MEMES, by record
    labels: dict[str, list[dict]]  # LABELS
    attentions: dict[str, dict[str, dict]]  # LOOKS by record and modality

    @property
    def image_hashes(self) -> set[str]:
        """The sha256 of their pictures, as the corpus has them and as the model read them."""
        rows = self.records.values()
        return {row[name] for row in rows for name in ("image", "pictured")} - {None}


def load_displayed_items(records: Path, label: Path, split: str, count: int) -> DisplayedItems:
    """At most `count` items of a split, those that were looked into before others."""
    rows = {
        row["id"]: row for row in schemas.read_parquet(records / "records.parquet", schemas.MEMES)
    }
    looks: dict[str, dict[str, dict]] = {}
    for row in schemas.read_parquet(label / "looks.parquet", schemas.ATTENTION_MAPS):
        looks.setdefault(row["record"], {})[row["modality"]] = row
    labels: dict[str, list[dict]] = {}
    for row in schemas.read_parquet(label / "labels.parquet", schemas.LABEL_PREDICTIONS):
        if row["split"] == split:
            labels.setdefault(row["record"], []).append(row)
    names = sorted(labels, key=lambda name: (name not in looks, name))[:count]
    return DisplayedItems(
        {name: rows[name] for name in names},
        {name: labels[name] for name in names},
        {name: looks.get(name, {}) for name in names},
    )


def build_meme_examples(
    found: DisplayedItems, files: dict[str, bytes], middle: bool, side: int, folder: Path, name: str
) -> list[MemeExample]:
    """Every item, its heat map written into FOLDER/regions.

    files: pictures by hash; middle: only their middle square was read; side: longest of a map.
    """
    shown = []
    for number, (record, row) in enumerate(found.records.items(), start=1):
        looks = found.attentions[record]
        weights = {
            modality: np.array(look["weights"], dtype=float) for modality, look in looks.items()
        }
        drawn = None
        if "picture" in weights and row["image"] in files:
            content = files[row["image"]]
            drawn = _draw_heatmap(
                content, weights["picture"], middle, side, folder, f"{name}/{number}"
            )
        shown.append(
            MemeExample(
                row,
                build_task_results(row, found.labels[record]),
                _compute_subword_shares(looks["text"]["tokens"], weights["text"])
                if "text" in looks
                else [],
                drawn,
                {
                    modality: even
                    for modality, of in weights.items()
                    if (even := compute_normalized_entropy(of)) is not None
                },
            )
        )
    return shown


def _draw_heatmap(
    content: bytes, weights: np.ndarray, middle: bool, side: int, folder: Path, name: str
) -> ReportFigure | None:
    grid = heatmaps.to_grid(weights)
    if grid is None:
        return None
    picture = heatmaps.draw_overlay(
        image_store.resize_and_strip_metadata(image_store.decode_image(content), side),
        grid,
        middle,
        None,
    )
    path = f"regions/{name}.png"
    heatmaps.save_png(picture, folder / path)
    about = "The picture as it was read, warm where the attention to its regions is"
    return ReportFigure(path, *picture.size, "regions", about)


def _compute_subword_shares(
    tokens: list[str], weights: np.ndarray
) -> list[tuple[str, float, bool]]:
    largest = weights.max(initial=0.0) or 1.0
    shares = (weights / largest).tolist()
    return [(token, share, False) for token, share in zip(tokens, shares, strict=True)]


def compute_normalized_entropy(weights: np.ndarray) -> float | None:
    """Of weights (N,): 1 all alike, 0 one alone; None where there is nothing to choose."""
    total = weights.sum()
    return (
        float(attention.normalized_entropy(weights / total))
        if len(weights) > 1 and total > 0
        else None
    )


def build_task_results(row: dict, labels: list[dict]) -> list[TaskResult]:
    """What was said of each task of a meme (MEMES).

    Of a meme that lacks text or picture, what was predicted from both is from the other alone.
    """
    names = {inputs: inputs for inputs in INPUT_COLUMNS}
    if not (row["text"] and row["image"]):
        names = {"text": "both"} if row["text"] else {"picture": "both"}
    by_task: dict[str, dict[str, dict]] = {}
    for label in labels:
        by_task.setdefault(label["task"], {})[label["inputs"]] = label
    return [
        TaskResult(
            task,
            next(iter(found["both"]["gold"]), None),
            {inputs: _build_prediction(found.get(names.get(inputs))) for inputs in INPUT_COLUMNS},
        )
        for task, found in by_task.items()
    ]


def _build_prediction(label: dict | None) -> LabelPrediction | None:
    if label is None:
        return None
    right = label["gold"] == label["predicted"] if label["gold"] else None
    return LabelPrediction(label["predicted"][0], label["probability"][0], right)
