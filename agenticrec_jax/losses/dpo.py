"""Direct preference optimization with one or several rejected answers.

Axes: B questions, R rejected answers, T tokens. Sources: DPO (arXiv:2305.18290, Eq. 7); S-DPO
(arXiv:2406.09215) for a softmax over several rejected answers, which is DPO for one.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.reductions import Metrics, masked, metric


def sequence_logprobs(
    logprobs: Float[Array, "*batch T"], sampled: Bool[Array, "*batch T"]
) -> Float[Array, "*batch"]:
    """Returns the log-prob of each answer: the sum over its tokens.

    Args:
      logprobs: log-probs of the tokens.
      sampled: the tokens of the answer; padding is False.

    Example:
      >>> print(sequence_logprobs(jnp.array([-1.0, -0.5, -9.0]), jnp.array([True, True, False])))
      -1.5
    """
    chex.assert_equal_shape([logprobs, sampled])
    return masked(logprobs, sampled).sum(axis=-1)


def softmax_dpo_loss(
    chosen: Float[Array, "B"],
    rejected: Float[Array, "B R"],
    reference_chosen: Float[Array, "B"],
    reference_rejected: Float[Array, "B R"],
    weights: Float[Array, "B"],
    valid: Bool[Array, "B R"] | None = None,
    *,
    beta: float = 1.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``-sum_b w_b * log sigmoid(-log sum_r exp(beta * (l_br - l_b)))`` (S-DPO).

    ``l`` is an answer's log-prob under the policy less that under the reference policy. With one
    rejected answer this is DPO's Eq. 7, ``-sum_b w_b * log sigmoid(beta * (l_b - l_b1))``.

    Args:
      chosen: log-prob of the preferred answer of each question, summed over its tokens.
      rejected: log-prob of each rejected answer.
      reference_chosen: log-prob of the preferred answer under the reference policy, a constant.
      reference_rejected: the same of each rejected answer.
      weights: share of each question in the batch.
      valid: mask of the rejected answers; all are valid if None. A question without any has no
        loss.
      beta: inverse strength of the deviation from the reference policy: the smaller, the farther
        the policy may go.

    Returns:
      loss, and metrics over questions of non-zero weight: ``preference_accuracy`` (the chosen
      answer has the highest l) and ``preference_margin``, beta times its lead over the next one.

    Example, ``l`` is .5 for the chosen answer and -.8 for the rejected one:
      >>> chosen, reference_chosen = jnp.array([-3.0]), jnp.array([-3.5])
      >>> rejected, reference_rejected = jnp.array([[-2.0]]), jnp.array([[-1.2]])
      >>> loss, metrics = softmax_dpo_loss(
      ...     chosen, rejected, reference_chosen, reference_rejected, jnp.ones(1), beta=0.3)
      >>> round(float(loss), 4)  # log(1 + exp(-.3 * 1.3))
      0.517
      >>> round(float(metrics["preference_margin"][0]), 2)
      0.39
    """
    chex.assert_rank([chosen, rejected], [1, 2])
    chex.assert_equal_shape([chosen, reference_chosen, weights, rejected[:, 0]])
    chex.assert_equal_shape([rejected, reference_rejected])
    valid = jnp.ones(rejected.shape, bool) if valid is None else valid
    lead = (rejected - reference_rejected) - (chosen - reference_chosen)[:, None]
    behind = jnp.where(valid, beta * lead, -jnp.inf)
    present = valid.any(axis=1)
    # softplus(logsumexp(x)) = log(1 + sum e^x) = logsumexp([0, x]). The latter is finite, and so is
    # its gradient, for a question without rejected answers, where every x is -inf.
    stacked = jnp.concatenate([jnp.zeros_like(behind[:, :1]), behind], axis=1)
    per_question = jax.nn.logsumexp(stacked, axis=1)
    margin = -jnp.where(present[:, None], behind, 0.0).max(axis=1)
    mask = (weights != 0) & present
    metrics = {
        "preference_accuracy": metric((margin > 0).astype(margin.dtype), mask),
        "preference_margin": metric(margin, mask),
    }
    return (weights * per_question).sum(), metrics
