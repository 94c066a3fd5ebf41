"""A context whose keys and values lie in pages, which a forward pass also writes.

The cache of all layers is one pool of pages. A page has a fixed number of positions of one row (or
of all members of a group, as far as their prompt goes). The table of a row lists its pages in
order: with pages of 16 tokens, position 37 is place 5 of the third page in the row's table.

Other contexts are only read, and the caller stores the new keys and values afterwards. Here each
layer stores them before it attends, so that the pool is written in place and a kernel that reads
pages finds the new tokens in them.

Axis letters: B rows, T new tokens, S cached positions, N pages of a row's table, P pages of the
pool, L layers, K key heads, H head width.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

KeysAndValues = tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedContext:
    """Pages that new tokens attend to and are stored in.

    Attributes:
      pool: pages of all layers, in the form that ``write`` and ``read`` know. Plain numbers are one
        array [P, L, page, 2K, H] with keys and values in turns: k of head 0, v of head 0, k of
        head 1, and so on.
      table: pages of each row; entries beyond a row's pages are any page's.
      length: positions of each row that are in its pages, before the new tokens.
      written: new tokens that are stored; the others have no page.
      layer: the layer that reads and writes.
      page_tokens: positions of a page.
      empty: whether every length is 0, so that new tokens attend to each other alone.
      write: (pool, layer, pages, places, k, v) -> pool with new tokens [B, T, K, H] at ``places``
        of ``pages`` [B, T]; a page that is out of range drops the token.
      read: (pool, layer, table, x) -> keys and values of a table's pages [B, N * page, K, H].
    """

    pool: Any
    table: Int[Array, "B N"]
    length: Int[Array, " B"]
    written: Bool[Array, "B T"]
    layer: int | Int[Array, ""] = 0
    page_tokens: int = dataclasses.field(default=0, metadata={"static": True})
    empty: bool = dataclasses.field(default=False, metadata={"static": True})
    write: Callable[..., Any] = dataclasses.field(default=None, metadata={"static": True})
    read: Callable[..., KeysAndValues] = dataclasses.field(default=None, metadata={"static": True})

    @property
    def valid(self) -> Bool[Array, "B S"] | None:
        """Positions of the table's pages that are before the new tokens; None if it is empty."""
        if self.empty:
            return None
        return jnp.arange(self.table.shape[1] * self.page_tokens) < self.length[:, None]

    def at_layer(self, layer: int | Int[Array, ""]) -> "PagedContext":
        """Returns the context of another layer."""
        return dataclasses.replace(self, layer=layer)

    def store(self, k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]) -> "PagedContext":
        """Returns the context with the new tokens of its layer in the pages."""
        positions = self.length[:, None] + jnp.arange(k.shape[1])
        # Of a token that is not stored the position may lie beyond the table.
        index = jnp.minimum(positions // self.page_tokens, self.table.shape[1] - 1)
        pages = jnp.take_along_axis(self.table, index, axis=1)
        pages = jnp.where(self.written, pages, jnp.iinfo(jnp.int32).max)
        places = positions % self.page_tokens
        pool = self.write(self.pool, self.layer, pages, places, k, v)
        return dataclasses.replace(self, pool=pool)

    def gather(self, x: Float[Array, "B ..."]) -> KeysAndValues:
        """Returns a copy of the layer's keys and values; ``x`` as of ``Context.view``."""
        return self.read(self.pool, self.layer, self.table, x)
