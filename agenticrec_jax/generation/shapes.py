"""Shapes that the engine compiles: the inputs of each program, for every declared bucket.

Axis letters: those of ``inputs``.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.inputs import (
    DecodeInputs,
    Inputs,
    JoinInputs,
    PrefillInputs,
    PromptPages,
    SpliceInputs,
)
from agenticrec_jax.generation.pages import pages_of
from agenticrec_jax.generation.sampling import Draw

PREFILL_SIZES = (16, 4, 1)  # prompts that are computed at once in a shard


class Shape(NamedTuple):
    """One shape of a program.

    Attributes:
      program: name of the program.
      inputs: its inputs, arrays as ``jax.ShapeDtypeStruct``.
      static: its static arguments.
    """

    program: str
    inputs: Inputs
    static: dict[str, int]

    def padding(self, no_slot: int) -> Inputs:
        """Returns inputs of this shape whose rows are all padding: the index ``no_slot``."""
        ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), self.inputs)
        return ones._replace(rows=ones.rows * no_slot)


class Shapes:
    """Declared shapes of an engine whose slots are split over ``shards``.

    Lists ascend. ``windows`` are those of ``decode``, by default the config's. ``draw`` may have
    any values: which of its fields are None decides what is compiled.
    """

    def __init__(self, config: EngineConfig, shards: int, windows: Sequence[int] = ()):
        self._config = config
        self._windows = tuple(windows) or config.windows()
        self._shards = shards
        self._per_shard = config.slots // shards

    def buckets(self, groups: set[int]) -> dict[str, tuple[int, ...]]:
        """Returns the declared sizes; every compiled shape is a combination of them.

        ``groups`` are the numbers of members that groups have.
        """
        config = self._config
        return {
            "prompts": PREFILL_SIZES[::-1],
            "members": tuple(sorted(set(map(group_bucket, groups)))),
            "prompt_tokens": config.prompt_buckets,
            "rows": config.rows(self._shards),
            "window": self._windows,
            "splice_tokens": config.splice_buckets,
        }

    def prefill(self, groups: set[int], numbers: int, draw: Draw) -> list[Shape]:
        """Returns the shapes of groups of so many members, whose keys have so many ``numbers``."""
        sizes = itertools.product(
            sorted(set(map(group_bucket, groups))),
            self.prompts_at_once(min(groups)),
            self._config.prompt_buckets,
        )
        return [
            self._prefill(prompts * self._shards, tokens, members, numbers, draw)
            for members, prompts, tokens in sizes
        ]

    def prompts_at_once(self, members: int) -> list[int]:
        """Returns how many prompts one call may compute in a shard, ascending.

        Args:
          members: of the group of each prompt.
        """
        most = -(-self._per_shard // members)  # groups that begin when a whole shard is free
        return [size for size in sorted(PREFILL_SIZES) if size <= most]

    def _prefill(self, prompts: int, tokens: int, members: int, numbers: int, draw: Draw) -> Shape:
        inputs = PrefillInputs(
            ids=_ints(prompts, tokens),
            lengths=_ints(prompts),
            limits=_ints(prompts),
            rows=_ints(prompts, members),
            request_keys=_ints(prompts, numbers, dtype=np.uint32),
            choices=_ints(prompts),
            seed=_ints(dtype=np.uint32),
            draw=_abstract(draw),
        )
        if page := self._config.page_tokens:
            table = _ints(prompts, pages_of(tokens, page))
            pages = PromptPages(table, copies=_ints(prompts, members), last=_ints(prompts))
            inputs = inputs._replace(pages=pages)
        return Shape("prefill", inputs, {})

    def join(self, groups: set[int], numbers: int) -> list[Shape]:
        """Returns the shapes of members that join later; none where all groups have one member."""
        of_member = _ints(self._shards)
        inputs = JoinInputs(
            rows=of_member,
            sources=of_member,
            lengths=of_member,
            limits=of_member,
            tokens=of_member,
            key_numbers=of_member,
            choices=of_member,
            request_keys=_ints(self._shards, numbers, dtype=np.uint32),
            seed=_ints(dtype=np.uint32),
        )
        if self._config.page_tokens:  # any row may give its pages back and join again
            inputs = inputs._replace(pages=of_member)
            return [Shape("join", inputs, {"window": self._config.page_tokens})]
        windows = self._config.prompt_buckets if max(groups) > 1 else ()
        return [Shape("join", inputs, {"window": window}) for window in windows]

    def decode(self, draw: Draw) -> list[Shape]:
        """Returns the shapes of every number of rows and window."""
        config = self._config
        steps = {"steps": config.decode_steps, "least_steps": config.least_steps}
        return [
            Shape(
                "decode",
                DecodeInputs(_ints(rows), _ints(), _abstract(draw), self._table(rows, window)),
                {"window": window} | steps,
            )
            for rows, window in itertools.product(self._rows(), self._windows)
        ]

    def splice(self, draw: Draw) -> list[Shape]:
        """Returns the shapes of every number of rows, window and length of observations."""
        config = self._config
        sizes = itertools.product(self._rows(), config.windows(), config.splice_buckets)
        return [
            Shape(
                "splice",
                SpliceInputs(
                    rows=_ints(rows),
                    ids=_ints(rows, tokens),
                    counts=_ints(rows),
                    limits=_ints(rows),
                    draw=_abstract(draw),
                    pages=self._table(rows, window),
                ),
                {"window": window},
            )
            for rows, window, tokens in sizes
        ]

    def all(self, groups: set[int], numbers: int, draw: Draw) -> Iterator[Shape]:
        """Yields every shape that requests with groups of these sizes can meet."""
        yield from self.prefill(groups, numbers, draw)
        yield from self.join(groups, numbers)
        yield from self.decode(draw)
        yield from self.splice(draw)

    def _table(self, rows: int, window: int) -> jax.ShapeDtypeStruct | None:
        page = self._config.page_tokens
        return _ints(rows, window // page) if page else None

    def _rows(self) -> list[int]:
        return [self._shards * rows for rows in self._config.rows(self._shards)]


def fit(value: int, buckets: Sequence[int]) -> int:
    """Returns the smallest of ascending ``buckets`` that holds ``value``."""
    return next(bucket for bucket in buckets if bucket >= value)


def group_bucket(members: int) -> int:
    """Returns the group size that ``prefill`` is compiled for to hold so many: a power of two."""
    return 1 << (members - 1).bit_length()


def _ints(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _abstract(draw: Draw) -> Draw:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), draw)
