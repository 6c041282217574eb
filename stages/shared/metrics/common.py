"""Standard errors, skill and bands around ceilings: what every score of the pipeline is given with."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

PHASES = ["preference", "sft"]  # the first that a run has is its final one
METRIC_DIGITS = 6  # of a figure in a file of metrics


def evenly_spaced_indices(count: int, at_most: int) -> list[int]:
    """At most so many of the places 0 to count - 1, evenly spaced."""
    chosen = min(at_most, count)
    return [i * count // chosen for i in range(chosen)]


def clustered_standard_error(values: list[float], clusters: list[str]) -> float:
    """Standard error of the mean where the values of a cluster (chunks of an article) go together.

    sqrt(G / (G - 1) sum_g (sum_{i in g} (y_i - mean))^2) / n; with clusters of one it is the usual
    s / sqrt(n). Not a number with one cluster.
    """
    mean, sums = float(np.mean(values)), defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    if len(sums) < 2:
        return math.nan
    correction = len(sums) / (len(sums) - 1)
    return math.sqrt(correction * sum(total**2 for total in sums.values())) / len(values)


def compute_skill(score: float, error: float, ceilings: dict[str, float]) -> dict:
    """How much of what only all inputs together allow was reached; 1 is all of it, 0 none.

    (score - best single ceiling) / (both - best single ceiling); ceilings: by inputs, `both` and
    one or more single ones. They are those of the same items, so they carry no error of their own:
    the standard error is the score's, scaled. Not a number where one input allows all.
    """
    single = max(value for inputs, value in ceilings.items() if inputs != "both")
    room = ceilings["both"] - single
    if not room > 0:
        return {"value": math.nan, "standard_error": math.nan}
    return {"value": (score - single) / room, "standard_error": error / room}


def compare_to_ceiling(
    score: float, error: float, ceiling: float, below: float, above: float
) -> dict[str, Any]:
    """A score from one input beside its realised ceiling: below, it learns too little; above,
    something leaks. Inside: from ceiling - `below` to ceiling + `above` standard errors."""
    low, high = ceiling - below, ceiling + above * error
    return {
        "standard_error": error,
        "ceiling": ceiling,
        "low": low,
        "high": high,
        "verdict": "below" if score < low else "above" if score > high else "inside",
    }


def round_metrics(value: Any) -> Any:
    """Floats rounded, for diffs that read well; what is not a number is `unavailable`."""
    if isinstance(value, dict):
        return {key: round_metrics(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return "unavailable" if math.isnan(value) else round(value, METRIC_DIGITS)
    return value


def flatten_metrics(result: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """The numbers of nested metrics under dotted names, for MLflow."""
    for key, value in result.items():
        if isinstance(value, dict):
            yield from flatten_metrics(value, f"{prefix}{key}.")
        elif not isinstance(value, str):
            yield f"{prefix}{key}", float(value)
