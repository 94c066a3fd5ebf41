"""What goes into the rollout engine and what comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from agenticrec_jax.types import (
    CONTEXT_LIMIT,
    JUNK,
    OBSERVATION,
    SAMPLED,
    TOKEN_BUDGET,
    TURN_BUDGET,
)


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
    ``finish``, the reason to end the row (after the ids, if any).

    ``on_accept``, if any, is called in the thread of ``generate`` once the row has taken the reply,
    which it does not if it came too late, is junk, or has more ids than the row has room for: the
    place to keep what the answer has changed.
    """

    ids: tuple[int, ...] = ()
    finish: str | None = None
    on_accept: Callable[[], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Failure:
    """Why there is no reply: ``TIMEOUT``, ``RAISED`` or ``JUNK`` of ``types``, in words, and after
    how many seconds."""

    reason: str
    detail: str
    seconds: float = 0.0


Respond = Callable[[int, int, list[int]], Reply]
"""(request index, member, completion ids so far) -> Reply.

The last id is the pausing one, or another where the turn has all the tokens that it may have.
"""

OnFailure = Callable[[int, int, list[int], Failure], Reply]
"""The reply in place of the one that ``Respond`` did not give for the same arguments."""


def junk(reply: Any, vocabulary: int, longest: int | None) -> Failure | None:
    """What is wrong with a reply, if anything: a type, its length (None: any), an id in it."""
    if not isinstance(reply, Reply):
        return Failure(JUNK, f"gave a {type(reply).__name__}; expected a Reply")
    if not isinstance(reply.ids, tuple | list) or not isinstance(reply.finish, str | None):
        return Failure(JUNK, "gave a reply whose ids are no tuple or whose finish is no string")
    if reply.on_accept is not None and not callable(reply.on_accept):
        found = type(reply.on_accept).__name__
        return Failure(
            JUNK, f"gave a reply whose on_accept has type {found}; expected a function or None"
        )
    if longest is not None and len(reply.ids) > longest:
        return Failure(JUNK, f"gave a reply of {len(reply.ids)} ids; expected at most {longest}")
    for i in reply.ids:
        if not isinstance(i, Integral) or not 0 <= i < vocabulary:
            found = i if isinstance(i, Integral) else f"of type {type(i).__name__}"
            return Failure(JUNK, f"gave a reply with id {found}; expected 0 to {vocabulary - 1}")
    return None


@dataclass(frozen=True)
class Budget:
    """Most tokens: of a ``completion``, sampled in a ``turn`` (0: any number), and of prompt and
    completion together (``context``)."""

    completion: int
    turn: int
    context: int

    def row(self, prompt: int) -> tuple[int, str]:
        """Tokens of prompt and completion at which a row must end, and the name of that end."""
        ends = (self.context, CONTEXT_LIMIT), (prompt + self.completion, TOKEN_BUDGET)
        return min(ends, key=lambda end: end[0])

    def next_turn(self, prompt: int, done: int) -> tuple[int, str]:
        """The same where a turn begins after ``done`` tokens of the completion."""
        row, turn = self.row(prompt), (prompt + done + self.turn, TURN_BUDGET)
        return turn if self.turn and turn[0] < row[0] else row


@dataclass
class Rollout:
    """One completion: ids int32 [T], log-probs float32 [T] (0 where observed), origin uint8 [T]
    (``SAMPLED`` or ``OBSERVATION``), and why it ended: a name of ``types`` or a reply's reason."""

    ids: Int32[np.ndarray, " T"]
    logprobs: Float32[np.ndarray, " T"]
    origin: UInt8[np.ndarray, " T"]
    finish: str


class RespondError(RuntimeError):
    """A ``respond`` gave no usable reply; names the request and the member."""


@dataclass(eq=False)
class Row:
    """The host's record of one member of one request, from its admission to its end.

    It sits in ``slot`` of ``shard``, out of range while it has none. ``prompt`` counts the tokens
    of its prompt, ``length`` those in the cache; at ``limit`` tokens its turn must end, for the
    reason ``bound``. ``pending`` holds the ids to be spliced: the one sampled last and the
    observation that answered it.
    """

    request: int
    member: int
    shard: int
    slot: int
    prompt: int
    budget: Budget
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    origin: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    finish: str | None = None

    def __post_init__(self):
        self.length = self.prompt
        self.limit, self.bound = self.budget.next_turn(self.prompt, 0)

    def sampled(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Records sampled tokens."""
        self.ids.extend(ids)
        self.logprobs.extend(logprobs)
        self.origin.extend([SAMPLED] * len(ids))

    def answered(self, reply: Reply) -> None:
        """Takes a reply if it fits; ends the row if it says so or leaves no room for a token."""
        limit, bound = self.budget.row(self.prompt)
        total = self.prompt + len(self.ids) + len(reply.ids)
        if total > limit:
            self.finish = reply.finish or bound
            return
        self.pending = [self.ids[-1], *reply.ids]
        self.ids.extend(reply.ids)
        self.logprobs.extend([0.0] * len(reply.ids))
        self.origin.extend([OBSERVATION] * len(reply.ids))
        self.finish = reply.finish or (bound if total == limit else None)
        self.limit, self.bound = self.budget.next_turn(self.prompt, len(self.ids))
        if reply.on_accept is not None:
            reply.on_accept()

    def rollout(self) -> Rollout:
        """The record as arrays."""
        return Rollout(
            np.array(self.ids, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.origin, np.uint8),
            self.finish or "",
        )
