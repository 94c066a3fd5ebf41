"""The coefficient of an entropy bonus: by hand, and on a policy that would decide too early."""

import math

import numpy as np
import pytest

from agenticrec_jax.losses import entropy_coefficient


@pytest.mark.parametrize(
    ("entropy", "expected"),
    [(0.25, 0.1 + 0.4 * 0.55), (0.8, 0.1), (1.0, 0.1 - 0.4 * 0.2), (3.0, 0.0), (math.nan, 0.1)],
)
def test_the_coefficient_by_hand(entropy, expected):
    assert entropy_coefficient(0.1, entropy, target=0.8, rate=0.4) == pytest.approx(expected)


def final_entropies(target, rate, steps=400):
    """Entropies of a softmax over four tools, of which one earns more, along exact gradients."""
    worth, logits, coefficient = np.array([0.8, 0.5, 0.5, 0.2]), np.zeros(4), 0.0
    entropies = []
    for _ in range(steps):
        law = np.exp(logits - logits.max())
        law /= law.sum()
        entropy = -(law * np.log(law)).sum()
        entropies.append(entropy)
        gradient = law * (worth - law @ worth)
        gradient -= coefficient * law * (np.log(law) + entropy)
        logits += 2 * gradient
        coefficient = entropy_coefficient(coefficient, entropy, target, rate)
    return entropies


def test_planted_entropy_tends_to_the_target_where_it_would_vanish():
    assert final_entropies(0.0, 0.0)[-1] < 0.05
    for target in (0.5, 1.0):
        np.testing.assert_allclose(final_entropies(target, 0.05)[-20:], target, atol=0.05)
