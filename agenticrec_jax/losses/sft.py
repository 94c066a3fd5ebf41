"""Supervised fine-tuning: cross-entropy of the tokens to imitate, from their log-probs.

Axes: P prompts, G demonstrations of a prompt, T tokens.
"""

import chex
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import Metrics, masked, metric


def sft_loss(
    logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    weights: Float[Array, "P G"],
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the cross-entropy ``-sum_pg w_pg * sum_t m_pgt * log pi_pgt``.

    RecThinker (arXiv:2603.09843) fine-tunes on its own successful trajectories with it.

    Args:
      logprobs: log-probs of each demonstration's tokens under the policy.
      sampled: m, the tokens to imitate. Observations and padding are False and have no gradient.
      weights: w, 1 / (tokens to imitate in the whole batch) for a mean over tokens; 0 for padding.

    Returns:
      loss, and the metric ``nll``, the negative log-likelihood of a token in nats.

    Example, a mean over two tokens:
      >>> import jax.numpy as jnp
      >>> logprobs = jnp.array([[[-1.0, -9.0, -2.0]]])
      >>> sampled = jnp.array([[[True, False, True]]])
      >>> loss, _ = sft_loss(logprobs, sampled, weights=jnp.array([[0.5]]))
      >>> float(loss)
      1.5
    """
    chex.assert_rank([logprobs, weights], [3, 2])
    chex.assert_equal_shape([logprobs, sampled])
    chex.assert_equal_shape([weights, sampled[..., 0]])
    per_member = masked(logprobs, sampled).sum(axis=-1)
    return -(weights * per_member).sum(), {"nll": metric(-logprobs, sampled)}
