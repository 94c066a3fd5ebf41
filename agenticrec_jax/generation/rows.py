"""Rows of the slots' state inside a program: gathered for a dispatch, and written back.

Axis letters: B slots, R rows of a dispatch, T time, K kv heads, H head width.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from agenticrec_jax.generation import kv_cache
from agenticrec_jax.generation.kv_cache import Cache, put, take
from agenticrec_jax.generation.state import EMPTY, State
from agenticrec_jax.models.masks import KV


class Rows:
    """Reads and writes of rows, which are listed as ``inputs`` says.

    Args:
      slots: number of slots, B.
      shards: number of mesh shards that the slots are split over.
      constrain: constrains arrays whose leading axis is slots or rows to their sharding.
    """

    def __init__(self, slots: int, shards: int, constrain: Callable[[Any], Any]):
        self._slots = slots
        self._shards = shards
        self._constrain = constrain

    def fields(self, state: State, rows: Int[Array, " R"]) -> State:
        """Returns ``state`` at ``rows`` without its cache; padding rows are empty."""
        bare = state._replace(cache=Cache((), ()))
        gathered = jax.tree.map(lambda x: take(x, rows, self._shards), bare)
        real: Bool[Array, " R"] = rows < self._slots // self._shards
        # Padding has gathered some slot's fields. Empty, it neither runs nor counts as paused.
        return self._constrain(
            gathered._replace(
                status=jnp.where(real, gathered.status, EMPTY),
                length=jnp.where(real, gathered.length, 0),
            )
        )

    def window(self, state: State, rows: Int[Array, " R"], columns: int) -> Cache:
        """Returns a copy of the first ``columns`` columns of the cache at ``rows``."""
        return self._constrain(kv_cache.read(state.cache, rows, columns, self._shards))

    def prompts(self, state: State, rows: Int[Array, " R"], columns: int) -> KV:
        """Returns the first ``columns`` columns at ``rows``, [R, columns, K, H], as stored."""
        prompts = kv_cache.read(state.cache, rows, columns, self._shards)
        return kv_cache.last_columns(prompts, columns)

    def enter(
        self, state: State, rows: Int[Array, " R"], prompts: KV, source: Int[Array, " R"]
    ) -> Cache:
        """Returns the cache with ``prompts`` [P, T, K, H] at the start of ``rows``.

        Row r takes prompt ``source[r]`` of its shard's.
        """
        return kv_cache.enter(state.cache, rows, prompts, source, self._shards)

    def append(
        self,
        state: State,
        rows: Int[Array, " R"],
        start: Int[Array, " R"],
        written: Bool[Array, "R T"],
        new: KV,
    ) -> Cache:
        """Returns the cache with ``new`` [R, T, K, H] from ``start`` on, where ``written``."""
        columns = start[:, None] + jnp.arange(written.shape[1])
        columns = jnp.where(written, columns, state.cache.columns)  # out of range: dropped
        return kv_cache.append(state.cache, rows, columns, new, self._shards)

    def update(self, state: State, rows: Int[Array, " R"], *, cache: Cache, **values: Any) -> State:
        """Returns ``state`` with ``cache`` and, at ``rows``, the ``values`` of other fields."""

        def at_rows(slots: Array, new: Array) -> Array:
            return put(slots, rows, new, self._shards)

        fields = {
            name: jax.tree.map(at_rows, getattr(state, name), value)
            for name, value in values.items()
        }
        return self._constrain(state._replace(cache=cache, **fields))


def after(token: Int[Array, " R"], columns: Int[Array, "..."]) -> Int[Array, "..."]:
    """Returns ``columns``, so that XLA takes them for a result of ``token``.

    A write at these columns then waits for the whole forward pass. Every read of the cache comes
    before it, and the cache is updated in place; otherwise XLA copies all of it, in decode twice a
    step.
    """
    return columns + jnp.min(token, initial=0)  # ids are never negative, so this adds 0
