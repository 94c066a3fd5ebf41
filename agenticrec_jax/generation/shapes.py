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

    def buckets(self) -> dict[str, tuple[int, ...]]:
        """The declared sizes: everything that is compiled is a combination of these."""
        config = self._config
        return {
            "prompts": PROMPTS_AT_ONCE[::-1],
            "members": config.members(self._shards),
            "prompt_tokens": config.prompt_buckets,
            "rows": config.rows(self._shards),
            "window": config.windows(),
            "splice_tokens": config.splice_buckets,
        }

    def prefill(self, groups: set[int], numbers: int, draw: Draw) -> list[Shape]:
        """Of groups of so many members, whose keys have so many ``numbers``."""
        sizes, config, least = {}, self._config, min(groups)
        for group in sorted(groups):  # beside the largest of a batch may be many of the smallest
            spare = self._room - group
            most = self._room // least if self._shards > 1 else 1 + spare // least
            members = fit(group, config.members(self._shards))
            at_once = {size for size in PROMPTS_AT_ONCE if size <= most}
            sizes[members] = at_once | sizes.get(members, set())
        return [
            self._prefill(prompts, tokens, members, numbers, draw)
            for members in sizes
            for prompts in sorted(sizes[members])
            for tokens in config.prompt_buckets
        ]

    def _prefill(self, prompts: int, tokens: int, members: int, numbers: int, draw: Draw) -> Shape:
        count = prompts * self._shards
        of_prompt = _ints(count, tokens), _ints(count), _ints(count), _ints(count, members)
        keys, seed = _ints(count, numbers, dtype=np.uint32), _ints(dtype=np.uint32)
        arguments = *of_prompt, keys, _ints(count), seed, _abstract(draw)
        return Shape("prefill", arguments, {}, slots=3)

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
        yield from self.decode(draw)
        yield from self.splice(draw)

    def _rows(self) -> list[int]:
        return [self._shards * rows for rows in self._config.rows(self._shards)]


def fit(value: int, buckets: Any) -> int:
    """The smallest bucket that holds ``value``."""
    return next(bucket for bucket in buckets if bucket >= value)


def _ints(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _abstract(draw: Draw) -> Draw:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), draw)
