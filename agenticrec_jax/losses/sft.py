"""Supervised fine-tuning: cross-entropy of the tokens to imitate, from their log-probs."""

import chex
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import Metrics, masked, metric


def sft_loss(
    logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    weights: Float[Array, "P G"],
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``-sum_pg w_pg * sum_t m_pgt * log pi_pgt`` and the metric ``nll`` per token.

    Args:
      logprobs: of the tokens of each demonstration.
      sampled: the tokens to imitate; observations and padding are False and get no gradient.
      weights: 1 / (tokens to imitate in the whole batch) for a mean over tokens; 0 for padding.
    """
    chex.assert_rank([logprobs, weights], [3, 2])
    chex.assert_equal_shape([logprobs, sampled])
    chex.assert_equal_shape([weights, sampled[..., 0]])
    per_member = masked(logprobs, sampled).sum(axis=-1)
    return -(weights * per_member).sum(), {"nll": metric(-logprobs, sampled)}
