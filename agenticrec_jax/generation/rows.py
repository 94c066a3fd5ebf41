"""Rows of the slots' state inside a program: gathered for a dispatch, and written back.

Keys and values of a slot lie in columns of its own (`ColumnRows`, `kv_cache`) or in pages of one
pool (`PagedRows`, `page_pool`). Both have the same methods, which the programs call. `span_rows`
has the rows of a CPU, whose decode steps read their columns in spans.

Axis letters: B slots, R rows of a dispatch, P prompts, G group, T time, K kv heads, H head width.
"""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int

from agenticrec_jax.generation import kv_cache, page_pool
from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.inputs import DecodeInputs, JoinInputs, PrefillInputs, SpliceInputs
from agenticrec_jax.generation.kv_cache import Cache, put, take
from agenticrec_jax.generation.page_pool import Pool
from agenticrec_jax.generation.shapes import fit
from agenticrec_jax.generation.state import EMPTY, RUNNING, Report, State
from agenticrec_jax.models.masks import KV, Context
from agenticrec_jax.models.pages import PagedContext


class Rows(abc.ABC):
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

    def update(self, state: State, rows: Int[Array, " R"], *, cache: Cache, **values: Any) -> State:
        """Returns ``state`` with ``cache`` and, at ``rows``, the ``values`` of other fields."""

        def at_rows(slots: Array, new: Array) -> Array:
            return put(slots, rows, new, self._shards)

        fields = {
            name: jax.tree.map(at_rows, getattr(state, name), value)
            for name, value in values.items()
        }
        return self._constrain(state._replace(cache=cache, **fields))

    @abc.abstractmethod
    def allocate(self, kv: KV, columns: int, dtype: DTypeLike) -> Cache | Pool:
        """Returns an empty cache; arguments as of ``kv_cache.allocate``."""

    @abc.abstractmethod
    def prompt_context(
        self, state: State, inputs: PrefillInputs, valid: Bool[Array, "P T"], dtype: str
    ) -> PagedContext | None:
        """Returns the context of prompts, of which ``valid`` are no padding."""

    @abc.abstractmethod
    def enter(self, state: State, inputs: PrefillInputs, new: Any) -> Cache | Pool:
        """Returns the cache with what the model returned for prompts, for all of their rows."""

    @abc.abstractmethod
    def join(self, state: State, inputs: JoinInputs, window: int) -> Cache | Pool:
        """Returns the cache with the prompt of a group for a member that joins it."""

    def windows(self, config: EngineConfig) -> tuple[int, ...]:
        """Returns the declared windows of ``decode``, in ascending order."""
        return config.windows()

    def window(self, lengths: Sequence[int], rows: int, config: EngineConfig) -> int:
        """Returns the window of a loop of decode steps, the smallest that is enough.

        Args:
          lengths: of the rows that run.
          rows: rows of the dispatch, R, with padding.
          config: sizes of the engine.
        """
        return fit(max(lengths) + config.decode_steps, self.windows(config))

    @abc.abstractmethod
    def begin(
        self,
        state: State,
        rows: Int[Array, " R"],
        length: Int[Array, " R"],
        *,
        window: int,
        steps: int,
    ) -> Any:
        """Returns what a loop of decode steps carries of the cache."""

    @abc.abstractmethod
    def step_context(
        self,
        local: Any,
        inputs: DecodeInputs,
        length: Int[Array, " R"],
        report: Report,
        *,
        window: int,
        steps: int,
        dtype: str,
    ) -> Context | PagedContext:
        """Returns the context of one step; ``length`` is that of the rows before the loop."""

    @abc.abstractmethod
    def step(
        self,
        local: Any,
        new: Any,
        token: Int[Array, " R"],
        t: Int[Array, ""],
        *,
        window: int,
        steps: int,
    ) -> Any:
        """Returns ``local`` after step ``t``: ``new`` is of the model, ``token`` was sampled."""

    @abc.abstractmethod
    def end(
        self,
        state: State,
        local: Any,
        inputs: DecodeInputs,
        length: Int[Array, " R"],
        report: Report,
    ) -> Cache | Pool:
        """Returns the cache after a loop; ``length`` is that of the rows before it."""

    @abc.abstractmethod
    def splice_context(
        self,
        state: State,
        inputs: SpliceInputs,
        length: Int[Array, " R"],
        written: Bool[Array, "R T"],
        *,
        window: int,
        dtype: str,
    ) -> Context | PagedContext:
        """Returns the context of observations, of which ``written`` are no padding."""

    @abc.abstractmethod
    def append(
        self,
        state: State,
        inputs: SpliceInputs,
        token: Int[Array, " R"],
        length: Int[Array, " R"],
        written: Bool[Array, "R T"],
        new: Any,
    ) -> Cache | Pool:
        """Returns the cache with what the model returned for observations, sampling ``token``."""


class ColumnRows(Rows):
    """Rows whose slots have columns of their own.

    A loop of decode steps works on a copy of the rows' first ``window`` columns. New tokens are
    written to the last ``steps`` columns of the copy, which no row may have reached: in a step all
    rows write the same column, which is one slice, where each row's own position would be a scatter
    in every layer and step. Each row's own positions are written once, after the loop.

    With ``window`` 8 and ``steps`` 3: row 0 has length 2 (its last token x is not in the cache yet)
    and samples y, z, w. Row 1 has length 4 and pauses with its second sample. p prompt,
    c completion, . left by an earlier row, - computed and dropped::

        column       0 1 2 3 4 5 6 7
        copy, row 0  p c . . . x y z     the step that reads y attends to columns 0, 1, 5, 6
        copy, row 1  p p c c . x y -
        slot, row 0  p c x y z . . .     afterwards; w is its ``token``
        slot, row 1  p p c c x y . .
    """

    def allocate(self, kv, columns, dtype):
        """Returns slots of ``columns`` columns."""
        return kv_cache.allocate(kv, self._slots, columns, dtype)

    def prompt_context(self, state, inputs, valid, dtype):
        """Returns None: keys and values are stored after the forward pass."""
        return None

    def enter(self, state, inputs, new):
        """Returns the cache with a copy of its prompt in the slot of each member."""
        prompts, group = inputs.rows.shape
        source = jnp.arange(prompts) % (prompts // self._shards)  # index within the shard
        source = jnp.repeat(source, group)
        return kv_cache.enter(state.cache, inputs.rows.reshape(-1), new, source, self._shards)

    def join(self, state, inputs, window):
        """Returns the cache with a copy of ``window`` columns of another member's slot."""
        prompts = kv_cache.read(state.cache, inputs.sources, window, self._shards)
        prompts = kv_cache.last_columns(prompts, window)
        source = jnp.zeros_like(inputs.rows)  # each shard has one prompt, its own
        return kv_cache.enter(state.cache, inputs.rows, prompts, source, self._shards)

    def begin(self, state, rows, length, *, window, steps):
        """Returns a copy of the first ``window`` columns of the rows."""
        return self._window(state, rows, window)

    def step_context(self, local, inputs, length, report, *, window, steps, dtype):
        """Returns each row's own columns, and the last ones of the copy as far as written."""
        columns = jnp.arange(window)
        fresh = window - steps  # the first column of new tokens
        # Column order is not position order. That is allowed: rope was applied to the keys at
        # their own positions before they were written, and attention is a sum over columns.
        past = columns < length[:, None]
        recent = (columns >= fresh) & (columns < fresh + report.steps)
        return kv_cache.context(local, past | recent, dtype)

    def step(self, local, new, token, t, *, window, steps):
        """Returns the copy with one more column, for rows that no longer run too."""
        return kv_cache.write_column(local, after(token, window - steps + t), new)

    def end(self, state, local, inputs, length, report):
        """Returns the cache with each row's new tokens at its own columns."""
        steps = report.ids.shape[1]
        new = kv_cache.last_columns(local, steps)
        written = jnp.arange(steps) < report.count[:, None]
        return self._append(state, inputs.rows, length, written, new)

    def splice_context(self, state, inputs, length, written, *, window, dtype):
        """Returns a copy of the first ``window`` columns of the rows."""
        local = self._window(state, inputs.rows, window)
        return kv_cache.context(local, jnp.arange(window) < length[:, None], dtype)

    def append(self, state, inputs, token, length, written, new):
        """Returns the cache with observations at each row's own columns."""
        return self._append(state, inputs.rows, after(token, length), written, new)

    def _window(self, state: State, rows: Int[Array, " R"], columns: int) -> Cache:
        return self._constrain(kv_cache.read(state.cache, rows, columns, self._shards))

    def _append(self, state, rows, start, written, new) -> Cache:
        """Returns the cache with ``new`` [R, T, K, H] from ``start`` on, where ``written``."""
        columns = start[:, None] + jnp.arange(written.shape[1])
        columns = jnp.where(written, columns, state.cache.columns)  # out of range: dropped
        return kv_cache.append(state.cache, rows, columns, new, self._shards)


class PagedRows(Rows):
    """Rows whose keys and values lie in pages of one pool.

    The model stores new tokens where they belong, so the pool is passed on as it comes back: no row
    is copied, and the donated pool is updated in place.

    Args:
      slots: number of slots, B.
      shards: number of mesh shards that slots and pages are split over.
      constrain: constrains arrays whose leading axis is slots, rows or pages to their sharding.
      pages: pages of the pool.
      page_tokens: positions of a page.
    """

    def __init__(self, slots, shards, constrain, *, pages: int, page_tokens: int):
        super().__init__(slots, shards, constrain)
        self._pages = pages
        self._page_tokens = page_tokens

    def allocate(self, kv, columns, dtype):
        """Returns a pool; ``columns`` bound the rows alone."""
        return page_pool.allocate(kv, self._pages, self._page_tokens, dtype)

    def prompt_context(self, state, inputs, valid, dtype):
        """Returns the empty pages of the prompts."""
        table = inputs.pages.table
        paged = table < self._pages // self._shards
        # Padding among the prompts has no page, and a token that would be stored.
        written = valid & paged[:, :1]
        # A kernel reads the pages of padding too, so they have to be some.
        table = jnp.where(paged, table, 0)
        zeros = jnp.zeros_like(inputs.lengths)
        return self._context(state.cache, table, zeros, written, dtype, empty=True)

    def enter(self, state, inputs, new):
        """Returns the pool with each prompt once, and its last page once more for the members."""
        last = jnp.repeat(inputs.pages.last, inputs.pages.copies.shape[1])
        copies = inputs.pages.copies.reshape(-1)
        return page_pool.copy_pages(Pool(new), last, copies, self._shards)

    def join(self, state, inputs, window):
        """Returns the pool with a copy of the prompt's last page; the others are shared."""
        return page_pool.copy_pages(state.cache, inputs.sources, inputs.pages, self._shards)

    def begin(self, state, rows, length, *, window, steps):
        """Returns the pool itself."""
        return state.cache

    def step_context(self, local, inputs, length, report, *, window, steps, dtype):
        """Returns the pages of the rows; rows that no longer run write nothing."""
        running = (report.status == RUNNING)[:, None]
        return self._context(local, inputs.pages, length + report.count, running, dtype)

    def step(self, local, new, token, t, *, window, steps):
        """Returns the pool that the model has written."""
        return Pool(new)

    def end(self, state, local, inputs, length, report):
        """Returns the pool."""
        return local

    def splice_context(self, state, inputs, length, written, *, window, dtype):
        """Returns the pages of the rows."""
        return self._context(state.cache, inputs.pages, length, written, dtype)

    def append(self, state, inputs, token, length, written, new):
        """Returns the pool that the model has written."""
        return Pool(new)

    def _context(self, pool, table, length, written, dtype, empty=False) -> PagedContext:
        return page_pool.context(
            pool, table, length, written, shards=self._shards, dtype=dtype, empty=empty
        )


def after(token: Int[Array, " R"], columns: Int[Array, "..."]) -> Int[Array, "..."]:
    """Returns ``columns``, so that XLA takes them for a result of ``token``.

    A write at these columns then waits for the whole forward pass. Every read of the cache comes
    before it, and the cache is updated in place; otherwise XLA copies all of it, in decode twice a
    step.
    """
    return columns + jnp.min(token, initial=0)  # ids are never negative, so this adds 0
