"""Preference losses of groups: scores are summed over sampled tokens alone, the rest by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.losses.preferences import dpo_preference_loss, logistic_preference_loss

# Scores by hand: group 0 has -3 and -5, group 1 -4 and -1; group 2 is padding.
LOGPROBS = np.array(
    [
        [[-1.0, -2.0, -9.0], [-4.0, -1.0, np.nan]],
        [[-4.0, -9.0, -9.0], [-0.5, -0.25, -0.25]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]],
    ]
)
SAMPLED = np.array([[[1, 1, 0], [1, 1, 0]], [[1, 0, 0], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]], bool)
WEIGHTS = np.array([[0.5, 0.5], [0.25, 0.25], [0.0, 0.0]])
REFERENCE = np.where(SAMPLED, -1.0, 7.0)  # -2 and -2; -1 and -3; 7 is nowhere sampled


def means(metrics):
    return {name: float(total) / float(count) for name, (total, count) in metrics.items()}


def test_the_logistic_loss_by_hand():
    loss, metrics = logistic_preference_loss(*map(jnp.asarray, (LOGPROBS, SAMPLED, WEIGHTS)))
    expected = 0.5 * 2 * np.log(1 + np.exp(-2)) + 0.25 * 2 * np.log(1 + np.exp(3))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert means(metrics) == pytest.approx(
        {
            "preference_accuracy": 1 / 2,
            "preference_margin": (2 - 3) / 2,
            "logprob_chosen": (-3 - 4) / 2,
            "logprob_rejected": (-5 - 1) / 2,
        }
    )


def test_dpo_by_hand():
    arrays = map(jnp.asarray, (LOGPROBS, SAMPLED, WEIGHTS, REFERENCE))
    loss, metrics = dpo_preference_loss(*arrays, beta=0.3)
    # Over the reference: -1 and -3; -3 and 2.
    expected = 0.5 * np.log(1 + np.exp(-0.3 * 2)) + 0.25 * np.log(1 + np.exp(0.3 * 5))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert means(metrics) == pytest.approx(
        {
            "preference_accuracy": 1 / 2,
            "preference_margin": 0.3 * (2 - 5) / 2,
            "logprob_chosen": (-3 - 4) / 2,
            "logprob_rejected": (-5 - 1) / 2,
            "reward_chosen": 0.3 * (-1 - 3) / 2,
            "reward_rejected": 0.3 * (-3 + 2) / 2,
        }
    )


def test_several_rejected_answers_share_a_softmax():
    """Chosen -1 over the reference; rejected -2, 0 and -1: S-DPO, Eq. 11."""
    logprobs = jnp.array([[[-1.5], [-2.5], [-0.5], [-1.5]]])
    sampled, reference = jnp.ones((1, 4, 1), bool), jnp.full((1, 4, 1), -0.5)
    weights = jnp.full((1, 4), 0.8)
    loss, metrics = dpo_preference_loss(logprobs, sampled, weights, reference, beta=0.7)
    behind = np.log(np.exp(-0.7) + np.exp(0.7) + 1.0)
    np.testing.assert_allclose(loss, 0.8 * np.log(1 + np.exp(behind)), rtol=1e-6)
    mean_metrics = means(metrics)
    assert mean_metrics["preference_margin"] == pytest.approx(
        -0.7
    )  # against the best of the rejected
    assert mean_metrics["reward_rejected"] == pytest.approx(0.7 * (-2 + 0 - 1) / 3)


def test_a_beta_that_prefers_nothing_is_refused():
    arrays = map(jnp.asarray, (LOGPROBS, SAMPLED, WEIGHTS, REFERENCE))
    with pytest.raises(ValueError, match="beta.*0.0"):
        dpo_preference_loss(*arrays, beta=0.0)
