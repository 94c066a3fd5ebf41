"""Rows whose decode steps read spans of their columns: on a CPU, where a step takes as long as
reading keys and values does.

A loop of decode steps that copies a window of columns for all rows reads the columns of the longest
row for every row, and those of padding rows. Here it copies spans of one length, of each row as
many as its tokens take. A program has a fixed number of spans, which is chosen by the sum of the
rows' lengths and not by the longest.

Axis letters: B slots, R rows of a dispatch, P spans, C columns of a span, S cache (columns).
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from agenticrec_jax.generation import kv_cache
from agenticrec_jax.generation.kv_cache import Cache
from agenticrec_jax.generation.rows import ColumnRows, after
from agenticrec_jax.models.masks import Context

LEAST = 32  # columns of a span: shorter ones make products too small to be fast


class Spans(NamedTuple):
    """Copies of spans, of which the first R are empty and take the new tokens of the R rows.

    Attributes:
      cache: keys [P, K, H, C] and values [P, K, C, H] of a layer.
      owner: index of each span's row; R for padding.
      valid: columns that hold a token of the owner.
    """

    cache: Cache
    owner: Int[Array, " P"]
    valid: Bool[Array, "P C"]


class SpanRows(ColumnRows):
    """Rows whose slots have columns, of which a loop of decode steps copies spans.

    With spans of 4 columns and 3 steps in a loop, row 0 of length 2 and row 1 of length 6 have
    these spans when both have sampled y and z (p prompt, c completion, . masked)::

        span   owner  columns
        0      0      . x y .     the last ``steps`` columns are written, one a step
        1      1      . x y .
        2      0      p c . .     columns 0 to 3 of the slot of row 0
        3      1      p p p c
        4      1      c c . .
        5      2      . . . .     padding: row 2 is no row
    """

    def windows(self, config):
        """Returns twice as many windows as without spans: of (64, 80, 112), (64, 72, 80, 96, 112).

        The number of spans follows the mean length of the rows, which changes little from one
        dispatch to the next, so that hardly more programs are compiled.
        """
        windows = config.windows()
        if config.window_buckets:
            return windows
        halves = ((a + b) // 2 for a, b in itertools.pairwise(windows))
        return tuple(sorted({*windows, *halves}))

    def window(self, lengths, rows, config):
        """Returns the smallest window whose spans hold all rows' tokens."""
        steps = config.decode_steps
        columns = config.columns
        needed = sum(-(-length // span_columns(steps, columns)) for length in lengths)
        windows = self.windows(config)
        return next(w for w in windows if rows * _spans_of_row(w, steps, columns) >= needed)

    def begin(self, state, rows, length, *, window, steps):
        """Returns copies of the spans that have tokens."""
        columns = state.cache.columns
        size = span_columns(steps, columns)
        count = len(rows) * _spans_of_row(window, steps, columns)
        owner, index = spans_of(length, size, count)
        # The last span of a slot may reach beyond its columns. It begins earlier then, and what
        # the span before it has is masked.
        start = jnp.minimum(index * size, columns - size)
        positions = start[:, None] + jnp.arange(size)
        lengths = length.at[owner].get(mode="fill", fill_value=0)[:, None]
        valid = (positions >= index[:, None] * size) & (positions < lengths)
        # New tokens come first, so that a step writes one slice of the first R spans.
        news = jnp.arange(len(rows))
        owner = jnp.concatenate([news, owner])
        start = jnp.concatenate([jnp.zeros_like(news), start])
        valid = jnp.concatenate([jnp.zeros((len(rows), size), bool), valid])
        slots = rows.at[owner].get(mode="clip")
        return Spans(kv_cache.read_spans(state.cache, slots, start, size), owner, valid)

    def step_context(self, local, inputs, length, report, *, window, steps, dtype):
        """Returns the spans, and the columns of new tokens as far as written."""
        size = local.cache.columns
        fresh = size - steps
        columns = jnp.arange(size)
        recent = (columns >= fresh) & (columns < fresh + report.steps)
        news = jnp.arange(len(local.owner)) < len(length)
        valid = local.valid | news[:, None] & recent

        def view(k, v, x):
            return kv_cache.view(k, v, x[:1], dtype)  # spans are more than the rows of the stream

        return Context(local.cache, valid, view, local.owner)

    def step(self, local, new, token, t, *, window, steps):
        """Returns the spans with one more column, for rows that no longer run too."""
        column = after(token, local.cache.columns - steps + t)
        return local._replace(cache=kv_cache.write_column(local.cache, column, new))

    def end(self, state, local, inputs, length, report):
        """Returns the cache with each row's new tokens at its own columns."""
        steps = report.ids.shape[1]
        new = kv_cache.last_columns(kv_cache.first_rows(local.cache, len(length)), steps)
        written = jnp.arange(steps) < report.count[:, None]
        return self._append(state, inputs.rows, length, written, new)


def span_columns(steps: int, columns: int) -> int:
    """Returns the columns of a span, C: those that a loop of so many ``steps`` writes, or more."""
    return min(max(steps, LEAST), columns)


def _spans_of_row(window: int, steps: int, columns: int) -> int:
    """Returns the spans a row that a program of this window has; the largest holds any rows."""
    return -(-(window - steps) // span_columns(steps, columns))


def spans_of(
    length: Int[Array, " R"], size: int, count: int
) -> tuple[Int[Array, " P"], Int[Array, " P"]]:
    """Returns the owner of each of ``count`` spans, and its index among the spans of its owner.

    Lengths (2, 0, 6) have 1, 0 and 2 spans of 4: of 5 the owners are (0, 2, 2, 3, 3), of which 3
    is no row, and the indices (0, 0, 1, 0, 1).
    """
    ends = jnp.cumsum(-(-length // size))
    span = jnp.arange(count)
    owner = jnp.sum(span[:, None] >= ends, axis=1, dtype=jnp.int32)
    begins = jnp.concatenate([jnp.zeros_like(ends[:1]), ends])
    return owner, span - begins[owner]
