"""PolishPPO, the second half of TIPPo (arXiv:2511.21698, section 2.2): from rewards to a loss.

    G_m = gamma^m R_literal + gamma^(M - m) R_semantic, step m of M      section 2.2  total_return
    A = (G_m - mu_m) / (delta_m + 1e-8)                                  eq. 6        advantage
    mean min(r A, clip(r) A) over tokens, r = p / p_old                  section 2.2  policy_loss

Where the paper is silent or does not work: gamma^m and gamma^(M - m) vanish for most of its 20,000
steps; exponents are rescaled to K m / M and K (1 - m / M) [discount]. delta, called a variance, is
a standard deviation [deviation]; it and mu are of the last returns [window]. An advantage that is
normalised needs no critic, and all tokens of a text share it. R is the number of written texts.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, minimum

from stages.shared.stage import WrongInput

EPSILON = 1e-8  # eq. 6


@dataclass(frozen=True)
class Preference:
    gamma: float
    discount: Literal["progress", "literal"]
    discount_steps: float
    literal: Literal["normalised", "raw"]
    semantic: str
    window: int
    deviation: Literal["std", "variance"]
    clip: float
    epochs: int
    kl: float
    rollouts: int
    temperature: float
    max_kl: float
    min_entropy: float
    max_length_change: float

    def __post_init__(self) -> None:
        faults = {
            "gamma must be above 0, at most 1": not 0 < self.gamma <= 1,
            "window must be 2 or more: one return has no deviation": self.window < 2,
            "epochs and rollouts must be 1 or more": min(self.epochs, self.rollouts) < 1,
            "temperature must be above 0: texts are drawn": self.temperature <= 0,
        }
        if found := [fault for fault, here in faults.items() if here]:
            raise WrongInput(f"models.tippo.preference: {'; '.join(found)}")


def discounts(step: float, steps: float, preference: Preference) -> tuple[float, float]:
    """What R_literal and R_semantic weigh at step m of M.

    With the paper's own exponents, both 1.7e-223 at half of its 20,000 steps: 0 in fp32.
    """
    before, after = step, steps - step
    if preference.discount == "progress":
        before, after = (preference.discount_steps * part / steps for part in (before, after))
    return preference.gamma**before, preference.gamma**after


def total_return(
    literal: Tensor, semantic: Tensor, step: float, steps: float, preference: Preference
) -> Tensor:
    """G_m of each text at step m of M.  (R,), (R,) -> (R,)"""
    of_literal, of_semantic = discounts(step, steps, preference)
    return of_literal * literal + of_semantic * semantic


def advantage(returns: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    """How far above the last returns, in their deviations.  (R,) -> (R,)"""
    return (returns - mean) / (deviation + EPSILON)  # eq. 6


def distance(new: Tensor, reference: Tensor) -> Tensor:
    """Of each token: q - log q - 1, q = p_SFT / p, an estimate of KL(policy, SFT) never below 0."""
    apart = reference - new
    return apart.exp() - apart - 1


def policy_loss(
    new: Tensor,
    old: Tensor,
    reference: Tensor,
    advantage: Tensor,
    mask: Tensor,
    preference: Preference,
) -> dict[str, Tensor]:
    """PPO's clipped objective (arXiv:1707.06347, eq. 7), and the distance from the SFT model.

    new, old, reference (R, Y): log p of each written token by the policy, by what it was when it
    wrote, by the SFT model; advantage (R,); mask (R, Y): tokens that were written. Means are over
    tokens.
    """
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - preference.clip, 1 + preference.clip)
    gain = minimum(ratio * advantage[:, None], clipped * advantage[:, None])
    return {
        "policy": -(gain * mask).sum() / mask.sum(),
        "kl": preference.kl * (distance(new, reference) * mask).sum() / mask.sum(),
    }
