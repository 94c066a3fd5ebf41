"""Rewards of one episode, as pure functions of numbers.

A reward is returned as components that sum to the total, so that logs tell a better ranking from a
better format or fewer calls. Sources: AgenticRec (arXiv:2603.21613), Eq. 1 for the ranking stage
and Eq. 4 for the preference stage; RecThinker (arXiv:2603.09843) for the term of tool efficiency.

`agenticrec_jax.agent.rewards` applies these functions to trajectories and says how to add another.
"""

from dataclasses import asdict, dataclass
from math import log2

LIST_LENGTH = 10
MISS = -0.5
INVALID = -1.0
TOOL_BONUS = 0.1
FORMAT_BONUS = 0.1
EFFICIENCY_BONUS = 0.1


@dataclass(frozen=True)
class Reward:
    """A reward and its components.

    Attributes:
      ranking: the gain of the target's rank, or the penalty of a valid list without the target; in
        the preference stage 1 for the correct answer, else 0.
      format: the penalty of an invalid output, or the bonus of a valid one, else 0.
      tool_bonus: the bonus of a first rank for the use of tools, else 0.

    Example:
      >>> Reward(ranking=1.0, format=0.0, tool_bonus=0.1).total
      1.1
    """

    ranking: float
    format: float
    tool_bonus: float

    @property
    def total(self) -> float:
        """The sum of the components."""
        return self.ranking + self.format + self.tool_bonus

    def components(self) -> dict[str, float]:
        """Returns the components by name, without the total."""
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

    ======================================  ================================================
    valid list, target at rank r            ``1 / log2(r + 1)``
    the same, r = 1 and a tool was called   ``1 + tool_bonus``
    valid list without the target           ``miss``
    invalid output                          ``invalid``
    ======================================  ================================================

    An output is invalid if it is malformed, names an unknown item or tool or exceeds the calls.

    Args:
      rank: rank of the target in the list, from 1; None if the list does not have it.
      valid: whether the output obeys the protocol.
      used_tool: whether the episode made at least one tool call.
      list_length: length of the list; a rank beyond it is a miss.
      miss: reward of a valid list without the target.
      invalid: reward of an invalid output.
      tool_bonus: bonus of rank 1 with at least one tool call.

    Returns:
      the reward, of which the total is one of the lines above.

    Raises:
      ValueError: rank is below 1.

    Example:
      >>> [ranking_reward(rank, True, True).total for rank in (1, 3, 7, None)]
      [1.1, 0.5, 0.3333333333333333, -0.5]
      >>> ranking_reward(None, False, True).total
      -1.0
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
    """Returns RecThinker's reward of one episode: accuracy, format and tool efficiency.

    A valid list earns ``1 / log2(rank + 1)``, or 0 for a miss, and ``format_bonus``. Rank 1 earns
    ``efficiency_bonus * (1 - calls / max_calls)`` more. No other rank does: otherwise an episode
    without any call would be paid for that alone. An invalid output earns ``invalid``. The paper
    (arXiv:2603.09843) names the terms; their weights and the condition on rank 1 are ours.

    Args:
      rank: rank of the target in the list, from 1; None if the list does not have it.
      valid: whether the output obeys the protocol.
      calls: tool calls of the episode.
      max_calls: limit of the calls, at least 1.
      list_length: length of the list; a rank beyond it is a miss.
      invalid: reward of an invalid output.
      format_bonus: reward of a valid list, whatever its ranking.
      efficiency_bonus: bonus of rank 1 without any call.

    Returns:
      the reward; its ``tool_bonus`` is the efficiency term.

    Raises:
      ValueError: rank is below 1, or calls of a valid episode are not in 0 to max_calls.

    Example:
      >>> efficient_ranking_reward(1, True, calls=3, max_calls=10)
      Reward(ranking=1.0, format=0.1, tool_bonus=0.06999999999999999)
      >>> efficient_ranking_reward(3, True, calls=0, max_calls=10).total
      0.6
    """
    accuracy = ranking_reward(
        rank, valid, False, list_length=list_length, miss=0.0, invalid=invalid, tool_bonus=0.0
    )
    if not valid:
        return accuracy
    if not 0 <= calls <= max_calls or max_calls < 1:
        raise ValueError(f"calls are {calls} of {max_calls}, expected 0 to as many, of 1 or more")
    efficiency = efficiency_bonus * (1 - calls / max_calls) if rank == 1 else 0.0
    return Reward(accuracy.ranking, format_bonus, efficiency)


def preference_reward(correct: bool, valid: bool, *, invalid: float = INVALID) -> Reward:
    """Returns the reward of one preference question (AgenticRec, Eq. 4).

    There is no tool bonus: it belongs to the first rank of a list.

    Args:
      correct: whether the answer names the right candidate.
      valid: whether the output obeys the protocol.
      invalid: reward of an invalid output.

    Returns:
      1 for the correct answer, 0 for the other one, ``invalid`` for an invalid output.

    Example:
      >>> [preference_reward(correct, True).total for correct in (True, False)]
      [1.0, 0.0]
      >>> preference_reward(False, valid=False).total
      -1.0
    """
    if not valid:
        return Reward(0.0, invalid, 0.0)
    return Reward(1.0 if correct else 0.0, 0.0, 0.0)
