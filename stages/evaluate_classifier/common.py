"""What every reader's scores share: the params, the ceilings, the figures of a task."""

from pathlib import Path
from typing import Any

from stages.shared.core import schemas
from stages.shared.core.config import Field, config_class
from stages.shared.metrics import classification as classification_metrics
from stages.shared.metrics.common import compare_to_ceiling

Ceilings = dict[str, dict[str, float]]  # inputs -> expected | realised -> value


@config_class
class EvaluateClassifierConfig:
    num_bootstrap_samples: int = Field(ge=2, description="draws for the standard errors of F1")
    seed: int
    max_below_ceiling: float
    max_above_ceiling_standard_errors: float


def load_ceilings(ingest: Path) -> dict[str, Any]:
    """{"metric", split: Ceilings} of a sample corpus; empty of any other."""
    path = ingest / "ceilings.json"
    return schemas.read_json(path) if path.exists() else {}


def compute_task_metrics(rows: list[dict], params: EvaluateClassifierConfig) -> dict[str, Any]:
    """Every figure of these rows' task; `score` is the one that ceilings and readers compare by."""
    gold, predicted = ([row[side] for row in rows] for side in ("gold", "predicted"))
    if rows[0]["task"] == "entities":
        found = classification_metrics.extract_entities(gold, predicted)
        figures = classification_metrics.compute_entity_scores(
            found, params.num_bootstrap_samples, params.seed
        )
        value, error = figures["lenient"]["f1"], figures["lenient"]["standard_error"]
        score = {"metric": "f1", "rule": "lenient", "value": value, "standard_error": error}
        return {"score": score, **figures, "measured_by": classification_metrics.MEASURED_BY}
    labels = ([label for (label,) in side] for side in (gold, predicted))
    figures = classification_metrics.compute_class_scores(
        *labels, params.num_bootstrap_samples, params.seed
    )
    return {"score": {"metric": "accuracy", **figures["accuracy"]}, **figures}


def compute_single_modality(
    rows: list[dict], ceiling: dict[str, float] | None, params: EvaluateClassifierConfig
) -> dict[str, Any]:
    """The score from one input, beside its ceiling if that is known."""
    score = compute_task_metrics(rows, params)["score"]
    value, error = score["value"], score["standard_error"]
    if ceiling is None:
        return {"value": value, "standard_error": error}
    bounds = params.max_below_ceiling, params.max_above_ceiling_standard_errors
    return {"value": value} | compare_to_ceiling(value, error, ceiling["realised"], *bounds)


def count_correct_labels(row: dict) -> dict[str, int]:
    return {"right": int(row["gold"] == row["predicted"]), "predicted": 1, "gold": 1}
