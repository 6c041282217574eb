"""What every reader's scores share: the params, the ceilings, the figures of a task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.shared.core import schemas
from stages.shared.metrics import classification as classification_metrics
from stages.shared.metrics.common import beside_ceiling
from stages.shared.runtime.stage import WrongInput

Ceilings = dict[str, dict[str, float]]  # inputs -> expected | realised -> value


@dataclass(frozen=True)
class Params:
    draws: int
    seed: int
    ceiling_below: float
    ceiling_above: float

    def __post_init__(self) -> None:
        """Raises WrongInput if there are too few draws to spread."""
        if self.draws < 2:
            raise WrongInput(f"params.yaml: score.draws is {self.draws}: give 2 or more")


def read_ceilings(ingest: Path) -> dict[str, Any]:
    """{"metric", split: Ceilings} of a sample corpus; empty of any other."""
    path = ingest / "ceilings.json"
    return schemas.read_json(path) if path.exists() else {}


def task_figures(rows: list[dict], params: Params) -> dict[str, Any]:
    """Every figure of these rows' task; `score` is the one that ceilings and readers compare by."""
    gold, predicted = ([row[side] for row in rows] for side in ("gold", "predicted"))
    if rows[0]["task"] == "entities":
        found = classification_metrics.entities(gold, predicted)
        figures = classification_metrics.entity_scores(found, params.draws, params.seed)
        value, error = figures["lenient"]["f1"], figures["lenient"]["standard_error"]
        score = {"metric": "f1", "rule": "lenient", "value": value, "standard_error": error}
        return {"score": score, **figures, "measured_by": classification_metrics.MEASURED_BY}
    labels = ([label for (label,) in side] for side in (gold, predicted))
    figures = classification_metrics.class_scores(*labels, params.draws, params.seed)
    return {"score": {"metric": "accuracy", **figures["accuracy"]}, **figures}


def single_modality(
    rows: list[dict], ceiling: dict[str, float] | None, params: Params
) -> dict[str, Any]:
    """The score from one input, beside its ceiling if that is known."""
    score = task_figures(rows, params)["score"]
    value, error = score["value"], score["standard_error"]
    if ceiling is None:
        return {"value": value, "standard_error": error}
    bounds = params.ceiling_below, params.ceiling_above
    return {"value": value} | beside_ceiling(value, error, ceiling["realised"], *bounds)


def label_counts(row: dict) -> dict[str, int]:
    return {"right": int(row["gold"] == row["predicted"]), "predicted": 1, "gold": 1}
