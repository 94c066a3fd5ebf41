"""Losses of sequential recommenders: the next item's score against all items' or drawn ones'.

Axes: A positions that have a next item (``*A``: any leading axes), I items of the catalog,
M negatives.

Every loss is a sum over positions of ``weights`` times the position's loss. Weights of 1 divided by
the number of positions give the mean, and weight 0 leaves a position out.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.losses.reductions import Metrics, masked, metric


def softmax_loss(
    logits: Float[Array, "*A I"],
    targets: Int[Array, "*A"],
    weights: Float[Array, "*A"],
    positive: Float[Array, "*A"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the cross-entropy of a softmax over the whole catalog.

    Klenitskiy and Vasilev (RecSys 2023, arXiv:2309.07602) train SASRec with it.

    Args:
      logits: score of every item.
      targets: code of the next item.
      weights: weight of each position.
      positive: the targets' scores, if they are known. They are then not gathered from the logits,
        which spares the gradient a scatter into an array as large.

    Returns:
      The loss, and the metric ``nll`` over positions of non-zero weight.

    Example:
      A target that scores 1 beside three items of 0: log(e + 3) - 1 = 0.7437.

      >>> loss, _ = softmax_loss(jnp.array([[0.0, 1.0, 0.0, 0.0]]), jnp.array([1]), jnp.ones(1))
      >>> round(float(loss), 4)
      0.7437
    """
    chex.assert_equal_shape([targets, weights, logits[..., 0]])
    if positive is None:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    else:
        chex.assert_equal_shape([positive, weights])
        losses = jax.nn.logsumexp(logits, axis=-1) - positive
    return _weighted_sum(losses, weights, nll=losses)


def sampled_softmax_loss(
    positive: Float[Array, "*A"],
    negatives: Float[Array, "*A M"],
    weights: Float[Array, "*A"],
    valid: Bool[Array, "*A M"] | None = None,
    log_expected: Float[Array, "*M"] | float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the cross-entropy of a softmax over the target and drawn negatives, corrected.

    A negative stands for all items like it, so its score is lowered by the log of its expected
    count in the draw (the log-q correction of Bengio and Senecal, 2008; Jean et al., ACL 2015,
    arXiv:1412.2007, Sec. 3). The sum of exponentials is then an unbiased estimate of the sum over
    the other items. With every other item drawn once it is that sum. The positive is always in the
    sum and needs no correction.

    Args:
      positive: score of the next item.
      negatives: scores of the drawn items.
      weights: weight of each position.
      valid: False where a drawn item is the target itself; None: all are valid.
      log_expected: log of each negative's expected count among the M. For M uniform draws with
        replacement from I items it is log(M / I) for each.

    Returns:
      The loss, and metrics over positions of non-zero weight: ``nll`` of the target among the
      drawn, corrected; ``first``, 1 where the target's score is above those of all the drawn.

    Example:
      Two draws from seven items stand for 3.5 items each. With a target of score 1 and negatives of
      score 0 the loss is log(e + 2 * 3.5) - 1 = 1.274.

      >>> loss, _ = sampled_softmax_loss(
      ...     jnp.ones(1), jnp.zeros((1, 2)), jnp.ones(1), log_expected=jnp.log(2 / 7)
      ... )
      >>> round(float(loss), 4)
      1.274
    """
    valid = _check_shapes(positive, negatives, weights, valid)
    corrected = jnp.where(valid, negatives - log_expected, -jnp.inf)
    scores = jnp.concatenate([positive[..., None], corrected], axis=-1)
    losses = jax.nn.logsumexp(scores, axis=-1) - positive
    return _weighted_sum(losses, weights, nll=losses, first=_is_first(positive, negatives, valid))


def gbce_loss(
    positive: Float[Array, "*A"],
    negatives: Float[Array, "*A M"],
    weights: Float[Array, "*A"],
    valid: Bool[Array, "*A M"] | None = None,
    *,
    items: int,
    calibration: float,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the generalized binary cross-entropy of gSASRec.

    Petrov and Macdonald (RecSys 2023, arXiv:2308.07192): with M drawn of the I - 1 other items,
    plain BCE is overconfident. The positive's probability is raised to
    ``beta = a * (t * (1 - 1/a) + 1/a)``, which is ``1 - t * (1 - a)``, with the sampling rate
    ``a = M / (I - 1)``. With the logistic function s a position's loss is
    ``-(beta * log s(pos) + sum_m log(1 - s(neg_m))) / (1 + M)``.

    Args:
      positive: score of the next item.
      negatives: scores of the drawn items.
      weights: weight of each position.
      valid: False where a drawn item is not counted; None: all are. The division is by 1 + M
        always.
      items: I of the catalog.
      calibration: t, from 0 (plain BCE) to 1 (scores calibrated as those of a softmax).

    Returns:
      The loss, and the metrics ``bce`` and ``first`` over positions of non-zero weight.

    Example:
      Ten draws of a hundred others are a rate of .1, so with t = .75 beta is .325. Where all scores
      are 0 the loss is (.325 + 10) * log(2) / 11 = .6506.

      >>> loss, _ = gbce_loss(
      ...     jnp.zeros(1), jnp.zeros((1, 10)), jnp.ones(1), items=101, calibration=0.75
      ... )
      >>> round(float(loss), 4)
      0.6506
    """
    valid = _check_shapes(positive, negatives, weights, valid)
    count = negatives.shape[-1]
    beta = 1 - calibration * (1 - count / (items - 1))
    # -log s(x) is softplus(-x) and -log(1 - s(x)) is softplus(x), without overflow at large |x|.
    negative_losses = masked(jax.nn.softplus(negatives), valid).sum(axis=-1)
    losses = (beta * jax.nn.softplus(-positive) + negative_losses) / (1 + count)
    return _weighted_sum(losses, weights, bce=losses, first=_is_first(positive, negatives, valid))


def bce_loss(
    positive: Float[Array, "*A"],
    negatives: Float[Array, "*A M"],
    weights: Float[Array, "*A"],
    valid: Bool[Array, "*A M"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the binary cross-entropy of Kang and McAuley (ICDM 2018, arXiv:1808.09781, Eq. 7).

    A position's loss is ``-(log s(pos) + sum_m log(1 - s(neg_m))) / (1 + M)``. The paper's has
    M = 1 and no division. Arguments and metrics are those of `gbce_loss`, of which this is the case
    without calibration.
    """
    return gbce_loss(positive, negatives, weights, valid, items=2, calibration=0.0)


def bpr_loss(
    positive: Float[Array, "*A"],
    negatives: Float[Array, "*A M"],
    weights: Float[Array, "*A"],
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the loss of Bayesian personalized ranking, the mean over a position's negatives.

    A position's loss is ``-1/M sum_m log s(pos - neg_m)`` with the logistic function s: BPR-Opt of
    Rendle et al. (UAI 2009, arXiv:1205.2618, Sec. 4.1) with M = 1, and the BPR of GRU4Rec (Hidasi
    et al., ICLR 2016, arXiv:1511.06939, Sec. 3.1.3) with more.

    Args:
      positive: score of the item that was taken.
      negatives: scores of the drawn items.
      weights: weight of each position.

    Returns:
      The loss, and the metrics ``bpr`` and ``first`` over positions of non-zero weight.

    Example:
      A target that scores 1 above its negative: -log s(1) = log(1 + 1/e) = .3133.

      >>> loss, _ = bpr_loss(jnp.ones(1), jnp.zeros((1, 1)), jnp.ones(1))
      >>> round(float(loss), 4)
      0.3133
    """
    valid = _check_shapes(positive, negatives, weights, None)
    losses = jax.nn.softplus(negatives - positive[..., None]).mean(axis=-1)
    return _weighted_sum(losses, weights, bpr=losses, first=_is_first(positive, negatives, valid))


def chain_divergence(
    logits: Float[Array, "*A S I"], weights: Float[Array, "*A"]
) -> Float[Array, ""]:
    """Returns how far the steps' distributions of the next item lie apart.

    That is the mean of ``KL(p_s || p_r)`` over the ordered pairs of different steps s and r, with
    no gradient through p_r, as in the code of ReaRec (Tang et al., 2025, arXiv:2503.22675).

    Args:
      logits: scores of all items after each of the S steps of a position.
      weights: weight of each position.

    Example:
      Two steps that are sure by 3 to 1 of different items: both divergences are
      .75 log 3 - .25 log 3 = .5493.

      >>> logits = jnp.log(jnp.array([[[0.75, 0.25], [0.25, 0.75]]]))
      >>> round(float(chain_divergence(logits, jnp.ones(1))), 4)
      0.5493
    """
    chex.assert_equal_shape([weights, logits[..., 0, 0]])
    steps = logits.shape[-2]
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    negative_entropy = (p * log_p).sum(axis=-1)
    crossed = jnp.einsum("...si,...ri->...sr", p, jax.lax.stop_gradient(log_p))
    divergences = negative_entropy[..., None] - crossed
    others = ~jnp.eye(steps, dtype=bool)
    mean = masked(divergences, others).sum(axis=(-2, -1)) / max(steps * (steps - 1), 1)
    return masked(mean * weights, weights != 0).sum()


def chain_contrast_loss(
    noisy: Float[Array, "A K D"],
    clean: Float[Array, "A K D"],
    weights: Float[Array, "A"],
    temperature: float,
) -> Float[Array, ""]:
    """Returns the contrast of noisy steps with the same steps without noise, the mean over K.

    A noisy step has to be told, by its inner products over ``temperature``, from the steps of the
    same number at all other positions (the contrast of ReaRec, Tang et al., 2025,
    arXiv:2503.22675): the cross-entropy of a softmax over the A positions of non-zero weight.

    Args:
      noisy: states of the steps with noise.
      clean: states of the steps.
      weights: weight of each position.
      temperature: divides the inner products.
    """
    chex.assert_equal_shape([noisy, clean])
    chex.assert_equal_shape([weights, clean[:, 0, 0]])
    similarity = jnp.einsum("akd,bkd->kab", noisy, clean) / temperature
    similarity = jnp.where(weights != 0, similarity, -jnp.inf)
    same = jnp.einsum("akd,akd->ka", noisy, clean) / temperature
    losses = (jax.nn.logsumexp(similarity, axis=-1) - same).mean(axis=0)
    return masked(losses * weights, weights != 0).sum()


def _check_shapes(positive, negatives, weights, valid) -> Bool[Array, "*A M"]:
    chex.assert_equal_shape([positive, weights, negatives[..., 0]])
    if valid is None:
        return jnp.ones(negatives.shape, bool)
    chex.assert_equal_shape([negatives, valid])
    return valid


def _weighted_sum(losses: Array, weights: Array, **values: Array) -> tuple[Array, Metrics]:
    counted = weights != 0
    metrics = {name: metric(value, counted) for name, value in values.items()}
    # Masked, not only multiplied: the loss of a position of weight 0 may be NaN.
    return masked(losses * weights, counted).sum(), metrics


def _is_first(positive, negatives, valid) -> Float[Array, "*A"]:
    """Returns 1 where the target's score is above every valid negative's: a tie counts against."""
    behind = (positive[..., None] > negatives) | ~valid
    return behind.all(axis=-1).astype(positive.dtype)
