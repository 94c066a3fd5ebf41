"""A ranking example: a history, twenty numbered candidates, one of them the next item."""

from collections.abc import Sequence
from dataclasses import dataclass

from agenticrec_jax.data.interactions import InteractionLog

NOW = "now"  # the split of questions that are asked after the whole log


@dataclass(frozen=True)
class RankingExample:
    """One question as every method sees it.

    Attributes:
      example_id: the target's position in the log; unique.
      user: user code.
      position: event index of the target; only the user's events before it may be shown.
      time: unix seconds of the target; of others only strictly earlier events may be used.
      history: item codes before the target, oldest first.
      candidates: C item codes in the order shown; candidate number n is ``candidates[n - 1]``.
      target: item code of the next item; None where nobody knows it yet.
      split: name of the part it belongs to (``policy``, ``valid``, ``test``, ..).
    """

    example_id: int
    user: int
    position: int
    time: int
    history: tuple[int, ...]
    candidates: tuple[int, ...]
    target: int | None
    split: str

    @property
    def target_number(self) -> int | None:
        """The target's candidate number, counted from 1; None where there is no target."""
        return None if self.target is None else self.candidates.index(self.target) + 1


def next_item_example(
    log: InteractionLog, user: int, candidates: Sequence[int], max_history: int = 10
) -> RankingExample:
    """What a user with events may take next of ``candidates``, after the last event of the log.

    It is asked a second later, of all that is known of the user; its id is beyond all positions.
    """
    history = log.item[log.events_of(user)][-max_history:]
    return RankingExample(
        example_id=len(log) + user,
        user=user,
        position=len(log),
        time=int(log.time[-1]) + 1,
        history=tuple(history.tolist()),
        candidates=tuple(candidates),
        target=None,
        split=NOW,
    )
