"""What goes into the rollout engine and what comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from agenticrec_jax.types import OBSERVATION, SAMPLED


@dataclass(frozen=True)
class Request:
    """``members`` rollouts of one prompt. ``key`` (non-negative numbers below 2**32, as many in
    every request of a call) names it in the sampling keys: say, step and example. Of ``choices``
    candidates, numbered from 1, a constrained answer may be made; 0 where the answer is free."""

    prompt: tuple[int, ...]
    members: int
    key: tuple[int, ...]
    choices: int = 0


@dataclass(frozen=True)
class Reply:
    """The answer to a row that paused: ``ids`` to append as an observation, then go on; or, with
    ``finish``, the reason to end the row (after the ids, if any)."""

    ids: tuple[int, ...] = ()
    finish: str | None = None


Respond = Callable[[int, int, list[int]], Reply]
"""(request index, member, completion ids so far, the pausing one last) -> Reply."""


@dataclass
class Rollout:
    """One completion: ids int32 [T], log-probs float32 [T] (0 where observed), origin uint8 [T]
    (``SAMPLED`` or ``OBSERVATION``), and why it ended: ``stop``, ``budget`` or a reply's reason."""

    ids: Int32[np.ndarray, " T"]
    logprobs: Float32[np.ndarray, " T"]
    origin: UInt8[np.ndarray, " T"]
    finish: str


class RespondError(RuntimeError):
    """A ``respond`` raised or returned no usable reply; names the request and the member."""


@dataclass(eq=False)
class Row:
    """The host's record of one member of one request, from its admission to its end.

    It sits in ``slot`` of ``shard``. ``length`` counts the cached tokens, ``pending`` holds the ids
    to be spliced: the one sampled last and the observation that answered it.
    """

    request: int
    member: int
    shard: int
    slot: int
    length: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    origin: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    finish: str | None = None

    def sampled(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Records sampled tokens."""
        self.ids.extend(ids)
        self.logprobs.extend(logprobs)
        self.origin.extend([SAMPLED] * len(ids))

    def answered(self, reply: Reply, max_tokens: int) -> None:
        """Records a reply; ends the row if it says so or does not leave room for a token."""
        if len(self.ids) + len(reply.ids) > max_tokens:
            self.finish = reply.finish or "budget"
            return
        self.pending = [self.ids[-1], *reply.ids]
        self.ids.extend(reply.ids)
        self.logprobs.extend([0.0] * len(reply.ids))
        self.origin.extend([OBSERVATION] * len(reply.ids))
        self.finish = reply.finish or ("budget" if len(self.ids) == max_tokens else None)

    def rollout(self) -> Rollout:
        """The record as arrays."""
        return Rollout(
            np.array(self.ids, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.origin, np.uint8),
            self.finish or "",
        )
