"""Config, ceilings and task metrics that the evaluation of every classifier uses."""

from pathlib import Path
from typing import Any

from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class
from stages.shared.metrics import classification as classification_metrics
from stages.shared.metrics.classification import EntityRule
from stages.shared.metrics.common import compare_to_ceiling

Ceilings = dict[str, dict[str, float]]  # inputs -> expected | realised -> value


@config_class
class EvaluateClassifierConfig:
    entity_rule: EntityRule = Field(description="of the main score and of weight selection")
    num_bootstrap_samples: int = Field(ge=2, description="resamples for the standard errors of F1")
    seed: int = Field(description="seed of the resampling")
    max_below_ceiling: float = Field(description="tolerance below the single-modality ceiling")
    max_above_ceiling_standard_errors: float = Field(description="tolerance above that ceiling")


def load_ceilings(ingest: Path) -> dict[str, Any]:
    """{"metric", split: Ceilings} of a synthetic corpus; empty for other corpora."""
    path = ingest / "ceilings.json"
    return schemas.read_json(path) if path.exists() else {}


def compute_task_metrics(rows: list[dict], config: EvaluateClassifierConfig) -> dict[str, Any]:
    """All metrics of one task; `score` is the one that ceilings and models are compared by.

    rows: LABEL_PREDICTIONS of one task
    """
    gold, predicted = ([row[side] for row in rows] for side in ("gold", "predicted"))
    if rows[0]["task"] == "entities":
        entities = classification_metrics.extract_entities(gold, predicted)
        metrics = classification_metrics.compute_entity_scores(
            entities, config.num_bootstrap_samples, config.seed
        )
        rule = config.entity_rule
        value, error = metrics[rule]["f1"], metrics[rule]["standard_error"]
        score = {"metric": "f1", "rule": rule, "value": value, "standard_error": error}
        return {"score": score, **metrics, "measured_by": classification_metrics.MEASURED_BY}
    gold, predicted = ([label for (label,) in side] for side in (gold, predicted))
    metrics = classification_metrics.compute_class_scores(
        gold, predicted, config.num_bootstrap_samples, config.seed
    )
    return {"score": {"metric": "accuracy", **metrics["accuracy"]}, **metrics}


def compute_single_modality(
    rows: list[dict], ceiling: dict[str, float] | None, config: EvaluateClassifierConfig
) -> dict[str, Any]:
    """The score from one input, compared to its ceiling if there is one."""
    score = compute_task_metrics(rows, config)["score"]
    value, error = score["value"], score["standard_error"]
    if ceiling is None:
        return {"value": value, "standard_error": error}
    bounds = config.max_below_ceiling, config.max_above_ceiling_standard_errors
    return {"value": value} | compare_to_ceiling(value, error, ceiling["realised"], *bounds)


def count_correct_labels(row: dict) -> dict[str, int]:
    """Counts of an item with one label, for LABEL_SCORES."""
    return {"right": int(row["gold"] == row["predicted"]), "predicted": 1, "gold": 1}
