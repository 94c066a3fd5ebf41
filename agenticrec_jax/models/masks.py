"""What a new token may see: earlier new tokens of its segment, and a context before all of them.

Axis letters: B rows, P prompts (B = P * G), T new tokens, S cached positions, K key heads, H head
width, L layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class KV(NamedTuple):
    """Keys (after rope and q/k norm) and values: one ``[B, S, K, H]`` array per layer.

    Of a model that scans its layers: one array each, ``[L, B, S, K, H]``.
    """

    k: tuple[Float[Array, "B S K H"], ...] | Float[Array, "L B S K H"]
    v: tuple[Float[Array, "B S K H"], ...] | Float[Array, "L B S K H"]


class Context(NamedTuple):
    """What new tokens attend to besides each other: every valid entry precedes all of them.

    A context of batch P serves B = P * G rows: rows ``p*G .. p*G+G-1`` read entry ``p``.
    ``view`` brings one layer's keys and values to ``[P, S, K, H]`` if they are kept otherwise: in
    the loop over layers, since ahead of it the whole of them would be copied. It is also given the
    stream that the layer reads, which it may wait for.
    """

    kv: KV
    valid: Bool[Array, "P S"]
    view: Callable[[Any, Any, Array], tuple[Array, Array]] = lambda k, v, x: (k, v)


class Masks(NamedTuple):
    """A new token sees valid new tokens up to itself in its segment, and all valid context.

    Segment numbers are not negative. With ``only``, one new token of each row asks, at that index.
    """

    valid: Bool[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    context: Bool[Array, "P S"] | None = None
    only: Int[Array, " B"] | None = None

    def asking(self, x: Array) -> Array:
        """The new tokens' ``x`` [B, T, ...] at those that ask, [B, 1, ...] with ``only``."""
        if self.only is None:
            return x
        index = self.only.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.take_along_axis(x, index, axis=1)

    @property
    def own(self) -> Bool[Array, "B Q T"]:
        """What each new token that asks sees among the new ones: Q is T, or 1 with ``only``."""
        steps = jnp.arange(self.valid.shape[1])
        own = (steps[:, None] >= steps) & self.valid[:, None, :]
        if self.segments is not None:
            own &= self.segments[:, :, None] == self.segments[:, None, :]
        return self.asking(own)
