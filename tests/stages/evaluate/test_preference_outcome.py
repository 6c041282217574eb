"""The sentence about a preference phase: kept weights, sure gains and the others."""

import math

from stages.evaluate.preference_outcome import PreferencePhase, describe_outcome

PHASE = PreferencePhase("PolishPPO", False, "no reward rose")


def make_gains(**values: tuple[float, float]) -> dict[str, dict[str, float]]:
    """name=(value, standard error)"""
    return {
        name: {"value": value, "standard_error": error} for name, (value, error) in values.items()
    }


def test_kept_weights_are_named_with_their_reason():
    phase = PreferencePhase("PolishPPO", True, "no reward rose")
    gains = make_gains(literal=(0.0, 0.0), semantic=(0.0, 0.0))
    assert describe_outcome(phase, gains) == "PolishPPO kept SFT's weights: no reward rose."


def test_a_gain_is_sure_above_two_standard_errors():
    gains = make_gains(literal=(-0.0101, 0.005), semantic=(0.0079, 0.002), grounding=(0.01, 0.005))
    assert describe_outcome(PHASE, gains) == (
        "PolishPPO lowered the literal reward by 0.010 (standard error 0.005) and raised the "
        "semantic reward by 0.008 (standard error 0.002); it changed grounding by at most two "
        "standard errors."
    )


def test_without_a_sure_gain_all_of_them_are_named():
    gains = make_gains(literal=(0.01, 0.02), semantic=(0.01, 0.006), grounding=(0.0, 0.0))
    assert describe_outcome(PHASE, gains) == (
        "PolishPPO changed the literal reward, the semantic reward and grounding by at most two "
        "standard errors."
    )


def test_the_gain_of_a_single_article_is_never_sure():
    gains = make_gains(literal=(0.5, math.nan), semantic=(0.5, 0.1))
    assert describe_outcome(PHASE, gains) == (
        "PolishPPO raised the semantic reward by 0.500 (standard error 0.100); it changed the "
        "literal reward by at most two standard errors."
    )
