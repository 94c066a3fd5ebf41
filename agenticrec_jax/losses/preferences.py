"""Preference losses of groups of fixed answers: member 0 is the preferred answer of its prompt.

Axes: P prompts, G members, T tokens. An answer's score is its log-prob, summed over its tokens.
What the answers of a prompt begin with alike has no gradient: only where they part are they told
apart. Sources: `losses.ppr` and `losses.dpo`, whose losses these are.
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

    Of a pair asked both ways, with weights 1 / (2 pairs), the two questions have
    ``-log P(MORE picks c+) - log P(LESS picks c-)`` together (`bidirectional_logistic_loss`).

    Args:
      logprobs: of the answers' tokens.
      sampled: the tokens of an answer; padding is False.
      weights: share of each question in the batch, the same for its members; 0 for padding.

    Returns:
      loss, and metrics over questions of non-zero weight: ``preference_accuracy``,
      ``preference_margin``, and the mean scores ``logprob_chosen`` and ``logprob_rejected``.
    """
    scores = _scores(logprobs, sampled, weights)
    loss, metrics = bidirectional_logistic_loss(scores[:, 0], scores[:, 1], weights[:, 0])
    return loss, metrics | _sides("logprob", scores, weights)


def dpo_preference_loss(
    logprobs: Float[Array, "P G T"],
    sampled: Bool[Array, "P G T"],
    weights: Float[Array, "P G"],
    reference_logprobs: Float[Array, "P G T"],
    *,
    beta: float,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns `softmax_dpo_loss` of member 0 against all others: DPO for two members, else S-DPO.

    Args:
      logprobs, sampled, weights: as in `logistic_preference_loss`.
      reference_logprobs: of the same tokens under the reference policy, constants.
      beta: how far the policy may go from the reference, above 0.

    Returns:
      loss, and metrics as `logistic_preference_loss` has them, of which accuracy and margin are of
      the rewards, ``beta`` times the log-prob less the reference's; and the mean rewards
      ``reward_chosen`` and ``reward_rejected``.

    Raises:
      ValueError: if beta is not above 0.
    """
    if beta <= 0:
        raise ValueError(f"beta is {beta}, expected above 0")
    scores = _scores(logprobs, sampled, weights)
    reference = _scores(reference_logprobs, sampled, weights)
    answers = scores[:, 0], scores[:, 1:], reference[:, 0], reference[:, 1:]
    loss, metrics = softmax_dpo_loss(*answers, weights[:, 0], beta=beta)
    rewards = _sides("reward", beta * (scores - reference), weights)
    return loss, metrics | _sides("logprob", scores, weights) | rewards


def _scores(
    logprobs: Float[Array, "P G T"], sampled: Bool[Array, "P G T"], weights: Float[Array, "P G"]
) -> Float[Array, "P G"]:
    chex.assert_rank([logprobs, weights], [3, 2])
    chex.assert_equal_shape([weights, sampled[..., 0]])
    return sequence_logprobs(logprobs, sampled)


def _sides(name: str, values: Float[Array, "P G"], weights: Float[Array, "P G"]) -> Metrics:
    mask = weights != 0
    return {
        f"{name}_chosen": metric(values[:, :1], mask[:, :1]),
        f"{name}_rejected": metric(values[:, 1:], mask[:, 1:]),
    }
