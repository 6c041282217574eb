"""What the preference phase of a run changed, in one sentence.

A phase that validation showed no gain of keeps SFT's weights. Both phases then have the same
metrics, and only this sentence says why.
"""

from dataclasses import dataclass
from typing import Any

NUM_STANDARD_ERRORS = 2.0  # a larger gain is sure
GAIN_LABELS = {
    "literal": "the literal reward",
    "semantic": "the semantic reward",
    "grounding": "grounding",
}


@dataclass(frozen=True)
class PreferencePhase:
    """`preference` in the summary.json of the stage `predict`."""

    name: str  # of the paper's objective
    kept_sft_weights: bool
    without_gain: str  # the reason for keeping them


def describe_outcome(phase: PreferencePhase, gains: dict[str, dict[str, float]]) -> str:
    """One sentence: that SFT's weights were kept, or which gains are sure.

    gains: of the test split, see `reward_gains.compute_gains`
    """
    if phase.kept_sft_weights:
        return f"{phase.name} kept SFT's weights: {phase.without_gain}."
    gains = {name: gain for name, gain in gains.items() if name in GAIN_LABELS}
    sure = [_describe_gain(name, gain) for name, gain in gains.items() if _is_sure(gain)]
    unsure = [GAIN_LABELS[name] for name, gain in gains.items() if not _is_sure(gain)]
    clauses = [f"{phase.name} {' and '.join(sure)}"] if sure else []
    if unsure:
        subject = "it" if sure else phase.name
        clauses.append(f"{subject} changed {_join(unsure)} by at most two standard errors")
    return f"{'; '.join(clauses)}."


def _is_sure(gain: dict[str, Any]) -> bool:
    # NaN, of a single record, is never sure.
    return abs(gain["value"]) > NUM_STANDARD_ERRORS * gain["standard_error"]


def _describe_gain(name: str, gain: dict[str, float]) -> str:
    verb = "raised" if gain["value"] > 0 else "lowered"
    size = f"{abs(gain['value']):.3f} (standard error {gain['standard_error']:.3f})"
    return f"{verb} {GAIN_LABELS[name]} by {size}"


def _join(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
