"""What the losses share: how they sum, what a metric is, how a batch reaches them.

Axes: P prompts, G members of a prompt's group, T completion tokens.

Every loss is *additive*: a sum over members of ``weights[p, g]`` times the member's own loss. The
weights carry the denominator of the whole batch (`losses.aggregation`; by default
``1 / (prompts * G)`` over the nominal count, dropped groups included), so the losses and gradients
of micro-batches simply add up, whatever their size. A metric is a pair ``(sum, count)`` for the
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
    """Returns values where mask holds and 0 elsewhere, with no gradient through the rest."""
    return jnp.where(mask, values, 0.0)


def metric(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> tuple[Array, Array]:
    """Returns (sum, count) of values under the mask, cut off from the gradient."""
    values = jax.lax.stop_gradient(masked(values, mask))
    return values.sum(), mask.sum().astype(jnp.float32)


def for_batch(loss: Callable[..., tuple[Array, Metrics]], **options: Any) -> LossFn:
    """Turns a loss of arrays into ``loss_fn(logprobs, batch)``, the form the learner takes.

    Parameters are wired by name: each parameter of ``loss`` after ``logprobs`` that is a field of
    the batch gets that field, the others get ``options`` or keep their default.

    Raises:
      TypeError: if ``loss`` has no parameter of an option's name.
    """
    names = list(signature(loss).parameters)[1:]
    if unknown := sorted(set(options) - set(names)):
        raise TypeError(f"{loss.__name__} has no option {', '.join(unknown)}")

    def loss_fn(logprobs: Array, batch: Any) -> tuple[Array, Metrics]:
        fields = {n: getattr(batch, n) for n in names if n not in options and hasattr(batch, n)}
        return loss(logprobs, **fields, **options)

    return loss_fn
