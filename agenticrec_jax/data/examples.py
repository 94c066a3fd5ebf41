"""The ranking example: a history and twenty numbered candidates, one of them the next item."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")
NOW = "now"  # the split of examples after the whole log, whose target is unknown


@dataclass(frozen=True)
class RankingExample:
    """One example, the same for every method.

    Attributes:
      example_id: the target's position in the log; unique.
      user: user code.
      position: event index of the target; of the user only events before it may be used.
      time: unix seconds of the target; of other users only strictly earlier events may be used.
      history: item codes before the target, oldest first.
      candidates: C item codes in the order of the prompt; candidate number n is
        ``candidates[n - 1]``.
      target: item code of the next item; None where it is not known yet.
      split: ``policy``, ``valid``, ``test`` or ``now``.
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
        """The target's candidate number, counted from 1; None without a target."""
        return None if self.target is None else self.candidates.index(self.target) + 1


def drawn_negatives(example: RankingExample, count: int, seed: Sequence[int]) -> list[int]:
    """Returns ``count`` different candidates other than the target, drawn by seed and example."""
    others = [item for item in example.candidates if item != example.target]
    rng = np.random.default_rng((*seed, example.example_id))
    return rng.choice(others, count, replace=False).tolist()


def evenly_spread(examples: Sequence[T], count: int) -> list[T]:
    """Returns ``count`` of the examples or samples, evenly spread over time; all of them for 0."""
    if not count or count >= len(examples):
        return list(examples)
    return [examples[i * len(examples) // count] for i in range(count)]
