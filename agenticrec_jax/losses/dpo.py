"""Direct preference optimization, with one rejected answer or with several.

Axes: B questions, N rejected answers, T tokens. Sources: DPO (arXiv:2305.18290, Eq. 7); S-DPO
(arXiv:2406.09215) for a softmax over several, which for one is DPO.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import Metrics, masked, metric


def sequence_logprobs(
    logprobs: Float[Array, "*batch T"], sampled: Bool[Array, "*batch T"]
) -> Float[Array, "*batch"]:
    """Returns the log-prob of each answer: the sum over its tokens."""
    chex.assert_equal_shape([logprobs, sampled])
    return masked(logprobs, sampled).sum(axis=-1)


def dpo_loss(
    chosen: Float[Array, "B"],
    rejected: Float[Array, "B"],
    reference_chosen: Float[Array, "B"],
    reference_rejected: Float[Array, "B"],
    weights: Float[Array, "B"],
    *,
    beta: float = 0.1,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``-sum_b w_b * log sigmoid(beta * (l_chosen - l_rejected))``.

    ``l`` is an answer's log-prob under the policy less that under the reference policy. Arguments
    and metrics are those of `softmax_dpo_loss`.
    """
    chex.assert_rank(rejected, 1)
    return softmax_dpo_loss(
        chosen, rejected[:, None], reference_chosen, reference_rejected[:, None], weights, beta=beta
    )


def softmax_dpo_loss(
    chosen: Float[Array, "B"],
    rejected: Float[Array, "B N"],
    reference_chosen: Float[Array, "B"],
    reference_rejected: Float[Array, "B N"],
    weights: Float[Array, "B"],
    valid: Bool[Array, "B N"] | None = None,
    *,
    beta: float = 1.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``-sum_b w_b * log sigmoid(-log sum_n exp(beta * (l_bn - l_b)))``.

    ``l`` is an answer's log-prob under the policy less that under the reference policy.

    Args:
      chosen: log-prob of the preferred answer of each question, summed over its tokens.
      rejected: of each of the other answers.
      reference_chosen, reference_rejected: the same under the reference policy, constants.
      weights: share of each question in the batch.
      valid: the rejected answers that there are; all of them if None. A question without any has no
        loss.
      beta: how far the policy may go from the reference: the smaller, the farther.

    Returns:
      loss, and metrics over questions of non-zero weight: ``preference_accuracy`` (the chosen
      answer has the highest l) and ``preference_margin``, beta times its lead over the next one.
    """
    chex.assert_rank([chosen, rejected], [1, 2])
    chex.assert_equal_shape([chosen, reference_chosen, weights, rejected[:, 0]])
    chex.assert_equal_shape([rejected, reference_rejected])
    valid = jnp.ones(rejected.shape, bool) if valid is None else valid
    lead = (rejected - reference_rejected) - (chosen - reference_chosen)[:, None]
    behind = jnp.where(valid, beta * lead, -jnp.inf)
    present = valid.any(axis=1)
    # softplus(logsumexp(x)) = log(1 + sum e^x), whose sum of no terms is 0, with its gradient
    stacked = jnp.concatenate([jnp.zeros_like(behind[:, :1]), behind], axis=1)
    per_question = jax.nn.logsumexp(stacked, axis=1)
    margin = -jnp.where(present[:, None], behind, 0.0).max(axis=1)
    mask = (weights != 0) & present
    metrics = {
        "preference_accuracy": metric((margin > 0).astype(margin.dtype), mask),
        "preference_margin": metric(margin, mask),
    }
    return (weights * per_question).sum(), metrics
