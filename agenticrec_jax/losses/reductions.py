"""Conventions of all losses: the sum over members, metrics, and the form that the learner calls.

Axes: P prompts, G members of a prompt's group, T completion tokens.

Every loss is *additive*: a sum over members of ``weights[p, g]`` times the member's loss. The
weights carry the denominator of the whole batch (`losses.aggregation`; by default
``1 / (prompts * G)`` over the nominal count, dropped groups included). Therefore the losses and
gradients of micro-batches add up, whatever their size. A metric is a pair ``(sum, count)`` for the
same reason.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Metrics = dict[str, tuple[Array, Array]]
LossFn = Callable[[Float[Array, "P G T"], Any], tuple[Float[Array, ""], Metrics]]


def masked(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the values where the mask is True and 0 elsewhere, without gradient there.

    A product with the mask would let NaN through, in the value and in the gradient.

    Example:
      >>> print(masked(jnp.array([1.5, jnp.nan]), jnp.array([True, False])))
      [1.5 0. ]
    """
    return jnp.where(mask, values, 0.0)


def metric(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> tuple[Array, Array]:
    """Returns (sum, count) of the values under the mask, without gradient.

    Example:
      >>> total, count = metric(jnp.array([1.5, 2.0, 9.0]), jnp.array([True, True, False]))
      >>> float(total), float(count)
      (3.5, 2.0)
    """
    values = jax.lax.stop_gradient(masked(values, mask))
    return values.sum(), mask.sum().astype(jnp.float32)


def for_batch(loss: Callable[..., tuple[Array, Metrics]], **options: Any) -> LossFn:
    """Turns a loss of arrays into ``loss_fn(logprobs, batch)``, the form that the learner calls.

    Parameters are wired by name: each parameter of ``loss`` after ``logprobs`` that is a field of
    the batch receives that field. The others receive ``options`` or keep their default.

    Args:
      loss: a function of ``logprobs`` and other arrays that returns (loss, metrics).
      options: keyword arguments of ``loss``.

    Returns:
      the loss as a function of log-probs and a batch.

    Raises:
      TypeError: ``loss`` has no parameter of an option's name.

    Example, a loss that reads two fields of the batch:
      >>> from types import SimpleNamespace
      >>> def scaled_nll(logprobs, sampled, weights, scale=1.0):
      ...     loss = -(weights * masked(logprobs, sampled).sum(axis=-1)).sum()
      ...     return scale * loss, {"nll": metric(-logprobs, sampled)}
      >>> loss_fn = for_batch(scaled_nll, scale=2.0)
      >>> batch = SimpleNamespace(sampled=jnp.ones((1, 1, 2), bool), weights=jnp.ones((1, 1)))
      >>> loss, metrics = loss_fn(jnp.array([[[-1.0, -0.5]]]), batch)
      >>> float(loss)
      3.0
    """
    names = list(signature(loss).parameters)[1:]
    if unknown := sorted(set(options) - set(names)):
        raise TypeError(f"{loss.__name__} has no option {', '.join(unknown)}")

    def loss_fn(logprobs: Array, batch: Any) -> tuple[Array, Metrics]:
        fields = {n: getattr(batch, n) for n in names if n not in options and hasattr(batch, n)}
        return loss(logprobs, **fields, **options)

    return loss_fn
