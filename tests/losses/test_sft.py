"""Masked cross-entropy by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from agenticrec_jax.losses.sft import sft_loss

LOGPROBS = jnp.log(jnp.array([[[0.5, 0.1, 0.25]], [[0.8, 0.9, 0.4]]]))
SAMPLED = jnp.array([[[True, False, True]], [[True, False, False]]])
WEIGHTS = jnp.full((2, 1), 1 / 3)


def test_mean_over_tokens_by_hand():
    loss, metrics = sft_loss(LOGPROBS, SAMPLED, WEIGHTS)
    expected = -(np.log(0.5) + np.log(0.25) + np.log(0.8)) / 3
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["nll"][0] / metrics["nll"][1], expected, rtol=1e-6)


def test_observations_get_no_gradient():
    gradient = jax.grad(lambda x: sft_loss(x, SAMPLED, WEIGHTS)[0])(
        jnp.where(SAMPLED, LOGPROBS, jnp.nan)
    )
    np.testing.assert_allclose(gradient, jnp.where(SAMPLED, -1 / 3, 0.0), rtol=1e-6)
