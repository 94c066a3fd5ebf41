"""Tasks of the policy: rank an example's candidates, or choose one of a pair."""

import dataclasses

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.errors import expect

RANK = "rank"
MORE = "more"
LESS = "less"
TASKS = (RANK, MORE, LESS)


@dataclasses.dataclass(frozen=True)
class Task:
    """One question to the policy.

    Attributes:
      example: the example to rank. Of a preference question its candidates are the pair.
      kind: ``rank``, or ``more`` / ``less``: which of the two is more / less likely taken next.

    Raises:
      InputError: the kind is none of ``TASKS``.
    """

    example: RankingExample
    kind: str = RANK

    def __post_init__(self):
        expect(self.kind in TASKS, "task, field kind", self.kind, f"one of {', '.join(TASKS)}")


def correct_choice(task: Task) -> str:
    """Returns the letter that answers a preference question.

    It is the target's letter for ``more``, the other candidate's for ``less``.
    """
    target_is_a = task.example.target_number == 1
    return "A" if target_is_a == (task.kind == MORE) else "B"
