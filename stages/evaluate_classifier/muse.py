"""Metrics of MuSE: entities or sentiment, its regularizers and its embeddings.

Words beyond the encoder's limit count as predicted O; `cut` has their number. `regularisers` has
the losses of captioning and image generation, `alignment` compares text and image embeddings.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.evaluate_classifier.common import (
    Ceilings,
    EvaluateClassifierConfig,
    compute_single_modality,
    compute_task_metrics,
    count_correct_labels,
)
from stages.shared.core import schemas
from stages.shared.metrics import classification as classification_metrics
from stages.shared.metrics.alignment import summarize_alignment
from stages.shared.metrics.common import clustered_standard_error, compute_skill
from stages.shared.runtime.stage import InputError

MODEL_NAME = "MuSE"
REGULARIZERS = ["caption_nats", "drawing_bits"]


@dataclass(frozen=True)
class MuseOutputs:
    """The tables of 11_classify of one classifier."""

    labels: list[dict]  # LABEL_PREDICTIONS
    regularizers: list[dict]  # REGULARIZER_OUTPUTS
    embeddings: list[dict]  # EMBEDDINGS
    parameters: dict[str, int]  # number of trained and of frozen parameters

    @property
    def task(self) -> str:
        return self.labels[0]["task"]

    def select(self, split: str, inputs: str) -> list[dict]:
        """The predictions of one split and input mode, sorted by record."""
        key = split, inputs
        rows = [row for row in self.labels if (row["split"], row["inputs"]) == key]
        return sorted(rows, key=lambda row: row["record"])


def load_outputs(folder: Path) -> MuseOutputs:
    """Raises InputError if a file is missing, or if there is no item to score."""
    outputs = MuseOutputs(
        schemas.read_parquet(folder / "labels.parquet", schemas.LABEL_PREDICTIONS),
        schemas.read_parquet(folder / "regularised.parquet", schemas.REGULARIZER_OUTPUTS),
        schemas.read_parquet(folder / "embeddings.parquet", schemas.EMBEDDINGS),
        schemas.read_json(folder / "parameters.json"),
    )
    if not outputs.select("test", "both") and not outputs.select("validation", "both"):
        raise InputError(
            f"{folder / 'labels.parquet'} has neither a test nor a validation item: add records of"
            " one of these splits to the corpus"
        )
    return outputs


def compute_split_metrics(
    outputs: MuseOutputs, split: str, ceilings: Ceilings, config: EvaluateClassifierConfig
) -> dict[str, Any]:
    """Metrics from both inputs, ceilings and skill, and the regularizers."""
    rows = outputs.select(split, "both")
    result = {
        "items": len(rows),
        "cut": count_truncated(rows),
        **compute_task_metrics(rows, config),
    }
    if ceilings:
        score = result["score"]
        realised = {inputs: values["realised"] for inputs, values in ceilings.items()}
        result["ceilings"] = ceilings
        result["skill"] = compute_skill(score["value"], score["standard_error"], realised)
    regularizers = [row for row in outputs.regularizers if row["split"] == split]
    return result | {"regularisers": compute_regularizer_metrics(regularizers)}


def count_truncated(rows: list[dict]) -> dict[str, int]:
    """The number of words beyond the encoder's limit, and of the items that have them."""
    return {"items": sum(row["cut"] > 0 for row in rows), "words": sum(row["cut"] for row in rows)}


def compute_regularizer_metrics(rows: list[dict]) -> dict[str, Any]:
    """Means over the items that have a value: nats per token, bits per dimension."""
    result = {}
    for name in REGULARIZERS:
        measured = [row for row in rows if row[name] is not None]
        if measured:
            values, records = [row[name] for row in measured], [row["record"] for row in measured]
            error = clustered_standard_error(values, records)
            mean = {"value": fmean(values), "standard_error": error}
            result[name] = {"items": len(measured), **mean}
    return result


def compute_metrics(
    predictions: Path, ceilings: dict[str, Any], config: EvaluateClassifierConfig
) -> tuple[dict[str, Any], list[dict]]:
    """The content of metrics.json and the rows of items.parquet."""
    outputs = load_outputs(predictions)
    return build_metrics(outputs, ceilings, config), item_rows(outputs.labels)


def build_metrics(
    outputs: MuseOutputs, ceilings: dict[str, Any], config: EvaluateClassifierConfig
) -> dict[str, Any]:
    """The content of metrics.json; ceilings: from `load_ceilings`."""
    split = "test" if outputs.select("test", "both") else "validation"
    split_ceilings = ceilings.get(split, {})
    result = {
        "task": outputs.task,
        "split": split,
        **compute_split_metrics(outputs, split, split_ceilings, config),
    }
    assert not ceilings or ceilings["metric"] == result["score"]["metric"]
    for inputs in ("text", "picture"):
        if rows := outputs.select(split, inputs):
            single = compute_single_modality(rows, split_ceilings.get(inputs), config)
            result.setdefault("single_modality", {})[inputs] = single
    scored = {row["record"] for row in outputs.select(split, "both")}
    embeddings = [row for row in outputs.embeddings if row["record"] in scored]
    result |= {"alignment": summarize_alignment(embeddings), "parameters": outputs.parameters}
    if outputs.select("validation", "both"):
        validation_ceilings = ceilings.get("validation", {})
        result["validation"] = compute_split_metrics(
            outputs, "validation", validation_ceilings, config
        )
    return result


def item_rows(rows: list[dict]) -> list[dict]:
    """LABEL_SCORES: one row of items.parquet for each row of labels.parquet."""
    return [
        dict.fromkeys(schemas.LABEL_SCORES.names)
        | {name: row[name] for name in ("record", "split", "inputs", "task", "cut")}
        | (count_entities(row) if row["task"] == "entities" else count_correct_labels(row))
        for row in rows
    ]


def count_entities(row: dict) -> dict[str, int]:
    """Counts of an item's entities by the lenient, strict and span rules, for LABEL_SCORES."""
    entities = classification_metrics.extract_entities([row["gold"]], [row["predicted"]])
    result = {}
    for rule, prefix in (("lenient", ""), ("strict", "strict_")):
        ((gold, predicted),) = entities[rule]
        groups = {"right": gold & predicted, "predicted": predicted, "gold": gold}
        result |= {prefix + name: len(group) for name, group in groups.items()}
    ((gold, predicted),) = entities["spans"]
    return result | {"span_right": len(gold & predicted)}
