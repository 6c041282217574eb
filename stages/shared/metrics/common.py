"""Standard errors, skill and ceilings, which every score of the pipeline is reported with."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

PHASES = ["preference", "sft"]  # the first phase that a run has is its final phase
METRIC_DIGITS = 6  # decimals of the numbers in a metrics file
SURE_STANDARD_ERRORS = 2  # a larger difference is sure


def evenly_spaced_indices(count: int, max_count: int) -> list[int]:
    """At most `max_count` of the indices 0 to count - 1, evenly spaced."""
    size = min(max_count, count)
    return [i * count // size for i in range(size)]


def clustered_standard_error(values: list[float], clusters: list[str]) -> float:
    """Standard error of the mean of values that are correlated within clusters.

    A cluster is, for example, the chunks of one article:
    sqrt(G / (G - 1) sum_g (sum_{i in g} (y_i - mean))^2) / n. With clusters of size one this is the
    usual s / sqrt(n). NaN if there is only one cluster.
    """
    mean, sums = float(np.mean(values)), defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    if len(sums) < 2:
        return math.nan
    correction = len(sums) / (len(sums) - 1)
    return math.sqrt(correction * sum(total**2 for total in sums.values())) / len(values)


def bootstrap_standard_errors(
    counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int
) -> np.ndarray:
    """Bootstrap standard errors of statistics of summed counts or scores.  (items, ...) -> (S,)

    Each of `draws` samples consists of as many items as there are, drawn with replacement.
    statistic: (draws, ...) -> (draws, S). All NaN for a single item.
    """
    items, shape = len(counts), counts.shape[1:]
    flat, generator = counts.reshape(items, -1), np.random.default_rng(seed)
    multiplicities = (
        np.bincount(generator.integers(items, size=items), minlength=items) for _ in range(draws)
    )
    totals = np.array([times @ flat for times in multiplicities]).reshape(draws, *shape)
    errors = statistic(totals).std(axis=0, ddof=1)
    return errors if items > 1 else np.full_like(errors, np.nan)


def compute_skill(score: float, error: float, ceilings: dict[str, float]) -> dict:
    """The part of the gain from combining all inputs that was reached: 0 is none of it, 1 all.

    (score - best single ceiling) / (both - best single ceiling). `ceilings` maps `both` and one or
    more single inputs to their ceilings. They are computed on the same items and therefore have no
    error of their own, so the standard error is that of the score, scaled. NaN if a single input
    already allows the highest score.
    """
    single = max(value for inputs, value in ceilings.items() if inputs != "both")
    room = ceilings["both"] - single
    if not room > 0:
        return {"value": math.nan, "standard_error": math.nan}
    return {"value": (score - single) / room, "standard_error": error / room}


def compare_to_ceiling(
    score: float, error: float, ceiling: float, below: float, above: float
) -> dict[str, Any]:
    """Compare a score from one input with the realised ceiling of that input.

    A score below the band means that the model learns too little, a score above it that
    information leaks. The band is from ceiling - `below` to ceiling + `above` standard errors.
    """
    low, high = ceiling - below, ceiling + above * error
    return {
        "standard_error": error,
        "ceiling": ceiling,
        "low": low,
        "high": high,
        "verdict": "below" if score < low else "above" if score > high else "inside",
    }


def judge_difference(difference: dict[str, float]) -> str:
    """better | worse if the difference is larger than two standard errors, else unclear."""
    margin = SURE_STANDARD_ERRORS * difference["standard_error"]
    if abs(difference["value"]) > margin:  # false if the error is NaN
        return "better" if difference["value"] > 0 else "worse"
    return "unclear"


def describe_difference(model: str, other: str, difference: dict[str, float]) -> str:
    """One sentence; the number in parentheses is the standard error."""
    value, error = difference["value"], difference["standard_error"]
    if error != error:  # NaN
        return f"{model} cannot be compared with {other}: there is only one item."
    match judge_difference(difference):
        case "better":
            return f"{model} beats {other} by {value:.3f} ({error:.3f})."
        case "worse":
            return f"{model} is below {other} by {-value:.3f} ({error:.3f})."
    return f"{model} does not differ surely from {other}: {value:+.3f} ({error:.3f})."


def round_metrics(value: Any) -> Any:
    """Round all floats, for readable diffs, and replace NaN with `unavailable`."""
    if isinstance(value, dict):
        return {key: round_metrics(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return "unavailable" if math.isnan(value) else round(value, METRIC_DIGITS)
    return value


def flatten_metrics(metrics: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """The numbers of nested metrics under dotted names, for MLflow."""
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from flatten_metrics(value, f"{prefix}{key}.")
        elif not isinstance(value, str):
            yield f"{prefix}{key}", float(value)
