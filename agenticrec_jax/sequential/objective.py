"""Objectives: the items that each position's state is scored against, and the loss of the scores.

Axes: A positions (``*A``: any leading axes), D embedding, I items of the catalog, M negatives.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.errors import expect
from agenticrec_jax.losses.reductions import Metrics
from agenticrec_jax.sequential.fields import number, set_fields, whole
from agenticrec_jax.sequential.losses import (
    bce_loss,
    bpr_loss,
    gbce_loss,
    sampled_softmax_loss,
    softmax_loss,
)
from agenticrec_jax.sequential.sequences import PAD

SAMPLED_LOSSES = ("sampled_softmax", "gbce", "bce", "bpr")  # losses over drawn negatives
LOSSES = ("softmax", *SAMPLED_LOSSES)


@dataclass(frozen=True)
class Objective:
    """A loss of `losses` with its draw of negatives.

    Attributes:
      loss: ``softmax`` scores the whole catalog. ``sampled_softmax`` draws negatives uniformly with
        replacement, once a batch for all its positions, so that they are scored by one matrix
        product. ``gbce``, ``bce`` and ``bpr`` draw negatives of each position, uniformly with
        replacement from the items but its target.
      negatives: number of negatives M; not used by ``softmax``.
      calibration: of ``gbce``, from 0 (``bce``) to 1 (scores calibrated as those of a softmax).

    Raises:
      InputError: a field is out of its range.
    """

    loss: str = "softmax"
    negatives: int = 256
    calibration: float = 0.75

    def __post_init__(self):
        is_known = isinstance(self.loss, str) and self.loss in LOSSES
        expect(is_known, "loss", self.loss, f"one of {', '.join(LOSSES)}")
        calibration = number("calibration", self.calibration)
        expect(calibration <= 1, "calibration", calibration, "0 to 1")
        set_fields(self, negatives=whole("negatives", self.negatives), calibration=calibration)

    def __call__(
        self,
        table: Float[Array, "I D"],
        states: Float[Array, "*A D"],
        targets: Int[Array, "*A"],
        weights: Float[Array, "*A"],
        key: Array,
        gather: bool = False,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss of states against the items' embeddings, and its metrics.

        Args:
          table: embeddings of the items.
          states: states of the positions.
          targets: code of the next item of each position.
          weights: weight of each position's loss.
          key: draws the negatives.
          gather: whether ``softmax`` gathers the targets' scores from the logits, and does not
            compute them from embeddings. That is slower, and equal but for rounding.

        Raises:
          InputError: ``gbce`` or ``bce`` of a catalog of one item, which has no other to draw.
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
        expect(len(table) > 1, f"items of a catalog with loss {self.loss}", len(table), "2 or more")
        drawn = draw_others(key, targets, self.negatives, len(table))
        negatives = jnp.einsum("...d,...md->...m", states, table[drawn])
        if self.loss == "bce":
            return bce_loss(positive, negatives, weights)
        if self.loss == "bpr":
            return bpr_loss(positive, negatives, weights)
        return gbce_loss(
            positive, negatives, weights, items=len(table), calibration=self.calibration
        )


def draw_others(
    key: Array, targets: Int[Array, "*A"], count: int, items: int
) -> Int[Array, "*A M"]:
    """Draws ``count`` codes for each position, uniform over the ``items`` codes but its target."""
    # Of I - 1 values, those from the target on move up by one: the target itself never comes.
    drawn = jax.random.randint(key, (*targets.shape, count), 0, items - 1)
    return drawn + (drawn >= targets[..., None])


def next_items(
    windows: Int[Array, "B W"],
) -> tuple[Int[Array, "B T"], Int[Array, "B T"], Bool[Array, "B T"]]:
    """Returns inputs, next items and the mask of positions with both, of training windows.

    Example:
      >>> inputs, targets, mask = next_items(jnp.array([[-1, 7, 3, 12]]))
      >>> inputs.tolist(), targets.tolist(), mask.tolist()
      ([[-1, 7, 3]], [[7, 3, 12]], [[False, True, True]])
    """
    inputs = windows[:, :-1]
    targets = windows[:, 1:]
    mask = (inputs != PAD) & (targets != PAD)
    return inputs, jnp.maximum(targets, 0), mask  # PAD is no row of a table: the mask takes it out


def pack(
    states: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    capacity: int,
) -> tuple[Float[Array, "A D"], Int[Array, "A"], Bool[Array, "A"]]:
    """Gathers the positions under the mask into the first of ``capacity`` rows.

    The rows after them are masked. ``capacity`` must be at least the number of positions under the
    mask: others are lost.

    Example:
      >>> mask = jnp.array([[False, True, True], [True, False, False]])
      >>> targets = jnp.array([[10, 11, 12], [13, 14, 15]])
      >>> _, packed, packed_mask = pack(jnp.zeros((2, 3, 8)), targets, mask, capacity=4)
      >>> packed[:3].tolist(), packed_mask.tolist()
      ([11, 12, 13], [True, True, True, False])
    """
    # ``size`` makes the shape static, so that batches with any number of targets share one program.
    [positions] = jnp.nonzero(mask.reshape(-1), size=capacity, fill_value=0)
    packed_mask = jnp.arange(capacity) < mask.sum()
    packed_states = states.reshape(-1, states.shape[-1])[positions]
    return packed_states, targets.reshape(-1)[positions], packed_mask
