"""Sizes of the rollout engine, from which every compiled shape follows."""

import math
import threading
from dataclasses import dataclass

import numpy as np

from agenticrec_jax.dtypes import dtype_name
from agenticrec_jax.errors import expect
from agenticrec_jax.generation.pages import pages_of

PAGE_TOKENS = (16, 32, 64, 128)
CACHE_DTYPES = ("", "float32", "bfloat16", "int8")
WEIGHT_DTYPES = ("", "bfloat16", "int8")


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of the engine.

    Raises:
      InputError: a value out of its range, named by its field.

    Attributes:
      slots: rollouts that are generated at once.
      prompt_buckets: lengths that prompts are padded to, ascending; no prompt may be longer.
      splice_buckets: lengths that observations (with the id before them) are padded to, ascending;
        a longer observation takes several dispatches.
      max_tokens: most tokens of a completion, observations included.
      turn_tokens: most tokens sampled in a turn, from one observation to the next. A row that
        reaches it is answered as at a call. 0 for no bound.
      decode_steps: most steps in one dispatch of ``decode``.
      least_steps: steps after which a dispatch may return because rows wait.
      wait_fraction: share of the live rows that must wait (or have ended) for that.
      row_buckets: rows of a shard (of all slots, without a mesh) that a dispatch computes,
        ascending; 1/8, 1/4, 1/2, 3/4 and all of its slots if empty.
      window_buckets: cache columns that a dispatch reads, ascending; four sizes up to all of them
        if empty.
      tool_threads: host threads that answer paused rows.
      tool_timeout: seconds that an answer may take. After that the row receives an error in place
        of the observation.
      deterministic: whether the order of programs depends only on what was sampled. If not, rows
        whose answers are in go on without those that still wait.
      compile_ahead: whether the first call compiles every declared shape that its groups can meet
        before it starts, so that no later call compiles; if not, each shape is compiled where it is
        first met.
      cache_dtype: dtype of the stored keys and values: ``float32``, ``bfloat16``, ``int8`` with a
        scale for each slot, column and key head, or, if empty, the dtype that the model computes
        in.
      page_tokens: positions of a page of the cache: 16, 32, 64 or 128. Rows then take pages of one
        pool as they grow, ``slots`` only bounds their number, and a prompt is stored once for its
        group. 0 gives each slot columns for the longest row.
      pages: pages of the pool, of all shards together; as many as all slots could fill if 0.
      weight_dtype: dtype of the copy of the policy's weights that is sampled with: ``bfloat16``,
        ``int8`` with a scale for each output channel, or, if empty, the dtype that the model
        computes in. It computes in its own dtype with all three.
    """

    slots: int
    prompt_buckets: tuple[int, ...]
    splice_buckets: tuple[int, ...]
    max_tokens: int
    decode_steps: int = 32
    least_steps: int = 18
    wait_fraction: float = 0.35
    row_buckets: tuple[int, ...] = ()
    window_buckets: tuple[int, ...] = ()
    tool_threads: int = 8
    tool_timeout: float = 30.0
    turn_tokens: int = 0
    deterministic: bool = True
    compile_ahead: bool = False
    cache_dtype: str = ""
    page_tokens: int = 0
    pages: int = 0
    weight_dtype: str = ""

    def __post_init__(self):
        for name in ("prompt_buckets", "splice_buckets", "row_buckets", "window_buckets"):
            values = getattr(self, name)
            ascending = list(values) == sorted(set(values)) and min(values, default=1) >= 1
            expect(ascending, name, values, "ascending positive numbers")
        for name in ("prompt_buckets", "splice_buckets"):
            values = getattr(self, name)
            expect(len(values) > 0, name, values, "at least one number")
        for name in ("slots", "max_tokens", "tool_threads"):
            expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        expect(self.turn_tokens >= 0, "turn_tokens", self.turn_tokens, "0 (no bound) or above")
        # A larger timeout overflows in the waits of ``threading``.
        in_time = 0 < self.tool_timeout <= threading.TIMEOUT_MAX
        seconds = f"above 0 and at most {threading.TIMEOUT_MAX:.0f} s"
        expect(in_time, "tool_timeout", self.tool_timeout, seconds)
        name = dtype_name(self.cache_dtype, "cache_dtype", CACHE_DTYPES)
        object.__setattr__(self, "cache_dtype", name)
        name = dtype_name(self.weight_dtype, "weight_dtype", WEIGHT_DTYPES)
        object.__setattr__(self, "weight_dtype", name)
        share = 0 < self.wait_fraction <= 1
        expect(share, "wait_fraction", self.wait_fraction, "above 0 and at most 1")
        steps = 1 <= self.least_steps <= self.decode_steps
        expect(steps, "least_steps", self.least_steps, f"1 to decode_steps {self.decode_steps}")
        sizes = f"0 (no pages) or one of {', '.join(map(str, PAGE_TOKENS))}"
        expect(self.page_tokens in (0, *PAGE_TOKENS), "page_tokens", self.page_tokens, sizes)
        # Decode writes new tokens to the last ``decode_steps`` columns of its window.
        room = min(self.window_buckets, default=self.columns) > self.decode_steps
        above = f"above decode_steps {self.decode_steps}"
        expect(room, "window_buckets", self.window_buckets, above)
        without = f"0 where page_tokens is {self.page_tokens}"
        expect(self.page_tokens > 0 or self.pages == 0, "pages", self.pages, without)
        expect(self.pages >= 0, "pages", self.pages, "0 (as many as slots fill) or above")

    @property
    def columns(self) -> int:
        """Cache columns of a slot: the longest row, and what a dispatch computes beyond it."""
        beyond = max(self.decode_steps, self.splice_buckets[-1] if self.page_tokens else 0)
        return self._whole(self.prompt_buckets[-1] + self.max_tokens + beyond)

    def pool_pages(self, shards: int) -> int:
        """Returns the pages of each shard of a pool; 0 where slots have columns.

        Raises:
          InputError: they do not hold the longest row, or do not divide over the shards.
        """
        if not self.page_tokens:
            return 0
        # A row shares the last page of its prompt with no one, and the prompt's may be held.
        row = self.prompt_buckets[-1] + self.max_tokens
        least = pages_of(row, self.page_tokens) + 1
        pages = self.pages or shards * least * (self.slots // shards)
        fits = pages % shards == 0 and pages // shards >= least
        expected = f"a multiple of the {shards} shards of the mesh, at least {least} for each"
        expect(fits, "pages", pages, expected)
        return pages // shards

    def windows(self) -> tuple[int, ...]:
        """Returns the columns that ``decode`` and ``splice`` may read, of which the smallest fits.

        With 128 columns, prompts from 20 and 16 decode steps: 64, 80, 112 and 128.
        """
        if windows := self.window_buckets:
            if self.page_tokens:
                windows = sorted({self._whole(w) for w in windows})
            return (*(w for w in windows if w < self.columns), self.columns)
        low = min(self.prompt_buckets[0] + 2 * self.decode_steps, self.columns)
        steps = np.linspace(low, self.columns, 4)
        return tuple(sorted({min(self._whole(int(w)), self.columns) for w in steps}))

    def rows(self, shards: int) -> tuple[int, ...]:
        """Returns the rows of each shard that ``decode`` and ``splice`` may compute.

        With 24 slots in one shard: 3, 6, 12, 18 and 24.
        """
        most = self.slots // shards
        if self.row_buckets:
            return (*(r for r in self.row_buckets if r < most), most)
        return tuple(sorted({math.ceil(most * eighths / 8) for eighths in (1, 2, 4, 6, 8)}))

    def _whole(self, columns: int) -> int:
        """Returns the columns of whole pages, or of whole 16 columns without pages."""
        multiple = self.page_tokens or 16
        return -(-columns // multiple) * multiple
