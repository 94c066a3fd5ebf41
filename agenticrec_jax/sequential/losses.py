"""Losses of sequential recommenders: the next item's score against all items' or drawn ones'.

Axes: *P places that have a next item (any leading axes), I items of the catalog, K negatives.
Every loss is a sum over places of ``weights`` times the place's own loss, so weights of 1 divided
by the number of places give the mean, and weight 0 leaves a place out.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.losses.reductions import Metrics, masked, metric


def softmax_loss(
    logits: Float[Array, "*P I"],
    targets: Int[Array, "*P"],
    weights: Float[Array, "*P"],
    positive: Float[Array, "*P"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the cross-entropy of a softmax over the whole catalog.

    It is what Klenitskiy and Vasilev (RecSys 2023, arXiv:2309.07602) train SASRec with.

    Args:
      logits: score of every item.
      targets: code of the item that came next.
      weights: share of each place.
      positive: the targets' scores where they are at hand. They are then not gathered from the
        logits, which spares the gradient a scatter into an array as large.

    Returns:
      loss, and the metric ``nll`` over places of non-zero weight.
    """
    chex.assert_equal_shape([targets, weights, logits[..., 0]])
    if positive is None:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    else:
        chex.assert_equal_shape([positive, weights])
        losses = jax.nn.logsumexp(logits, axis=-1) - positive
    return _summed(losses, weights, nll=losses)


def sampled_softmax_loss(
    positive: Float[Array, "*P"],
    negatives: Float[Array, "*P K"],
    weights: Float[Array, "*P"],
    valid: Bool[Array, "*P K"] | None = None,
    log_expected: Float[Array, "*K"] | float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the cross-entropy of a softmax over the target and drawn negatives, corrected.

    A negative stands for all items like it, so its score is lowered by the log of how often it is
    expected in the draw (the log-q correction of Bengio and Senecal, 2008; Jean et al., ACL 2015,
    arXiv:1412.2007, Sec. 3). The sum of exponentials is then an unbiased estimate of the sum over
    the other items, and with every other item drawn once it is that sum. The positive is in the
    sum always and needs no correction.

    Args:
      positive: score of the item that came next.
      negatives: scores of the drawn items.
      weights: share of each place.
      valid: False where a drawn item is the target itself; all valid if None.
      log_expected: log of how often each negative is expected among the K; for K uniform draws
        with replacement from I items it is log(K / I) for each.

    Returns:
      loss, and the metrics ``nll`` (of the target among the drawn, corrected) and ``first`` (the
      target's score is above those of all the drawn) over places of non-zero weight.
    """
    valid = _check(positive, negatives, weights, valid)
    corrected = jnp.where(valid, negatives - log_expected, -jnp.inf)
    everything = jnp.concatenate([positive[..., None], corrected], axis=-1)
    losses = jax.nn.logsumexp(everything, axis=-1) - positive
    return _summed(losses, weights, nll=losses, first=_first(positive, negatives, valid))


def gbce_loss(
    positive: Float[Array, "*P"],
    negatives: Float[Array, "*P K"],
    weights: Float[Array, "*P"],
    valid: Bool[Array, "*P K"] | None = None,
    *,
    items: int,
    calibration: float,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the generalized binary cross-entropy of Petrov and Macdonald (RecSys 2023).

    Drawing K of the I - 1 others makes plain BCE overconfident. The positive's probability is
    raised to ``beta = a * (t * (1 - 1/a) + 1/a)``, which is ``1 - t * (1 - a)``, with the sampling
    rate ``a = K / (I - 1)`` (gSASRec, arXiv:2308.07192):
    ``-(beta * log s(pos) + sum_k log(1 - s(neg_k))) / (1 + K)`` with the logistic s.

    Args:
      positive, negatives, weights, valid: see `sampled_softmax_loss`; K is divided by whole even
        where a negative is not valid.
      items: I of the catalog.
      calibration: t from 0 (plain BCE) to 1 (scores calibrated as those of a softmax).

    Returns:
      loss, and the metrics ``bce`` and ``first`` over places of non-zero weight.
    """
    valid = _check(positive, negatives, weights, valid)
    count = negatives.shape[-1]
    beta = 1 - calibration * (1 - count / (items - 1))
    against = masked(jax.nn.softplus(negatives), valid).sum(axis=-1)
    losses = (beta * jax.nn.softplus(-positive) + against) / (1 + count)
    return _summed(losses, weights, bce=losses, first=_first(positive, negatives, valid))


def bce_loss(
    positive: Float[Array, "*P"],
    negatives: Float[Array, "*P K"],
    weights: Float[Array, "*P"],
    valid: Bool[Array, "*P K"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the binary cross-entropy of Kang and McAuley (ICDM 2018, arXiv:1808.09781, Eq. 7).

    ``-(log s(pos) + sum_k log(1 - s(neg_k))) / (1 + K)``; theirs has K = 1 and no division.
    Arguments and metrics are those of `gbce_loss`, which it is without calibration.
    """
    return gbce_loss(positive, negatives, weights, valid, items=2, calibration=0.0)


def _check(positive, negatives, weights, valid) -> Bool[Array, "*P K"]:
    chex.assert_equal_shape([positive, weights, negatives[..., 0]])
    if valid is None:
        return jnp.ones(negatives.shape, bool)
    chex.assert_equal_shape([negatives, valid])
    return valid


def _summed(losses: Array, weights: Array, **values: Array) -> tuple[Array, Metrics]:
    found = weights != 0
    metrics = {name: metric(value, found) for name, value in values.items()}
    return masked(losses * weights, found).sum(), metrics


def _first(positive, negatives, valid) -> Float[Array, "*P"]:
    """1 where the target's score is above every valid negative's: a tie counts against it."""
    behind = (positive[..., None] > negatives) | ~valid
    return behind.all(axis=-1).astype(positive.dtype)
