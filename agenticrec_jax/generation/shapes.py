"""The shapes that the engine compiles: what each program is given, for every declared bucket."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from agenticrec_jax.generation.config import EngineConfig
from agenticrec_jax.generation.sampling import Draw

PROMPTS_AT_ONCE = (16, 4, 1)


class Shape(NamedTuple):
    """One shape of a program: its name, what it takes after parameters and state (arrays as
    ``jax.ShapeDtypeStruct``), its static arguments, and which of the arrays lists slots."""

    program: str
    arguments: tuple[Any, ...]
    static: dict[str, int]
    slots: int

    def padding(self, none: int) -> tuple[Any, ...]:
        """Arguments of this shape that list no slot: each is ``none``, which is out of range."""
        ones = [jax.tree.map(lambda x: np.ones(x.shape, x.dtype), a) for a in self.arguments]
        ones[self.slots] *= none
        return tuple(ones)


class Shapes:
    """The declared shapes of an engine whose slots lie over ``shards``.

    Each list ascends. ``draw`` is any value of what ``Filters.draw`` gives; which of its fields
    are there decides what is compiled.
    """

    def __init__(self, config: EngineConfig, shards: int):
        self._config, self._shards = config, shards
        self._room = config.slots // shards

    def buckets(self, groups: set[int]) -> dict[str, tuple[int, ...]]:
        """The declared sizes: everything that is compiled is a combination of these.

        ``groups`` are the numbers of members that groups have.
        """
        config = self._config
        return {
            "prompts": PROMPTS_AT_ONCE[::-1],
            "members": tuple(sorted(set(map(group_bucket, groups)))),
            "prompt_tokens": config.prompt_buckets,
            "rows": config.rows(self._shards),
            "window": config.windows(),
            "splice_tokens": config.splice_buckets,
        }

    def prefill(self, groups: set[int], numbers: int, draw: Draw) -> list[Shape]:
        """Of groups of so many members, whose keys have so many ``numbers``."""
        config, most = self._config, -(-self._room // min(groups))
        at_once = [size for size in sorted(PROMPTS_AT_ONCE) if size <= most]
        return [
            self._prefill(prompts, tokens, size, numbers, draw)
            for size in sorted(set(map(group_bucket, groups)))
            for prompts in at_once
            for tokens in config.prompt_buckets
        ]

    def _prefill(self, prompts: int, tokens: int, size: int, numbers: int, draw: Draw) -> Shape:
        count = prompts * self._shards
        of_prompt = _ints(count, tokens), _ints(count), _ints(count), _ints(count, size)
        keys, seed = _ints(count, numbers, dtype=np.uint32), _ints(dtype=np.uint32)
        arguments = *of_prompt, keys, _ints(count), seed, _abstract(draw)
        return Shape("prefill", arguments, {}, slots=3)

    def join(self, groups: set[int], numbers: int) -> list[Shape]:
        """Of members that find no slot with the first of their group; none where all are alone."""
        keys, seed = _ints(self._shards, numbers, dtype=np.uint32), _ints(dtype=np.uint32)
        arguments = *[_ints(self._shards)] * 7, keys, seed
        windows = self._config.prompt_buckets if max(groups) > 1 else ()
        return [Shape("join", arguments, {"window": window}, slots=0) for window in windows]

    def decode(self, draw: Draw) -> list[Shape]:
        config = self._config
        steps = {"steps": config.decode_steps, "least_steps": config.least_steps}
        return [
            Shape("decode", (_ints(rows), _ints(), _abstract(draw)), {"window": w} | steps, slots=0)
            for rows, w in itertools.product(self._rows(), config.windows())
        ]

    def splice(self, draw: Draw) -> list[Shape]:
        config = self._config
        sizes = itertools.product(self._rows(), config.windows(), config.splice_buckets)
        return [
            Shape(
                "splice",
                (_ints(r), _ints(r, tokens), _ints(r), _ints(r), _abstract(draw)),
                {"window": window},
                slots=0,
            )
            for r, window, tokens in sizes
        ]

    def all(self, groups: set[int], numbers: int, draw: Draw) -> Iterator[Shape]:
        """Every shape that requests with groups of these sizes can meet."""
        yield from self.prefill(groups, numbers, draw)
        yield from self.join(groups, numbers)
        yield from self.decode(draw)
        yield from self.splice(draw)

    def _rows(self) -> list[int]:
        return [self._shards * rows for rows in self._config.rows(self._shards)]


def fit(value: int, buckets: Any) -> int:
    """The smallest bucket that holds ``value``."""
    return next(bucket for bucket in buckets if bucket >= value)


def group_bucket(members: int) -> int:
    """The size of group that ``prefill`` is compiled for to hold so many: a power of two."""
    return 1 << (members - 1).bit_length()


def _ints(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _abstract(draw: Draw) -> Draw:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), draw)
