"""The logistic loss of Progressive Preference Refinement, AgenticRec's second stage.

Axis: B pairs. Source: AgenticRec (arXiv:2603.21613). The paper trains with the policy gradient of
Eq. 4, which is `losses.grpo_loss` on rollouts of questions about pairs, with the reward
`rewards.preference_reward`. The logistic form is that of its Proposition 2.
"""

import chex
import jax
from jaxtyping import Array, Float

from agenticrec_jax.losses.reductions import Metrics, metric


def bidirectional_logistic_loss(
    positive_scores: Float[Array, "B"],
    negative_scores: Float[Array, "B"],
    weights: Float[Array, "B"],
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``sum_b w_b * 2 log(1 + exp(-(s+ - s-)))`` (AgenticRec, Proposition 2).

    It is ``-log P(MORE picks c+) - log P(LESS picks c-)`` if the probability of either answer is
    the logistic function of the difference of scores. It is convex in that difference and bounds
    the pairwise ranking error: it is at least ``2 log 2 * 1[s+ < s-]``.

    Args:
      positive_scores: s+, score of the positive item of each pair.
      negative_scores: s-, score of the hard negative.
      weights: share of each pair in the batch.

    Returns:
      loss, and metrics over pairs of non-zero weight: ``preference_accuracy`` (s+ > s-) and
      ``preference_margin`` (s+ - s-).

    Example, one pair with a margin of 1:
      >>> import jax.numpy as jnp
      >>> loss, _ = bidirectional_logistic_loss(jnp.array([1.5]), jnp.array([0.5]), jnp.ones(1))
      >>> round(float(loss), 4)  # 2 log(1 + 1 / e)
      0.6265
    """
    chex.assert_rank(positive_scores, 1)
    chex.assert_equal_shape([positive_scores, negative_scores, weights])
    margin = positive_scores - negative_scores
    mask = weights != 0
    metrics = {
        "preference_accuracy": metric((margin > 0).astype(margin.dtype), mask),
        "preference_margin": metric(margin, mask),
    }
    return (weights * 2.0 * jax.nn.softplus(-margin)).sum(), metrics
