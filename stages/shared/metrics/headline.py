"""The headline of a run: the few metrics by which runs and experiments are compared.

headline.json is what DVC shows (`dvc metrics show`, `dvc exp show`); its keys are the same for all
models, so that the table of all runs stays narrow. MLflow also gets the metrics of
`TRACKED_METRICS`. All other metrics are in metrics.json.
"""

import json
from pathlib import Path
from typing import Any

from stages.shared.metrics.common import flatten_metrics

HEADLINE_FILE = "headline.json"
HEADLINE_DIGITS = 4  # decimals
TRACKED_METRICS = (  # dotted names in metrics.json; a model has at most 10 of them
    "meteor",
    "rouge_l",
    "cider",
    "bert_score",
    "rewards.literal",
    "rewards.semantic",
    "gain.literal.value",
    "gain.semantic.value",
    "foils.error",
    "validation.rouge_l",
    "accuracy.value",
    "weighted_f1.value",
    "macro_f1.value",
    "lenient.f1",
    "strict.f1",
    "spans.f1",
    "validation.score.value",
)


def select_headline(metrics: dict[str, Any]) -> dict[str, float | str]:
    """The headline of a run, from the content of its metrics.json.

    metric: name of the main score: of generators grounding or, without ceilings, the score that
    their baselines are compared by. score, se: its value and standard error. ceiling: the highest
    possible score. skill: see `compute_skill`; of captions the share of the ceiling. lead: the
    difference to the compared baseline, by the score in `baselines`. Keys that do not apply are
    left out.
    """
    baselines = metrics.get("baselines", {})
    if grounding := metrics.get("grounding"):
        score = grounding | {"metric": "grounding", "value": grounding["total"]}
    elif "score" in metrics:
        score = metrics["score"]
    else:
        score = baselines.get("model", {}) | {"metric": baselines.get("score")}
    ceilings = metrics.get("ceilings", {})
    ceiling = ceilings.get("both") or ceilings.get("picture") or {}
    skill = metrics.get("skill") or metrics.get("share_of_ceiling") or {}
    lead = baselines.get("comparison", {}).get("difference", {})
    values = {
        "score": score.get("value"),
        "se": score.get("standard_error"),
        "ceiling": ceiling.get("realised"),
        "skill": skill.get("value"),
        "lead": lead.get("value"),
    }
    numbers = {
        key: round(value, HEADLINE_DIGITS)
        for key, value in values.items()
        if isinstance(value, int | float)  # not "unavailable"
    }
    name = {"metric": score["metric"]} if score.get("metric") else {}
    return {**name, **numbers}


def select_tracked(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics of a run for MLflow, at most 15: the headline and `TRACKED_METRICS`."""
    values = dict(flatten_metrics(metrics))
    headline = dict(flatten_metrics(select_headline(metrics)))
    return headline | {name: values[name] for name in TRACKED_METRICS if name in values}


def write_headline(folder: Path, metrics: dict[str, Any]) -> None:
    """Write headline.json of a run into its folder."""
    text = json.dumps(select_headline(metrics), indent=2)
    (folder / HEADLINE_FILE).write_text(f"{text}\n", encoding="utf-8")
