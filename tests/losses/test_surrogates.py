"""Ratios, the clipped surrogate and truncated weights against hand-worked tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.losses.surrogates import clipped_surrogate, log_ratio, truncated_weights

SAMPLED = jnp.array([[[True, False, True], [True, True, False], [False, False, False]]])
LOGPROBS = jnp.log(jnp.array([[[0.5, 0.25, 0.9], [0.2, 0.8, 0.4], [0.1, 0.1, 0.1]]]))
RATIOS = jnp.array([[[1.5, 7.0, 0.5], [0.5, 2.0, 7.0], [3.0, 3.0, 3.0]]])


def test_a_token_has_its_own_ratio():
    actual = jnp.exp(log_ratio(LOGPROBS, LOGPROBS - jnp.log(RATIOS), SAMPLED))
    np.testing.assert_allclose(actual, jnp.where(SAMPLED, RATIOS, 1.0), rtol=1e-5)


def test_a_sequence_has_the_geometric_mean_of_its_tokens():
    actual = jnp.exp(log_ratio(LOGPROBS, LOGPROBS - jnp.log(RATIOS), SAMPLED, "sequence"))
    means = jnp.array([[[0.75**0.5], [1.0], [1.0]]])
    np.testing.assert_allclose(actual, jnp.where(SAMPLED, means, 1.0), rtol=1e-5)


def test_what_is_not_sampled_leaves_no_trace_in_a_sequence():
    garbage = jnp.where(SAMPLED, LOGPROBS, jnp.nan)

    def total(logprobs):
        return log_ratio(logprobs, LOGPROBS - 0.3, SAMPLED, "sequence").sum()

    gradient = jax.grad(total)(garbage)
    np.testing.assert_allclose(gradient, jnp.where(SAMPLED, 1.0, 0.0), rtol=1e-6)


#        ratio, advantage, objective, cut; bounds 1 - .1 and 1 + .3, dual 3
TABLE = [
    (1.5, 2.0, 2.6, True),  # likelier and good: bounded above
    (0.5, 2.0, 1.0, False),  # less likely and good: free
    (0.5, -1.0, -0.9, True),  # less likely and bad: bounded below
    (2.0, -1.0, -2.0, False),  # likelier and bad: free, below the dual bound
    (5.0, -1.0, -3.0, True),  # much likelier and bad: the dual bound
    (5.0, 2.0, 2.6, True),  # the dual bound is no matter of good ones
]


def test_clipping_by_hand():
    ratio, advantage, expected, cut = map(jnp.array, zip(*TABLE, strict=True))
    actual, where = clipped_surrogate(ratio, advantage, 0.1, 0.3, 3.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert where.tolist() == cut.tolist()
    slope = jax.grad(lambda r: clipped_surrogate(r, advantage, 0.1, 0.3, 3.0)[0].sum())(ratio)
    np.testing.assert_allclose(slope, jnp.where(cut, 0.0, advantage), rtol=1e-6)


def test_without_the_dual_bound_nothing_limits_a_bad_token():
    actual, cut = clipped_surrogate(jnp.array([5.0]), jnp.array([-1.0]), 0.1, 0.3)
    assert actual.tolist() == [-5.0] and cut.tolist() == [False]


def test_truncated_weights_by_hand_and_constant():
    difference = jnp.log(jnp.array([0.5, 1.0, 1.9, 4.0]))
    np.testing.assert_allclose(truncated_weights(difference, 1.9), [0.5, 1, 1.9, 1.9], rtol=1e-6)
    slope = jax.grad(lambda d: truncated_weights(d, 1.9).sum())(difference)
    assert slope.tolist() == [0.0] * 4


@pytest.mark.parametrize(("cap", "exact"), [(10.0, True), (1.1, False)])
def test_weights_turn_the_samplers_mean_into_the_learners(cap, exact):
    """The gradient over every token the sampler may draw; a cap that bites costs a bias."""
    with jax.enable_x64(True):
        logits, rewards = jnp.array([0.3, -0.5, 1.0]), jnp.array([1.0, -0.4, 0.2])
        sampler = jax.nn.log_softmax(jnp.array([0.1, 0.2, 0.4]))
        learner = jax.nn.log_softmax(logits)
        weights = jnp.exp(sampler) * truncated_weights(learner - sampler, cap)
        actual = jax.grad(lambda x: (weights * rewards * jax.nn.log_softmax(x)).sum())(logits)
        expected = jax.grad(lambda x: (jax.nn.softmax(x) * rewards).sum())(logits)
        assert np.allclose(actual, expected, atol=1e-12) == exact


def test_an_unknown_ratio_is_refused():
    with pytest.raises(ValueError, match="ratio.*'word'"):
        log_ratio(LOGPROBS, LOGPROBS, SAMPLED, "word")
