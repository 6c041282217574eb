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
    Params,
    label_counts,
    single_modality,
    task_figures,
)
from stages.shared.core import schemas
from stages.shared.metrics import classification as classification_metrics
from stages.shared.metrics.alignment import closeness
from stages.shared.metrics.common import clustered_standard_error, skill
from stages.shared.runtime.stage import WrongInput

REGULARISERS = ["caption_nats", "drawing_bits"]


@dataclass(frozen=True)
class Labels:
    """What 11_classify holds of one reader."""

    rows: list[dict]  # LABELS
    regularised: list[dict]  # REGULARISED
    embeddings: list[dict]  # EMBEDDINGS
    parameters: dict[str, int]  # of the model: how many are trained, how many are not

    @property
    def task(self) -> str:
        return self.rows[0]["task"]

    def of(self, split: str, inputs: str) -> list[dict]:
        """The rows of one split from these inputs, in the order of the records' names."""
        key = split, inputs
        found = [row for row in self.rows if (row["split"], row["inputs"]) == key]
        return sorted(found, key=lambda row: row["record"])


def read_labels(folder: Path) -> Labels:
    """Raises WrongInput if something is missing, or there is no item to score."""
    found = Labels(
        schemas.read(folder / "labels.parquet", schemas.LABELS),
        schemas.read(folder / "regularised.parquet", schemas.REGULARISED),
        schemas.read(folder / "embeddings.parquet", schemas.EMBEDDINGS),
        schemas.read_json(folder / "parameters.json"),
    )
    if not found.of("test", "both") and not found.of("validation", "both"):
        raise WrongInput(
            f"{folder / 'labels.parquet'} holds neither a test nor a validation item: give the"
            " corpus records of one of these splits"
        )
    return found


def figures_of_split(
    labels: Labels, split: str, ceilings: Ceilings, params: Params
) -> dict[str, Any]:
    """Figures from both inputs, the ceilings and the skill, and what the regularisers say."""
    rows = labels.of(split, "both")
    result = {"items": len(rows), "cut": cut(rows), **task_figures(rows, params)}
    if ceilings:
        score = result["score"]
        realised = {inputs: values["realised"] for inputs, values in ceilings.items()}
        result["ceilings"] = ceilings
        result["skill"] = skill(score["value"], score["standard_error"], realised)
    regularised = [row for row in labels.regularised if row["split"] == split]
    return result | {"regularisers": regularisers(regularised)}


def cut(rows: list[dict]) -> dict[str, int]:
    """How many words lay beyond the reader's limit, and of how many items."""
    return {"items": sum(row["cut"] > 0 for row in rows), "words": sum(row["cut"] for row in rows)}


def regularisers(rows: list[dict]) -> dict[str, Any]:
    """Means over the items that have the figure: nats per token, bits per dimension."""
    result = {}
    for name in REGULARISERS:
        known = [row for row in rows if row[name] is not None]
        if known:
            values, records = [row[name] for row in known], [row["record"] for row in known]
            error = clustered_standard_error(values, records)
            mean = {"value": fmean(values), "standard_error": error}
            result[name] = {"items": len(known), **mean}
    return result


def score(folder: Path, known: dict[str, Any], params: Params) -> tuple[dict[str, Any], list[dict]]:
    """The content of metrics.json and the rows of items.parquet."""
    labels = read_labels(folder)
    return all_figures(labels, known, params), item_rows(labels.rows)


def all_figures(labels: Labels, known: dict[str, Any], params: Params) -> dict[str, Any]:
    """The content of metrics.json; known: what `read_ceilings` read."""
    split = "test" if labels.of("test", "both") else "validation"
    ceilings = known.get(split, {})
    result = {
        "task": labels.task,
        "split": split,
        **figures_of_split(labels, split, ceilings, params),
    }
    assert not known or known["metric"] == result["score"]["metric"]
    for inputs in ("text", "picture"):
        if rows := labels.of(split, inputs):
            found = single_modality(rows, ceilings.get(inputs), params)
            result.setdefault("single_modality", {})[inputs] = found
    scored = {row["record"] for row in labels.of(split, "both")}
    embedded = [row for row in labels.embeddings if row["record"] in scored]
    result |= {"alignment": closeness(embedded), "parameters": labels.parameters}
    if labels.of("validation", "both"):
        of_split = known.get("validation", {})
        result["validation"] = figures_of_split(labels, "validation", of_split, params)
    return result


def item_rows(rows: list[dict]) -> list[dict]:
    """One row of items.parquet for each row of labels.parquet."""
    return [
        dict.fromkeys(schemas.LABEL_SCORES.names)
        | {name: row[name] for name in ("record", "split", "inputs", "task", "cut")}
        | (entity_counts(row) if row["task"] == "entities" else label_counts(row))
        for row in rows
    ]


def entity_counts(row: dict) -> dict[str, int]:
    found = classification_metrics.entities([row["gold"]], [row["predicted"]])
    result = {}
    for rule, before in (("lenient", ""), ("strict", "strict_")):
        ((gold, predicted),) = found[rule]
        sizes = {"right": gold & predicted, "predicted": predicted, "gold": gold}
        result |= {before + name: len(some) for name, some in sizes.items()}
    ((gold, predicted),) = found["spans"]
    return result | {"span_right": len(gold & predicted)}
