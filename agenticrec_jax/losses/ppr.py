"""Progressive Preference Refinement: the second stage's loss in both of its forms.

Source: AgenticRec (arXiv:2603.21613), Eq. 4 for the policy-gradient form, which is what the paper
trains with, and Proposition 2 for the logistic expression that explains it.
"""

import chex
import jax
from jaxtyping import Array, Float

from agenticrec_jax.losses.grpo import grpo_loss
from agenticrec_jax.losses.reductions import Metrics, metric

# Eq. 4 is GRPO over questions about pairs: only the reward differs (`rewards.preference_reward`).
preference_policy_loss = grpo_loss


def bidirectional_logistic_loss(
    positive_scores: Float[Array, "B"],
    negative_scores: Float[Array, "B"],
    weights: Float[Array, "B"],
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``sum_b w_b * 2 log(1 + exp(-(s+ - s-)))``.

    It is ``-log P(MORE picks c+) - log P(LESS picks c-)`` when both answers follow the logistic of
    the difference of scores; it is convex in that difference and bounds the pairwise ranking error:
    at least ``2 log 2 * 1[s+ < s-]`` (Proposition 2).

    Args:
      positive_scores: s+ of the positive item of each pair.
      negative_scores: s- of the hard negative.
      weights: share of each pair in the batch.

    Returns:
      loss, and metrics over pairs of non-zero weight: ``preference_accuracy`` (s+ > s-) and
      ``preference_margin`` (s+ - s-).
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
