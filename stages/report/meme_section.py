"""A meme classifier's section of the report: tiles, tables, warnings and examples.

reads   records.parquet of 02_clean/<corpus> or 04_augment/<corpus>, as the run's params say
        11_classify/<run>/labels.parquet, looks.parquet
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.report import classifier_section
from stages.report.attention_maps import ReportFigure
from stages.report.classifier_section import (
    AVERAGE_LABELS,
    ClassifierSection,
    MetricValue,
    build_parameter_tile,
    select_value_and_error,
)
from stages.report.plots import curves, heatmaps
from stages.shared.core import schemas
from stages.shared.data import image_store
from stages.shared.metrics import attention

INPUT_LABELS = {  # in the order of the table's columns
    inputs: classifier_section.INPUT_LABELS[inputs] for inputs in ("both", "text", "picture")
}
NODE_LABELS = {"t": "texts", "i": "images"}
MODALITY_LABELS = {"t": "text", "i": "image"}
ATTENTION_LABELS = {"words": "subwords", "regions": "image regions"}
LabelsByTask = dict[str, list[str]]  # task -> its labels, in order


@dataclass(frozen=True)
class DiagnosticThresholds:
    """Limits at which a relation graph or the attention carries no information."""

    min_graph_density: float  # share of linked pairs
    max_isolated_fraction: float  # share of items without a neighbor
    max_graph_density: float
    max_attention_entropy: float  # normalized: 1 is uniform

    def flag_graph(self, density: float, isolated: float) -> str:
        """ "too sparse", "nearly complete" or ""."""
        if density <= self.min_graph_density or isolated >= self.max_isolated_fraction:
            return "too sparse"
        return "nearly complete" if density >= self.max_graph_density else ""


class MemeSection(ClassifierSection):
    """A classifier of memes with several tasks."""

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """As in other classifiers, with the mean accuracy as `accuracy` as well as `score`."""
        return {
            split: metrics | {"accuracy": metrics["score"]}
            for split, metrics in super().splits.items()
        }

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        return self.metrics["tasks"]

    @property
    def single_modality(self) -> dict[str, dict[str, Any]]:
        """The metrics from one input, by input. Empty if no item has an image."""
        return self.metrics.get("single_modality", {})

    @property
    def has_ceilings(self) -> bool:
        return any("ceilings" in metrics for metrics in self.tasks.values())

    def summary_tiles(self) -> list[MetricValue]:
        """The headline metrics, means over the tasks."""
        metrics, mean = self.metrics, f"mean of {len(self.tasks)} tasks"
        tiles = []
        if "skill" in metrics:
            note = f"{mean} (0: best from one modality alone, 1: best from both)"
            tiles.append({"label": "Skill", "note": note, **metrics["skill"]})
        note = f"{mean}, {metrics['items']:,} items of the {metrics['split']} split"
        tiles.append({"label": "Accuracy", "note": note} | select_value_and_error(metrics["score"]))
        for name, label in AVERAGE_LABELS.items():
            tiles.append({"label": label, "note": mean, **metrics[name]})
        return [*tiles, build_parameter_tile(metrics["parameters"])]

    def task_rows(self) -> list[MetricValue]:
        """Rows of scores by task, with their mean at the end.

        score and single_modality (by input) with their ceilings, skill and averaged F1; None where
        unknown.
        """
        rows = [
            _build_task_row(
                task,
                metrics,
                {
                    inputs: single["tasks"].get(task)
                    for inputs, single in self.single_modality.items()
                },
            )
            for task, metrics in self.tasks.items()
        ]
        mean = _build_task_row("mean", self.metrics, self.single_modality) | {"total": True}
        return [*rows, mean]

    def confusion_matrices(self, tasks: LabelsByTask) -> dict[str, dict[str, dict[str, int]]]:
        """Task -> gold -> predicted -> count. Labels are in the order of the corpus."""
        return {
            task: _order_labels(metrics["confusion"], tasks[task])
            for task, metrics in self.tasks.items()
        }

    def graph_rows(self, thresholds: DiagnosticThresholds) -> list[MetricValue]:
        """Rows of the relation graphs. Empty for a model without graphs."""
        diagnostics = self.metrics["behaviour"]
        rows = []
        for graph in curves.GRAPHS:
            density, isolated = (
                diagnostics.get(f"{name}_{graph}") for name in ("density", "isolated")
            )
            if density is not None:
                nodes, modality = NODE_LABELS[graph[0]], MODALITY_LABELS[graph[1]]
                rows.append(
                    {
                        "name": graph,
                        "label": f"{nodes}, linked by {modality} similarity",
                        "density": density,
                        "isolated": isolated,
                        "flag": thresholds.flag_graph(density, isolated),
                    }
                )
        return rows

    def attention_entropy_rows(self, thresholds: DiagnosticThresholds) -> list[MetricValue]:
        """Rows of the attention: label, normalized entropy, and whether it is nearly uniform."""
        diagnostics = self.metrics["behaviour"]
        return [
            {"label": label, "value": value, "uniform": value >= thresholds.max_attention_entropy}
            for name, label in ATTENTION_LABELS.items()
            if (value := diagnostics.get(f"evenness_{name}")) is not None
        ]

    def warnings(self, thresholds: DiagnosticThresholds) -> list[str]:
        """Sentences about graphs and attention that carry no information."""
        effects = {
            "too sparse": "most items have no neighbor, so their features hardly change",
            "nearly complete": "all items receive about the same features",
        }
        graphs = [
            f"relation graph {row['name']} is {row['flag']}: {effects[row['flag']]} (density"
            f" {row['density']:.3f}, {100 * row['isolated']:.1f} % of items without a neighbor)"
            for row in self.graph_rows(thresholds)
            if row["flag"]
        ]
        return graphs + [
            f"the attention over {row['label']} is nearly uniform: its normalized entropy is"
            f" {row['value']:.3f} (1: uniform)"
            for row in self.attention_entropy_rows(thresholds)
            if row["uniform"]
        ]


def _build_task_row(
    label: str, metrics: dict[str, Any], single_modality: Mapping[str, MetricValue | None]
) -> MetricValue:
    ceilings = metrics.get("ceilings")
    return {
        "label": label,
        "items": metrics["items"],
        "score": _with_ceiling(metrics["score"], ceilings, "both"),
        "single_modality": {
            inputs: _with_ceiling(score, ceilings, inputs)
            for inputs, score in single_modality.items()
        },
        "skill": metrics.get("skill"),
        **{name: {"standard_error": None} | metrics[name] for name in AVERAGE_LABELS},
    }


def _with_ceiling(
    score: MetricValue | None, ceilings: dict | None, inputs: str
) -> MetricValue | None:
    if score is None:
        return None
    return score | {"ceiling": ceilings[inputs]["realised"] if ceilings else None}


def _order_labels(
    confusion: dict[str, dict[str, int]], labels: list[str]
) -> dict[str, dict[str, int]]:
    used = [label for label in labels if label in confusion]
    return {gold: {label: confusion[gold][label] for label in used} for gold in used}


# ---------------------------------------------------------------------------- examples
@dataclass(frozen=True)
class LabelPrediction:
    """The predicted label of one task."""

    label: str
    probability: float
    correct: bool | None  # None without a gold label


@dataclass(frozen=True)
class TaskResult:
    """One task of an item: its gold label (None if unknown) and the predictions by input."""

    task: str
    gold: str | None
    predictions: dict[str, LabelPrediction | None]  # both, text, picture


@dataclass(frozen=True)
class MemeExample:
    row: dict  # MEMES
    task_results: list[TaskResult]
    subwords: list[tuple[str, float, bool]]  # subword, attention over the item's maximum, False
    heatmap: ReportFigure | None  # attention over regions, if they form a grid
    normalized_entropy: dict[str, float]  # of the attention, by modality; 1: uniform


@dataclass(frozen=True)
class DisplayedItems:
    """The records of the shown items and what 11_classify holds of them, by record."""

    records: dict[str, dict]  # MEMES
    labels: dict[str, list[dict]]  # LABEL_PREDICTIONS
    attentions: dict[str, dict[str, dict]]  # ATTENTION_MAPS, by modality

    @property
    def image_hashes(self) -> set[str]:
        """The SHA-256 of the images, as in the corpus and as the classifier read them."""
        rows = self.records.values()
        return {row[name] for row in rows for name in ("image", "pictured")} - {None}


def load_displayed_items(records: Path, labels: Path, split: str, count: int) -> DisplayedItems:
    """Load at most `count` items of a split. Items with recorded attention come first."""
    rows = {
        row["id"]: row for row in schemas.read_parquet(records / "records.parquet", schemas.MEMES)
    }
    attentions: dict[str, dict[str, dict]] = {}
    for row in schemas.read_parquet(labels / "looks.parquet", schemas.ATTENTION_MAPS):
        attentions.setdefault(row["record"], {})[row["modality"]] = row
    labels_by_record: dict[str, list[dict]] = {}
    for row in schemas.read_parquet(labels / "labels.parquet", schemas.LABEL_PREDICTIONS):
        if row["split"] == split:
            labels_by_record.setdefault(row["record"], []).append(row)
    names = sorted(labels_by_record, key=lambda name: (name not in attentions, name))[:count]
    return DisplayedItems(
        {name: rows[name] for name in names},
        {name: labels_by_record[name] for name in names},
        {name: attentions.get(name, {}) for name in names},
    )


def build_meme_examples(
    items: DisplayedItems,
    files: dict[str, bytes],
    crop_fraction: float | None,
    side: int,
    folder: Path,
    name: str,
) -> list[MemeExample]:
    """Build the examples. Writes their heat maps into `folder`/regions/`name`.

    files: image files by SHA-256. crop_fraction: as in `heatmaps.draw_overlay`.
    side: longest side of a heat map, pixels.
    """
    examples = []
    for number, (record, row) in enumerate(items.records.items(), start=1):
        attentions = items.attentions[record]
        weights = {
            modality: np.array(attention_row["weights"], dtype=float)
            for modality, attention_row in attentions.items()
        }
        heatmap = None
        if "picture" in weights and row["image"] in files:
            path = f"regions/{name}/{number}.png"
            heatmap = _draw_heatmap(
                files[row["image"]], weights["picture"], crop_fraction, side, folder, path
            )
        subwords = []
        if "text" in weights:
            subwords = _compute_subword_shares(attentions["text"]["tokens"], weights["text"])
        entropies = {
            modality: compute_normalized_entropy(values) for modality, values in weights.items()
        }
        examples.append(
            MemeExample(
                row,
                build_task_results(row, items.labels[record]),
                subwords,
                heatmap,
                {key: entropy for key, entropy in entropies.items() if entropy is not None},
            )
        )
    return examples


def _draw_heatmap(
    content: bytes,
    weights: np.ndarray,
    crop_fraction: float | None,
    side: int,
    folder: Path,
    path: str,
) -> ReportFigure | None:
    grid = heatmaps.to_grid(weights)
    if grid is None:
        return None
    image = image_store.resize_and_strip_metadata(image_store.decode_image(content), side)
    overlay = heatmaps.draw_overlay(image, grid, crop_fraction, None)
    heatmaps.save_png(overlay, folder / path)
    alt_text = "The image that the classifier read; regions with much attention are orange"
    return ReportFigure(path, *overlay.size, "regions", alt_text)


def _compute_subword_shares(
    tokens: list[str], weights: np.ndarray
) -> list[tuple[str, float, bool]]:
    largest = weights.max(initial=0.0) or 1.0
    shares = (weights / largest).tolist()
    return [(token, share, False) for token, share in zip(tokens, shares, strict=True)]


def compute_normalized_entropy(weights: np.ndarray) -> float | None:
    """Entropy of weights (N,), 0 to 1: 1 if uniform. None if N < 2 or all weights are 0."""
    total = weights.sum()
    return (
        float(attention.normalized_entropy(weights / total))
        if len(weights) > 1 and total > 0
        else None
    )


def build_task_results(row: dict, labels: list[dict]) -> list[TaskResult]:
    """The results of each task of a meme (MEMES).

    For a meme without text or without image, the prediction from both inputs is shown as that from
    the input which it has.
    """
    sources = {inputs: inputs for inputs in INPUT_LABELS}
    if not (row["text"] and row["image"]):
        sources = {"text": "both"} if row["text"] else {"picture": "both"}
    by_task: dict[str, dict[str, dict]] = {}
    for label in labels:
        by_task.setdefault(label["task"], {})[label["inputs"]] = label
    return [
        TaskResult(
            task,
            next(iter(by_inputs["both"]["gold"]), None),
            {
                inputs: _build_prediction(by_inputs.get(sources.get(inputs, "")))
                for inputs in INPUT_LABELS
            },
        )
        for task, by_inputs in by_task.items()
    ]


def _build_prediction(label: dict | None) -> LabelPrediction | None:
    if label is None:
        return None
    correct = label["gold"] == label["predicted"] if label["gold"] else None
    return LabelPrediction(label["predicted"][0], label["probability"][0], correct)
