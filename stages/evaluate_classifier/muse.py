"""Scores of MuSE: entities or sentiment, and what its regularisers and its embeddings say.

Words beyond a reader's limit count as predicted O; `cut` says how many there are. `regularisers`
and `alignment` say what captioning and drawing reach, and how text and picture lie.
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

REGULARIZERS = ["caption_nats", "drawing_bits"]


@dataclass(frozen=True)
class MuseOutputs:
    """What 11_classify holds of one reader."""

    rows: list[dict]  # LABELS
    regularised: list[dict]  # REGULARISED
    embeddings: list[dict]  # EMBEDDINGS
    parameters: dict[str, int]  # of the model: how many are trained, how many are not

    @property
    def task(self) -> str:
        return self.rows[0]["task"]

    def select(self, split: str, inputs: str) -> list[dict]:
        """The rows of one split from these inputs, in the order of the records' names."""
        key = split, inputs
        found = [row for row in self.rows if (row["split"], row["inputs"]) == key]
        return sorted(found, key=lambda row: row["record"])


def load_labels(folder: Path) -> MuseOutputs:
    """Raises WrongInput if something is missing, or there is no item to score."""
    found = MuseOutputs(
        schemas.read_parquet(folder / "labels.parquet", schemas.LABEL_PREDICTIONS),
        schemas.read_parquet(folder / "regularised.parquet", schemas.REGULARIZER_OUTPUTS),
        schemas.read_parquet(folder / "embeddings.parquet", schemas.EMBEDDINGS),
        schemas.read_json(folder / "parameters.json"),
    )
    if not found.select("test", "both") and not found.select("validation", "both"):
        raise InputError(
            f"{folder / 'labels.parquet'} holds neither a test nor a validation item: give the"
            " corpus records of one of these splits"
        )
    return found


def compute_split_metrics(
    labels: MuseOutputs, split: str, ceilings: Ceilings, params: EvaluateClassifierConfig
) -> dict[str, Any]:
    """Figures from both inputs, the ceilings and the skill, and what the regularisers say."""
    rows = labels.select(split, "both")
    result = {
        "items": len(rows),
        "cut": count_truncated(rows),
        **compute_task_metrics(rows, params),
    }
    if ceilings:
        score = result["score"]
        realised = {inputs: values["realised"] for inputs, values in ceilings.items()}
        result["ceilings"] = ceilings
        result["skill"] = compute_skill(score["value"], score["standard_error"], realised)
    regularised = [row for row in labels.regularised if row["split"] == split]
    return result | {"regularisers": compute_regularizer_metrics(regularised)}


def count_truncated(rows: list[dict]) -> dict[str, int]:
    """How many words lay beyond the reader's limit, and of how many items."""
    return {"items": sum(row["cut"] > 0 for row in rows), "words": sum(row["cut"] for row in rows)}


def compute_regularizer_metrics(rows: list[dict]) -> dict[str, Any]:
    """Means over the items that have the figure: nats per token, bits per dimension."""
    result = {}
    for name in REGULARIZERS:
        known = [row for row in rows if row[name] is not None]
        if known:
            values, records = [row[name] for row in known], [row["record"] for row in known]
            error = clustered_standard_error(values, records)
            mean = {"value": fmean(values), "standard_error": error}
            result[name] = {"items": len(known), **mean}
    return result


def compute_metrics(
    folder: Path, known: dict[str, Any], params: EvaluateClassifierConfig
) -> tuple[dict[str, Any], list[dict]]:
    """The content of metrics.json and the rows of items.parquet."""
    labels = load_labels(folder)
    return build_metrics(labels, known, params), item_rows(labels.rows)


def build_metrics(
    labels: MuseOutputs, known: dict[str, Any], params: EvaluateClassifierConfig
) -> dict[str, Any]:
    """The content of metrics.json; known: what `read_ceilings` read."""
    split = "test" if labels.select("test", "both") else "validation"
    ceilings = known.get(split, {})
    result = {
        "task": labels.task,
        "split": split,
        **compute_split_metrics(labels, split, ceilings, params),
    }
    assert not known or known["metric"] == result["score"]["metric"]
    for inputs in ("text", "picture"):
        if rows := labels.select(split, inputs):
            found = compute_single_modality(rows, ceilings.get(inputs), params)
            result.setdefault("single_modality", {})[inputs] = found
    scored = {row["record"] for row in labels.select(split, "both")}
    embedded = [row for row in labels.embeddings if row["record"] in scored]
    result |= {"alignment": summarize_alignment(embedded), "parameters": labels.parameters}
    if labels.select("validation", "both"):
        of_split = known.get("validation", {})
        result["validation"] = compute_split_metrics(labels, "validation", of_split, params)
    return result


def item_rows(rows: list[dict]) -> list[dict]:
    """One row of items.parquet for each row of labels.parquet."""
    return [
        dict.fromkeys(schemas.LABEL_SCORES.names)
        | {name: row[name] for name in ("record", "split", "inputs", "task", "cut")}
        | (count_entities(row) if row["task"] == "entities" else count_correct_labels(row))
        for row in rows
    ]


def count_entities(row: dict) -> dict[str, int]:
    found = classification_metrics.extract_entities([row["gold"]], [row["predicted"]])
    result = {}
    for rule, before in (("lenient", ""), ("strict", "strict_")):
        ((gold, predicted),) = found[rule]
        sizes = {"right": gold & predicted, "predicted": predicted, "gold": gold}
        result |= {before + name: len(some) for name, some in sizes.items()}
    ((gold, predicted),) = found["spans"]
    return result | {"span_right": len(gold & predicted)}
