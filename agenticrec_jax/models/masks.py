"""Attention masks: a new token sees earlier new tokens of its segment and the context before them.

Axis letters: B rows, P prompts (B = P * G), G group, T new tokens, Q queries (T, or 1), S cached
positions, K key heads, H head width, L layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class KV(NamedTuple):
    """Keys (after rotation and q/k norm) and values: one array [B, S, K, H] per layer.

    A model that scans its layers has one array [L, B, S, K, H] of each.
    """

    k: tuple[Float[Array, "B S K H"], ...] | Float[Array, "L B S K H"]
    v: tuple[Float[Array, "B S K H"], ...] | Float[Array, "L B S K H"]


class Context(NamedTuple):
    """Cached positions that new tokens attend to: each valid one precedes all new tokens.

    A context of P prompts serves B = P * G rows: rows ``p*G .. p*G+G-1`` read entry ``p``. With
    ``owner`` its entries are spans of the rows' positions, any number of each row's, of which each
    serves one row.

    Attributes:
      kv: keys and values, in any layout.
      valid: which positions hold a token.
      view: returns one layer's keys and values as [P, S, K, H]. The model calls it inside its loop
        over layers, because a view of all layers ahead of the loop would be a copy of the cache.
        The third argument is the layer's input: a view that depends on it is not computed early.
      owner: row of each span; a number that is no row for padding. None for prompts.
    """

    kv: KV
    valid: Bool[Array, "P S"]
    view: Callable[[Any, Any, Array], tuple[Array, Array]] = lambda k, v, x: (k, v)
    owner: Int[Array, " P"] | None = None


class Masks(NamedTuple):
    """Masks of the new tokens and cached positions that each new token may see.

    A new token sees the valid new tokens up to itself in its segment, and all valid context. A row
    of four tokens, of which the third is padding and the fourth begins another segment:

    >>> masks = Masks(jnp.array([[1, 1, 0, 1]], bool), jnp.array([[0, 0, 0, 1]]))
    >>> print(masks.causal[0].astype(int))
    [[1 0 0 0]
     [1 1 0 0]
     [1 1 0 0]
     [0 0 0 1]]

    Only the query at index 1 is needed, say to sample after a prompt of two tokens:

    >>> print(masks._replace(query_index=jnp.array([1])).causal[0].astype(int))
    [[1 1 0 0]]

    Attributes:
      valid: False for padding.
      segments: numbers of packed sequences, 0 or above; None for one sequence a row.
      context: valid cached positions; None without a context.
      query_index: index of the one new token of each row that is a query; None if all are.
      owner: ``Context.owner``.
    """

    valid: Bool[Array, "B T"]
    segments: Int[Array, "B T"] | None = None
    context: Bool[Array, "P S"] | None = None
    query_index: Int[Array, " B"] | None = None
    owner: Int[Array, " P"] | None = None

    def select_queries(self, x: Array) -> Array:
        """Returns the rows [B, Q, ...] of ``x`` [B, T, ...] that belong to queries."""
        if self.query_index is None:
            return x
        index = self.query_index.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.take_along_axis(x, index, axis=1)

    @property
    def causal(self) -> Bool[Array, "B Q T"]:
        """Mask among the new tokens: True where a query sees a key."""
        steps = jnp.arange(self.valid.shape[1])
        # Keys only: a query that is padding sees real keys, so that its softmax has a sum above 0
        # and stays finite.
        causal = (steps[:, None] >= steps) & self.valid[:, None, :]
        if self.segments is not None:
            causal &= self.segments[:, :, None] == self.segments[:, None, :]
        return self.select_queries(causal)
