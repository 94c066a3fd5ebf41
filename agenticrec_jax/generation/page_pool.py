"""Keys and values of all slots in one pool of pages.

A pool is one array [P, L, page, 2K, H] for all layers: keys and values of a position lie side by
side, in turns (k of head 0, v of head 0, k of head 1, ..), as JAX's paged attention on TPU reads
them. A page belongs to one row, or to several members of a group as far as their prompt goes; the
host decides which (`generation.pages`) and lists a row's pages in every dispatch.

With pages of 4 tokens, a prompt of 6 (p) and two members (a, b), each with 3 sampled tokens::

    page 7   p p p p      in the tables of both members: [7, 2, 9] and [7, 5, 3]
    page 2   p p a a      the first page in which they differ: each has its own copy
    page 5   p p b b
    page 9   a . . .
    page 3   b . . .      . left by an earlier row

The forward pass stores new tokens in the pages (`models.pages`). Numbers are stored as in
`kv_cache`: rounded once, when they are written.

Pages may be split over M ``shards`` of a mesh. Page numbers count within a shard, so reading and
writing never cross devices.

Axis letters: P pages, L layers, B rows of a dispatch, T time (new tokens), N pages of a table,
R prompts, K kv heads, H head width.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from agenticrec_jax.generation.kv_cache import (
    Stored,
    as_stored,
    by_shard,
    is_packed,
    widen,
    zeros,
)
from agenticrec_jax.models.masks import KV
from agenticrec_jax.models.pages import PagedContext


class Pool(NamedTuple):
    """Pages of keys and values.

    Attributes:
      pages: [P, L, page, 2K, H] in the form of the cache's dtype.
    """

    pages: Stored

    @property
    def page_tokens(self) -> int:
        """Positions of a page."""
        return jax.tree.leaves(self.pages)[0].shape[2]


def allocate(abstract: KV, pages: int, page_tokens: int, dtype: DTypeLike = "") -> Pool:
    """Returns a pool of zeros.

    Args:
      abstract: keys and values of one token, as the model gives them; shapes suffice.
      pages: number of pages, P.
      page_tokens: positions of a page.
      dtype: ``EngineConfig.cache_dtype``.
    """
    *_, heads, width = jax.tree.leaves(abstract)[0].shape
    given = jax.tree.leaves(abstract)[0].dtype
    layers = len(abstract.k) if isinstance(abstract.k, tuple) else abstract.k.shape[0]
    shape = (pages, layers, page_tokens, 2 * heads, width)
    return Pool(zeros(shape, given, dtype, width=-1))


def _in_turns(k: Float[Array, "... K H"], v: Float[Array, "... K H"]) -> Float[Array, "... 2K H"]:
    """Returns keys and values side by side, one head after the other."""
    joined = jnp.stack([k, v], axis=-2)
    return joined.reshape(*k.shape[:-2], -1, k.shape[-1])


def write(
    pages: Stored,
    layer: int | Int[Array, ""],
    at: Int[Array, "B T"],
    places: Int[Array, "B T"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    shards: int,
) -> Stored:
    """Returns the pages with one layer's new tokens; those of a page out of range are dropped."""

    def put_tokens(x: Array, at: Array, places: Array, y: Array) -> Array:
        return x.at[at, layer, places].set(y, mode="drop")

    new = as_stored(_in_turns(k, v), pages)
    return jax.tree.map(lambda x, y: by_shard(put_tokens, shards, x, at, places, y), pages, new)


def read(
    pages: Stored,
    layer: int | Int[Array, ""],
    table: Int[Array, "B N"],
    x: Float[Array, "B ..."],
    *,
    shards: int,
    dtype: str,
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Returns a copy of one layer's keys and values in the pages of each row, in ``dtype``."""

    def take_pages(x: Array, table: Array) -> Array:
        return x.at[table, layer].get(mode="clip")

    stored = jax.tree.map(lambda y: by_shard(take_pages, shards, y, table), pages)
    zero = 0.0
    if is_packed(stored):  # widened for this layer only: see `kv_cache.view`
        zero = 0 * x.reshape(len(x), -1)[:, :1, None, None, None].astype(jnp.float32)
    both = widen(stored, dtype, zero)
    rows, count, places, pairs, width = both.shape
    both = both.reshape(rows, count * places, pairs // 2, 2, width)
    return both[..., 0, :], both[..., 1, :]


def context(
    pool: Pool,
    table: Int[Array, "B N"],
    length: Int[Array, " B"],
    written: Bool[Array, "B T"],
    *,
    shards: int,
    dtype: str,
    empty: bool = False,
) -> PagedContext:
    """Returns the pages of rows as the context of a model of this ``dtype``.

    ``empty`` says that nothing is in the pages yet.
    """
    return PagedContext(
        pool=pool.pages,
        table=table,
        length=length,
        written=written,
        page_tokens=pool.page_tokens,
        empty=empty,
        write=functools.partial(write, shards=shards),
        read=functools.partial(read, shards=shards, dtype=dtype),
    )


def copy_pages(
    pool: Pool, sources: Int[Array, " C"], targets: Int[Array, " C"], shards: int
) -> Pool:
    """Returns the pool with copies of the pages ``sources``; ``targets`` out of range drop them."""

    def copied(x: Array, sources: Array, targets: Array) -> Array:
        targets = jnp.where(targets < len(x), targets, sources)

        # One page at a time: a scatter of pages would be one in another layout of the whole pool.
        def one(i: Array, x: Array) -> Array:
            page = jax.lax.dynamic_index_in_dim(x, sources[i])
            return jax.lax.dynamic_update_slice_in_dim(x, page, targets[i], 0)

        return jax.lax.fori_loop(0, len(sources), one, x)

    sources = jnp.asarray(sources)
    targets = jnp.asarray(targets)
    return Pool(jax.tree.map(lambda x: by_shard(copied, shards, x, sources, targets), pool.pages))
