"""What an episode earns, as pure functions of numbers.

References: AgenticRec (arXiv:2603.21613), Eq. 1 for the ranking stage and Eq. 4 for the preference
stage; RecThinker (arXiv:2603.09843) for the reward with a term for the efficiency of tools. Every
reward is returned in parts that sum to the total, so that logs can tell a better ranking from a
better habit.
"""

from dataclasses import asdict, dataclass
from math import log2

import numpy as np
from jaxtyping import Bool, Float, Int

LIST_LENGTH = 10
MISS = -0.5
INVALID = -1.0
TOOL_BONUS = 0.1
FORMAT_BONUS = 0.1
EFFICIENCY_BONUS = 0.1


@dataclass(frozen=True)
class Reward:
    """A reward in its parts: one number each, or arrays of one shape.

    ranking: what the place of the target earns, or the cost of a valid list that misses it
      (in the preference stage: 1 for the right answer, else 0).
    format: the cost of an invalid output, or what a valid one earns; else 0.
    tool_bonus: what a first place earns on top for how tools were used, else 0.
    """

    ranking: float | Float[np.ndarray, "..."]
    format: float | Float[np.ndarray, "..."]
    tool_bonus: float | Float[np.ndarray, "..."]

    @property
    def total(self) -> float | Float[np.ndarray, "..."]:
        """The sum of the parts."""
        return self.ranking + self.format + self.tool_bonus

    def parts(self) -> dict:
        """The parts by name, without the total."""
        return asdict(self)


def ranking_reward(
    rank: int | None,
    valid: bool,
    used_tool: bool,
    *,
    list_length: int = LIST_LENGTH,
    miss: float = MISS,
    invalid: float = INVALID,
    tool_bonus: float = TOOL_BONUS,
) -> Reward:
    """Returns the list-wise reward of one episode (AgenticRec, Eq. 1).

    ``1 / log2(rank + 1)`` when the target is in the list, ``miss`` when a valid list leaves it out,
    ``invalid`` when the output is malformed, names an illegal item or tool or exceeds the calls;
    ``tool_bonus`` on top for rank 1 reached with at least one tool call.

    Args:
      rank: place of the target in the list, from 1; None if it is not there.
      valid: whether the output obeys the protocol.
      used_tool: whether the episode made at least one tool call.
      list_length: length of the list; a rank beyond it is a miss.

    Raises:
      ValueError: if rank is below 1.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}, expected 1 or more, or None for a target not listed")
    if not valid:
        return Reward(0.0, invalid, 0.0)
    if rank is None or rank > list_length:
        return Reward(miss, 0.0, 0.0)
    return Reward(1.0 / log2(rank + 1), 0.0, tool_bonus if rank == 1 and used_tool else 0.0)


def efficient_ranking_reward(
    rank: int | None,
    valid: bool,
    calls: int,
    max_calls: int,
    *,
    list_length: int = LIST_LENGTH,
    invalid: float = INVALID,
    format_bonus: float = FORMAT_BONUS,
    efficiency_bonus: float = EFFICIENCY_BONUS,
) -> Reward:
    """Returns RecThinker's reward of one episode: accuracy, format and efficiency of tools.

    ``1 / log2(rank + 1)``, 0 for a miss, and ``format_bonus`` for a valid list; ``invalid`` alone
    for an invalid output. A first place earns ``efficiency_bonus * (1 - calls / max_calls)`` on
    top; no other does, or calling no tool at all would pay by itself. The paper names the parts;
    the weights and this condition are ours.

    Args:
      rank: place of the target in the list, from 1; None if it is not there.
      valid: whether the output obeys the protocol.
      calls: tool calls of the episode.
      max_calls: most that it may make, at least 1.
      list_length: length of the list; a rank beyond it is a miss.

    Raises:
      ValueError: if rank is below 1, or calls are not 0 to max_calls of a valid episode.
    """
    plain = ranking_reward(
        rank, valid, False, list_length=list_length, miss=0.0, invalid=invalid, tool_bonus=0.0
    )
    if not valid:
        return plain
    if not 0 <= calls <= max_calls or max_calls < 1:
        raise ValueError(f"calls are {calls} of {max_calls}, expected 0 to as many, of 1 or more")
    efficiency = efficiency_bonus * (1 - calls / max_calls) if rank == 1 else 0.0
    return Reward(plain.ranking, format_bonus, efficiency)


def ranking_rewards(
    rank: Int[np.ndarray, "*shape"],
    valid: Bool[np.ndarray, "*shape"],
    used_tool: Bool[np.ndarray, "*shape"],
    *,
    list_length: int = LIST_LENGTH,
    miss: float = MISS,
    invalid: float = INVALID,
    tool_bonus: float = TOOL_BONUS,
) -> Reward:
    """Returns `ranking_reward` for arrays of one shape, a rank of 0 meaning "not in the list".

    Raises:
      ValueError: if a rank is negative.
    """
    rank, valid, used_tool = (np.asarray(x) for x in (rank, valid, used_tool))
    if (rank < 0).any():
        raise ValueError(f"rank {rank.min()} is negative, expected 0 for a target not listed")
    hit = valid & (rank >= 1) & (rank <= list_length)
    gain = 1.0 / np.log2(np.maximum(rank, 1) + 1.0)
    return Reward(
        ranking=np.where(hit, gain, np.where(valid, miss, 0.0)),
        format=np.where(valid, 0.0, invalid),
        tool_bonus=np.where(hit & (rank == 1) & used_tool, tool_bonus, 0.0),
    )


def preference_reward(correct: bool, valid: bool, *, invalid: float = INVALID) -> Reward:
    """Returns the reward of one pairwise question (AgenticRec, Eq. 4): 1 if right, else 0.

    An output that is not a valid answer, or exceeds the calls, earns ``invalid``. There is no tool
    bonus: it belongs to a first place in a list.
    """
    if not valid:
        return Reward(0.0, invalid, 0.0)
    return Reward(1.0 if correct else 0.0, 0.0, 0.0)


def preference_rewards(
    correct: Bool[np.ndarray, "*shape"],
    valid: Bool[np.ndarray, "*shape"],
    *,
    invalid: float = INVALID,
) -> Reward:
    """Returns `preference_reward` for arrays of one shape."""
    correct, valid = np.asarray(correct), np.asarray(valid)
    return Reward(
        ranking=np.where(valid & correct, 1.0, 0.0),
        format=np.where(valid, 0.0, invalid),
        tool_bonus=np.zeros(valid.shape),
    )
