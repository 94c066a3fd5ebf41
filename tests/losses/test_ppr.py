"""The preference losses: Proposition 2 and hand-worked values."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.losses.advantages import group_advantages
from agenticrec_jax.losses.grpo import grpo_loss
from agenticrec_jax.losses.ppr import bidirectional_logistic_loss
from agenticrec_jax.rewards import preference_reward

scores = st.floats(-15, 15, allow_subnormal=False)


def loss_at(difference):
    """The loss of one pair of unit weight as a function of s+ - s-, in float64."""
    with jax.enable_x64(True):
        one = jnp.ones(1, jnp.float64)
        loss, _ = bidirectional_logistic_loss(one * difference + 0.7, one * 0.7, one)
    return float(loss)


def test_logistic_form_by_hand():
    positive, negative = jnp.array([1.0, 0.0, 5.0]), jnp.array([0.0, 2.0, 5.0])
    weights = jnp.array([0.5, 0.25, 0.0])
    loss, metrics = bidirectional_logistic_loss(positive, negative, weights)
    expected = 0.5 * 2 * np.log(1 + np.exp(-1)) + 0.25 * 2 * np.log(1 + np.exp(2))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert [float(x) for x in metrics["preference_accuracy"]] == [1.0, 2.0]
    assert [float(x) for x in metrics["preference_margin"]] == [-1.0, 2.0]


@settings(deadline=None)
@given(scores)
def test_logistic_form_is_both_questions_together(difference):
    more = 1 / (1 + np.exp(-difference))  # P(MORE picks c+) = P(LESS picks c-)
    np.testing.assert_allclose(loss_at(difference), -np.log(more) - np.log(more), rtol=1e-6)


@settings(deadline=None)
@given(scores)
def test_proposition_2_bounds_the_ranking_error(difference):
    assert loss_at(difference) >= 2 * np.log(2) * (difference < 0)
    assert loss_at(difference) > 0


@settings(deadline=None)
@given(scores, st.floats(0.01, 3))
def test_proposition_2_convex(difference, step):
    second = loss_at(difference + step) - 2 * loss_at(difference) + loss_at(difference - step)
    assert second > -1e-12
    assert abs(difference) > 10 or second > 0


def test_policy_form_is_group_relative_on_right_and_wrong():
    """One answer right, one wrong, one invalid: rewards, and advantages, of 1, 0 and -1."""
    answers = [preference_reward(True, True), preference_reward(False, True)]
    answers.append(preference_reward(True, valid=False))
    advantages = group_advantages(np.array([[answer.total for answer in answers]]))
    logprobs = jnp.log(jnp.array([[[0.5], [0.3], [0.2]]]))
    weights = jnp.full((1, 3), 1 / 3)
    gradient = jax.grad(
        lambda x: grpo_loss(
            x, jnp.ones((1, 3, 1), bool), advantages, weights, logprobs, normalizer=1.0
        )[0]
    )(logprobs)
    np.testing.assert_allclose(gradient[0, :, 0], [-1 / 3, 0.0, 1 / 3], atol=1e-6)
