"""Preference losses of groups of fixed answers: member 0 is the preferred answer of its prompt.

Axes: P prompts, G members, T tokens. An answer's score is its log-prob, summed over its tokens.
Tokens that all answers of a prompt begin with cancel: they have no gradient. The losses are those
of `losses.ppr` and `losses.dpo`, which name the sources.
"""

import chex
from jaxtyping import Array, Bool, Float

from agenticrec_jax.losses.dpo import sequence_logprobs, softmax_dpo_loss
from agenticrec_jax.losses.ppr import bidirectional_logistic_loss
from agenticrec_jax.losses.reductions import Metrics, metric


def logistic_preference_loss(
    logprobs: Float[Array, "P 2 T"], sampled: Bool[Array, "P 2 T"], weights: Float[Array, "P 2"]
) -> tuple[Float[Array, ""], Metrics]:
    """Returns ``sum_p w_p * 2 log(1 + exp(-(s_p0 - s_p1)))`` of questions with two answers.

    This is `losses.bidirectional_logistic_loss` (AgenticRec, arXiv:2603.21613, Proposition 2). A
    pair gives two questions, MORE and LESS. With weights of 1 / (2 pairs) their losses add up to
    ``-log P(MORE picks c+) - log P(LESS picks c-)``.

    Args:
      logprobs: log-probs of the answers' tokens under the policy.
      sampled: the tokens of each answer; padding is False.
      weights: share of each question in the batch, the same for its members; 0 for padding.

    Returns:
      loss, and metrics over questions of non-zero weight: ``preference_accuracy``,
      ``preference_margin``, and the mean scores ``logprob_chosen`` and ``logprob_rejected``.

    Example, one question whose answers have log-probs of -1.5 and -2.5:
      >>> import jax.numpy as jnp
      >>> logprobs = jnp.array([[[-1.0, -0.5], [-1.0, -1.5]]])
      >>> loss, _ = logistic_preference_loss(logprobs, jnp.ones((1, 2, 2), bool), jnp.ones((1, 2)))
      >>> round(float(loss), 4)  # 2 log(1 + 1 / e)
      0.6265
    """
    scores = _scores(logprobs, sampled, weights)
    loss, metrics = bidirectional_logistic_loss(scores[:, 0], scores[:, 1], weights[:, 0])
    return loss, metrics | _means("logprob", scores, weights)


def dpo_preference_loss(
    logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    weights: Float[Array, "P G"],
    reference_logprobs: Float[Array, "P G T"],
    *,
    beta: float,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns `losses.softmax_dpo_loss` of member 0 against all others.

    It is DPO (arXiv:2305.18290, Eq. 7) for two members, S-DPO (arXiv:2406.09215) for more.

    Args:
      logprobs: log-probs of the answers' tokens under the policy.
      sampled: the tokens of each answer; padding is False.
      weights: share of each question in the batch, the same for its members; 0 for padding.
      reference_logprobs: log-probs of the same tokens under the reference policy, constants.
      beta: inverse strength of the deviation from the reference policy, above 0.

    Returns:
      loss, and the metrics of `logistic_preference_loss`, of which accuracy and margin are those of
      the implicit rewards: ``beta`` times the log-prob less the reference's. The mean rewards are
      ``reward_chosen`` and ``reward_rejected``.

    Raises:
      ValueError: beta is not above 0.

    Example, the answers' log-probs are .5 above and .8 below the reference policy's:
      >>> import jax.numpy as jnp
      >>> logprobs, reference = jnp.array([[[-3.0], [-2.0]]]), jnp.array([[[-3.5], [-1.2]]])
      >>> sampled, weights = jnp.ones((1, 2, 1), bool), jnp.ones((1, 2))
      >>> loss, metrics = dpo_preference_loss(logprobs, sampled, weights, reference, beta=0.3)
      >>> round(float(loss), 4)  # log(1 + exp(-.3 * 1.3))
      0.517
      >>> [round(float(metrics[f"reward_{name}"][0]), 2) for name in ("chosen", "rejected")]
      [0.15, -0.24]
    """
    if beta <= 0:
        raise ValueError(f"beta is {beta}, expected above 0")
    scores = _scores(logprobs, sampled, weights)
    reference = _scores(reference_logprobs, sampled, weights)
    loss, metrics = softmax_dpo_loss(
        chosen=scores[:, 0],
        rejected=scores[:, 1:],
        reference_chosen=reference[:, 0],
        reference_rejected=reference[:, 1:],
        weights=weights[:, 0],
        beta=beta,
    )
    rewards = _means("reward", beta * (scores - reference), weights)
    return loss, metrics | _means("logprob", scores, weights) | rewards


def _scores(
    logprobs: Float[Array, "P G T"], sampled: Bool[Array, "P G T"], weights: Float[Array, "P G"]
) -> Float[Array, "P G"]:
    chex.assert_rank([logprobs, weights], [3, 2])
    chex.assert_equal_shape([weights, sampled[..., 0]])
    return sequence_logprobs(logprobs, sampled)


def _means(name: str, values: Float[Array, "P G"], weights: Float[Array, "P G"]) -> Metrics:
    """Returns the metrics ``NAME_chosen`` (member 0) and ``NAME_rejected`` (the others)."""
    mask = weights != 0
    return {
        f"{name}_chosen": metric(values[:, :1], mask[:, :1]),
        f"{name}_rejected": metric(values[:, 1:], mask[:, 1:]),
    }
