"""Sizes of the rollout engine, and the shapes that it compiles."""

import math
import threading
from dataclasses import dataclass

import numpy as np

from agenticrec_jax.errors import InputError

CACHE_DTYPES = ("", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of the engine; every compiled shape follows from them.

    Attributes:
        slots: rows held at once.
        prompt_buckets: lengths that prompts are padded to, ascending; none may be longer.
        splice_buckets: observation ids (and one) appended at once, ascending; longer observations
            take several rounds.
        max_tokens: most tokens of a completion, observations included.
        turn_tokens: most tokens sampled in a turn, from one observation to the next, where the row
            is answered as at a call; 0 for any.
        decode_steps: most steps in one dispatch of ``decode``.
        least_steps: steps after which a dispatch may return because rows wait.
        wait_fraction: share of the live rows that must wait (or have ended) for that.
        row_buckets: how many rows of a shard (all, without a mesh) a dispatch computes; 1/8, 1/4,
            1/2, 3/4 and all of its slots if empty.
        window_buckets: how many cache columns it reads; four steps up to all of them if empty.
        tool_threads: host threads that answer paused rows at once.
        tool_timeout: seconds that an answer may take; then the row hears of its failure.
        deterministic: whether the order of programs depends on what was sampled only. If not, rows
            whose answers are in go on without those that still wait.
        compile_ahead: whether the first call compiles every declared shape that its groups can meet
            before it starts, so that no later one compiles; if not, each where it is first met.
        cache_dtype: what keys and values are kept in: ``float32``, ``bfloat16``, ``int8`` with a
            scale for each slot, column and key head, or, if empty, what the model computes in.
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

    def __post_init__(self):
        for name in ("prompt_buckets", "splice_buckets", "row_buckets", "window_buckets"):
            values = getattr(self, name)
            needed = name in ("prompt_buckets", "splice_buckets")
            if list(values) != sorted(set(values)) or min(values, default=1) < 1:
                raise InputError(f"{name} {values} are not ascending positive numbers")
            if needed and not values:
                raise InputError(f"{name} are empty; expected at least one")
        if min(self.slots, self.max_tokens, self.tool_threads) < 1:
            raise InputError(
                f"slots {self.slots}, max_tokens {self.max_tokens} and tool_threads "
                f"{self.tool_threads} must all be at least 1"
            )
        if self.turn_tokens < 0:
            raise InputError(f"turn_tokens {self.turn_tokens} is negative; expected 0 for no bound")
        if not 0 < self.tool_timeout <= threading.TIMEOUT_MAX:
            raise InputError(
                f"tool_timeout {self.tool_timeout} is not in (0, {threading.TIMEOUT_MAX:.0f}] s"
            )
        if self.cache_dtype not in CACHE_DTYPES:
            raise InputError(
                f"cache_dtype {self.cache_dtype!r} is not known; expected one of "
                f"{', '.join(CACHE_DTYPES[1:])}, or nothing"
            )
        if not 0 < self.wait_fraction <= 1:
            raise InputError(f"wait_fraction {self.wait_fraction} is not in (0, 1]")
        if not 1 <= self.least_steps <= self.decode_steps:
            raise InputError(
                f"least_steps {self.least_steps} is not in 1..decode_steps {self.decode_steps}"
            )
        if min(self.window_buckets, default=self.columns) <= self.decode_steps:
            raise InputError(
                f"window_buckets {self.window_buckets} leave no room for decode_steps "
                f"{self.decode_steps}"
            )

    @property
    def columns(self) -> int:
        """Cache columns of a slot: the longest row, and room for the steps of a dispatch."""
        return _ceil(self.prompt_buckets[-1] + self.max_tokens + self.decode_steps, 16)

    def windows(self) -> tuple[int, ...]:
        """Columns that ``decode`` and ``splice`` read: the smallest that fits is taken."""
        if self.window_buckets:
            return (*(w for w in self.window_buckets if w < self.columns), self.columns)
        low = min(self.prompt_buckets[0] + 2 * self.decode_steps, self.columns)
        steps = np.linspace(low, self.columns, 4)
        return tuple(sorted({min(_ceil(int(w), 16), self.columns) for w in steps}))

    def rows(self, shards: int) -> tuple[int, ...]:
        """Rows of each shard that ``decode`` and ``splice`` compute."""
        most = self.slots // shards
        if self.row_buckets:
            return (*(r for r in self.row_buckets if r < most), most)
        return tuple(sorted({math.ceil(most * eighths / 8) for eighths in (1, 2, 4, 6, 8)}))


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
