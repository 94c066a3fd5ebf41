"""A ranking example: a history, twenty numbered candidates, one of them the next item."""

from dataclasses import dataclass


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
      target: item code of the next item.
      split: name of the part it belongs to (``policy``, ``valid``, ``test``, ..).
    """

    example_id: int
    user: int
    position: int
    time: int
    history: tuple[int, ...]
    candidates: tuple[int, ...]
    target: int
    split: str

    @property
    def target_number(self) -> int:
        """The target's candidate number, counted from 1."""
        return self.candidates.index(self.target) + 1
