"""Wiring of a loss of arrays to a batch."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from agenticrec_jax.losses.grpo import grpo_loss
from agenticrec_jax.losses.reductions import for_batch, metric

BATCH = SimpleNamespace(
    sampled=jnp.array([[[True, True, False]]]),
    advantages=jnp.array([[2.0]]),
    weights=jnp.array([[0.5]]),
    behavior_logprobs=jnp.zeros((1, 1, 3)),
    reference_logprobs=None,
    advantage_of_nobody=jnp.array([[9.0]]),
)
LOGPROBS = jnp.array([[[-1.0, -2.0, -4.0]]])


def test_fields_reach_parameters_by_name():
    loss, _ = for_batch(grpo_loss, normalizer=5.0)(LOGPROBS, BATCH)
    np.testing.assert_allclose(loss, 0.5 * 2.0 * 3.0 / 5.0)


def test_an_option_wins_over_a_field_and_over_a_default():
    loss, _ = for_batch(grpo_loss, normalizer=5.0, weights=jnp.array([[1.0]]))(LOGPROBS, BATCH)
    np.testing.assert_allclose(loss, 2.0 * 3.0 / 5.0)
    with pytest.raises(ValueError, match="kl_coef.*reference_logprobs"):
        for_batch(grpo_loss, normalizer=5.0, kl_coef=0.1)(LOGPROBS, BATCH)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="grpo_loss.*clip_middle"):
        for_batch(grpo_loss, normalizer=5.0, clip_middle=0.1)


def test_a_users_own_loss_needs_no_base_class():
    def reward_weighted(logprobs, advantages, sampled):
        """Maximum likelihood of the members above their baseline."""
        better = sampled & (advantages > 0)[..., None]
        return -(jnp.where(better, logprobs, 0.0)).sum(), {"better": metric(logprobs, better)}

    loss, metrics = for_batch(reward_weighted)(LOGPROBS, BATCH)
    assert float(loss) == 3.0
    assert [float(x) for x in metrics["better"]] == [-3.0, 2.0]
