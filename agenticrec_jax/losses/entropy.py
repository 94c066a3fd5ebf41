"""An entropy target: the coefficient of an entropy bonus follows the entropy that is measured.

Source: the automatic temperature of soft actor-critic (arXiv:1812.05905, Eq. 18), a dual ascent on
the constraint that the entropy is at least the target; here without its logarithm, on a part of the
tokens.
"""

import math


def entropy_coefficient(coefficient: float, entropy: float, target: float, rate: float) -> float:
    """Returns ``max(0, coefficient + rate * (target - entropy))``.

    The coefficient rises while the entropy is below the target, and falls to 0 while it is above:
    a policy that is undecided enough gets no bonus, and never a penalty.

    Args:
      coefficient: of the last update.
      entropy: measured in it, in nats; NaN if no token was measured, which changes nothing.
      target: in nats.
      rate: rise of the coefficient for a lack of 1 nat.

    Example:
      >>> entropy_coefficient(0.5, entropy=0.25, target=0.75, rate=0.5)
      0.75
      >>> entropy_coefficient(0.5, entropy=2.25, target=0.75, rate=0.5)
      0.0
    """
    if math.isnan(entropy):
        return coefficient
    return max(0.0, coefficient + rate * (target - entropy))
