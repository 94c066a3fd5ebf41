"""Requests, replies and rollouts of the engine, and the host's record of each row.

Axis letters: T time.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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

MAX_MEMBERS = 1024  # that one reply lets go on
_BRANCHES = 1 << 30  # numbers of branches in sampling keys are from here on


@dataclass(frozen=True)
class Request:
    """Request for a group of rollouts of one prompt.

    Attributes:
      prompt: ids of the prompt.
      members: number of rollouts, G.
      key: numbers from 0 to 2**32 - 1 that name the request in the sampling keys, say step and
        example; as many in every request of a call.
      choices: candidates, numbered from 1, of which a constrained answer is made; 0 for a free
        answer.
      openings: ids that the completion of each member begins with, as observed ids; an empty one
        for a member that samples its first id. Empty where no member has one.
    """

    prompt: tuple[int, ...]
    members: int
    key: tuple[int, ...]
    choices: int = 0
    openings: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Reply:
    """Reply to a row that paused.

    Attributes:
      ids: observation to append; then the row goes on.
      finish: reason to end the row, after ``ids``; None to go on.
      members: rollouts that go on after ``ids``: the row and ``members - 1`` branches of it. A
        branch begins with a copy of all that the row has sampled and observed, and samples with
        noise of its own. It is a further member of the group, with the next free number, and may
        branch in its turn. Rollouts of `agent` do not branch: an episode has one row.
      on_accept: called in the thread of ``generate`` once the row has received the reply. A reply
        that comes too late, is malformed, or has more ids than the row has room for is not
        accepted. State that a tool has changed belongs here, so that a late answer changes nothing.
    """

    ids: tuple[int, ...] = ()
    finish: str | None = None
    on_accept: Callable[[], None] | None = field(default=None, compare=False)
    members: int = 1


@dataclass(frozen=True)
class Failure:
    """Reason why there is no reply.

    Attributes:
      reason: ``TIMEOUT``, ``RAISED`` or ``JUNK`` (malformed), of ``agenticrec_jax.types``.
      detail: the same in words.
      seconds: duration of the call.
    """

    reason: str
    detail: str
    seconds: float = 0.0


Respond = Callable[[int, int, list[int]], Reply]
"""(request index, member, completion ids so far) -> Reply.

The last id is the pause id, or any id in a turn that has reached ``turn_tokens``.
"""

OnFailure = Callable[[int, int, list[int], Failure], Reply]
"""(request index, member, completion ids so far, failure of ``Respond``) -> Reply in its place."""


OnRollout = Callable[[int, int, "Rollout"], None]
"""(request index, member, rollout that has ended)."""

Arrivals = Callable[[int], Sequence[Request]]
"""(number of free slots) -> requests that have arrived, no more than that."""


def reply_failure(reply: Any, vocabulary: int, longest: int | None) -> Failure | None:
    """Returns the failure of a call, or of its malformed reply; None for a well-formed reply.

    Args:
      reply: return value of a ``Respond``, or its failure.
      vocabulary: ids must be below this.
      longest: most ids; None for any number.
    """
    if isinstance(reply, Failure):
        return reply
    if not isinstance(reply, Reply):
        return Failure(JUNK, f"gave a {type(reply).__name__}; expected a Reply")
    if not isinstance(reply.ids, tuple | list) or not isinstance(reply.finish, str | None):
        return Failure(JUNK, "gave a reply whose ids are no tuple or whose finish is no string")
    if reply.on_accept is not None and not callable(reply.on_accept):
        name = type(reply.on_accept).__name__
        return Failure(
            JUNK, f"gave a reply whose on_accept has type {name}; expected a function or None"
        )
    members = reply.members
    if not isinstance(members, Integral) or not 1 <= members <= (
        1 if reply.finish else MAX_MEMBERS
    ):
        most = "1 where it ends the row" if reply.finish else f"1 to {MAX_MEMBERS}"
        return Failure(JUNK, f"gave a reply with members {members!r}; expected {most}")
    if longest is not None and len(reply.ids) > longest:
        return Failure(JUNK, f"gave a reply of {len(reply.ids)} ids; expected at most {longest}")
    for i in reply.ids:
        if not isinstance(i, Integral) or not 0 <= i < vocabulary:
            name = i if isinstance(i, Integral) else f"of type {type(i).__name__}"
            return Failure(JUNK, f"gave a reply with id {name}; expected 0 to {vocabulary - 1}")
    return None


@dataclass(frozen=True)
class Budget:
    """Bounds on the tokens of a row.

    Attributes:
      completion: most tokens of a completion.
      turn: most tokens sampled in a turn, 0 for no bound.
      context: most tokens of prompt and completion together.
    """

    completion: int
    turn: int
    context: int

    def row_limit(self, prompt: int) -> tuple[int, str]:
        """Returns the tokens of prompt and completion at which a row ends, and the reason's name.

        With completion 10 and context 14, a prompt of 5 ends at (14, CONTEXT_LIMIT) and one of 3 at
        (13, TOKEN_BUDGET).
        """
        limits = (self.context, CONTEXT_LIMIT), (prompt + self.completion, TOKEN_BUDGET)
        return min(limits, key=lambda limit: limit[0])

    def turn_limit(self, prompt: int, done: int) -> tuple[int, str]:
        """Returns the same for a turn that begins after ``done`` tokens of the completion."""
        row = self.row_limit(prompt)
        turn = (prompt + done + self.turn, TURN_BUDGET)
        return turn if self.turn and turn[0] < row[0] else row


@dataclass
class Rollout:
    """One completion of T tokens.

    Attributes:
      ids: [T] sampled and observed ids.
      logprobs: [T] log-probs of the sampled ids, in nats; 0 where observed.
      origin: [T] ``SAMPLED`` or ``OBSERVATION``.
      finish: reason of the end: a name of ``agenticrec_jax.types`` or ``Reply.finish``.
      parent: member that it branched off; None for a member of the request.
      shared: leading ids that a branch has from its parent.
    """

    ids: Int32[np.ndarray, " T"]
    logprobs: Float32[np.ndarray, " T"]
    origin: UInt8[np.ndarray, " T"]
    finish: str
    parent: int | None = None
    shared: int = 0


class RespondError(RuntimeError):
    """Error of a ``respond`` that gave no usable reply; names the request and the member."""


@dataclass(eq=False)
class Row:
    """Host's record of one member of one request, from its admission to its end.

    Attributes:
      request: index of the request.
      member: index in the group.
      shard: mesh shard of the row's slot.
      slot: its slot within the shard; out of range while it has none.
      prompt: number of prompt tokens.
      budget: bounds on its tokens.
      opening: ids that its completion has to begin with; empty for none, or once it has.
      ids: ids of the completion so far.
      logprobs: their log-probs, 0 where observed.
      origin: their origins.
      pending: ids to be spliced: the one sampled last, and the observation after it.
      finish: reason of the end; None while it goes on.
      length: tokens in the cache.
      limit: tokens of prompt and completion at which the current turn must end.
      limit_reason: name of the budget that ``limit`` comes from.
      age: number of rows that began before it.
      pages: its pages, in order; empty where slots have columns of their own.
      copy: page to copy the last page of its prompt from, and to, as it takes its slot; None for
        no copy.
      recompute: whether it is computed again: it has given its pages back, or is a branch for which
        there was no room.
      progress: of its constrained answer, as it gave its pages back or branched off.
      key_number: number in its sampling keys: the member, or `branch_number`; the member if None.
      parent: member that it branched off; None for none.
      shared: leading ids of the completion that it has from there.
      source: row whose keys and values are copied as it takes its slot; None for those of the
        prompt.
    """

    request: int
    member: int
    shard: int
    slot: int
    prompt: int
    budget: Budget
    opening: tuple[int, ...] = ()
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    origin: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    finish: str | None = None
    age: int = 0
    pages: list[int] = field(default_factory=list)
    copy: tuple[int, int] | None = None
    recompute: bool = False
    progress: Any = None
    key_number: int | None = None
    parent: int | None = None
    shared: int = 0
    source: "Row | None" = None

    def __post_init__(self):
        if self.key_number is None:
            self.key_number = self.member
        self.length = self.prompt
        self.limit, self.limit_reason = self.budget.turn_limit(self.prompt, 0)

    def add_sampled(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Records sampled tokens."""
        self.ids.extend(ids)
        self.logprobs.extend(logprobs)
        self.origin.extend([SAMPLED] * len(ids))

    def open(self) -> None:
        """Begins with the opening, in place of the id that was sampled after the prompt."""
        self.ids = list(self.opening)
        self.logprobs = [0.0] * len(self.ids)
        self.origin = [OBSERVATION] * len(self.ids)
        self.pending = list(self.ids)
        self.opening = ()
        self.limit, self.limit_reason = self.budget.turn_limit(self.prompt, len(self.ids))
        limit, reason = self.budget.row_limit(self.prompt)
        if self.prompt + len(self.ids) >= limit:
            self.finish = reason

    def add_reply(self, reply: Reply) -> None:
        """Accepts a reply if it fits; ends the row if it says so or leaves no room for a token."""
        limit, reason = self.budget.row_limit(self.prompt)
        total = self.prompt + len(self.ids) + len(reply.ids)
        if total > limit:  # dropped whole: a truncated observation would be another observation
            self.finish = reply.finish or reason
            return
        self.pending = [self.ids[-1], *reply.ids]
        self.ids.extend(reply.ids)
        self.logprobs.extend([0.0] * len(reply.ids))
        self.origin.extend([OBSERVATION] * len(reply.ids))
        self.finish = reply.finish or (reason if total == limit else None)
        self.limit, self.limit_reason = self.budget.turn_limit(self.prompt, len(self.ids))
        if reply.on_accept is not None:
            reply.on_accept()

    def branch(self, member: int, *, slot: int, age: int, index: int) -> "Row":
        """Returns a row that goes on from here too, once a reply is added.

        Args:
          member: its index in the group.
          slot: number that is no slot.
          age: number of rows that began before it.
          index: of the branch among those of the reply.
        """
        row = replace(
            self,
            member=member,
            slot=slot,
            age=age,
            ids=list(self.ids),
            logprobs=list(self.logprobs),
            origin=list(self.origin),
            pending=list(self.pending),
            pages=[],
            copy=None,
            key_number=branch_number(self.key_number, len(self.ids), index),
            parent=self.member,
            shared=len(self.ids),
            source=self,
        )
        row.length = self.length
        row.limit = self.limit
        row.limit_reason = self.limit_reason
        return row

    def rollout(self) -> Rollout:
        """Returns the record as arrays."""
        return Rollout(
            np.array(self.ids, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.origin, np.uint8),
            self.finish or "",
            self.parent,
            self.shared,
        )


def substitute_reply(
    row: Row, failure: Failure, on_failure: OnFailure | None, vocabulary: int
) -> Reply:
    """Returns the reply in place of one that failed.

    Raises:
      RespondError: no ``on_failure``, or its reply is malformed.
    """
    who = f"for request {row.request}, member {row.member}"
    if on_failure is None:
        raise RespondError(f"respond {who} {failure.detail}")
    reply = on_failure(row.request, row.member, list(row.ids), failure)
    # Of any length: one that is too long ends the row, as other observations do.
    if wrong := reply_failure(reply, vocabulary, longest=None):
        raise RespondError(f"on_failure {who} {wrong.detail}")
    return reply


def branch_number(parent: int, shared: int, index: int) -> int:
    """Returns the number of a branch in the sampling keys, in place of a member's index.

    It depends on where the row branched, and not on when: a branch has the same noise whatever ran
    beside it. Numbers are hashes of 30 bits behind those of all members.

    Args:
      parent: number of the row that it branched off.
      shared: ids of the completion that both have.
      index: of the branch among those of the reply.
    """
    return _BRANCHES | zlib.crc32(struct.pack("<3I", parent, shared, index)) % _BRANCHES
