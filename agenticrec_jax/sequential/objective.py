"""SASRec's objectives: which items each place's state is scored against, and by which loss."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.errors import InputError
from agenticrec_jax.losses.reductions import Metrics
from agenticrec_jax.sequential.losses import (
    bce_loss,
    gbce_loss,
    sampled_softmax_loss,
    softmax_loss,
)

DRAWING = ("sampled_softmax", "gbce", "bce")  # losses over drawn negatives
LOSSES = ("softmax", *DRAWING)


@dataclass(frozen=True)
class Objective:
    """A loss of `losses.next_item` with how its negatives are drawn.

    Attributes:
      loss: ``softmax`` over the catalog; ``sampled_softmax`` over negatives that are drawn
        uniformly with replacement, once a batch for all its places, so that scoring them is one
        matrix product; ``gbce`` or ``bce``, whose negatives each place draws uniformly from the
        items but its target, with replacement.
      negatives: how many are drawn; not used by ``softmax``.
      calibration: of ``gbce``: 0 is ``bce``, 1 calibrates scores as a softmax does.
    """

    loss: str = "softmax"
    negatives: int = 256
    calibration: float = 0.75

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise InputError(f"loss: found {self.loss!r}, expected one of {', '.join(LOSSES)}")
        if self.negatives < 1:
            raise InputError(f"negatives: found {self.negatives}, expected at least 1")
        if not 0 <= self.calibration <= 1:
            raise InputError(f"calibration: found {self.calibration}, expected 0 to 1")

    def __call__(
        self,
        table: Float[Array, "I D"],
        states: Float[Array, "*P D"],
        targets: Int[Array, "*P"],
        weights: Float[Array, "*P"],
        key: Array,
        gather: bool = False,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of places' states against the items' embeddings, and its metrics.

        ``gather``: ``softmax`` takes the targets' scores from the logits, not from embeddings. That
        is slower and the same but for rounding.
        """
        if self.loss == "softmax" and gather:
            return softmax_loss(states @ table.T, targets, weights)
        positive = (states * table[targets]).sum(axis=-1)
        if self.loss == "softmax":
            return softmax_loss(states @ table.T, targets, weights, positive)
        if self.loss == "sampled_softmax":
            drawn = jax.random.randint(key, (self.negatives,), 0, len(table))
            valid = drawn != targets[..., None]
            log_expected = jnp.log(self.negatives / len(table))
            negatives = states @ table[drawn].T
            return sampled_softmax_loss(positive, negatives, weights, valid, log_expected)
        drawn = draw_others(key, targets, self.negatives, len(table))
        negatives = jnp.einsum("...d,...kd->...k", states, table[drawn])
        if self.loss == "bce":
            return bce_loss(positive, negatives, weights)
        options = {"items": len(table), "calibration": self.calibration}
        return gbce_loss(positive, negatives, weights, **options)


def draw_others(
    key: Array, targets: Int[Array, "*P"], count: int, items: int
) -> Int[Array, "*P K"]:
    """``count`` codes for each place, uniform over the ``items`` but its target."""
    drawn = jax.random.randint(key, (*targets.shape, count), 0, items - 1)
    return drawn + (drawn >= targets[..., None])


def pack(
    states: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    capacity: int,
) -> tuple[Float[Array, "P D"], Int[Array, "P"], Bool[Array, "P"]]:
    """The places under the mask in one row of ``capacity`` places; the rest of it is masked.

    ``capacity`` must be at least the number of places under the mask: others are lost.
    """
    [places] = jnp.nonzero(mask.reshape(-1), size=capacity, fill_value=0)
    found = jnp.arange(capacity) < mask.sum()
    return states.reshape(-1, states.shape[-1])[places], targets.reshape(-1)[places], found
