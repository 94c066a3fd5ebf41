"""RecThinker's self-augmented fine-tuning: imitate the best of the policy's own trajectories.

The paper (arXiv:2603.09843) trains on filtered trajectories of high quality and does not give the
rules of its filter. The rules here judge outcomes alone, not what a text claims.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from agenticrec_jax import strict_json
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.errors import expect
from agenticrec_jax.paths import Path
from agenticrec_jax.training.epochs import Epochs
from agenticrec_jax.training.groups import demonstration_groups
from agenticrec_jax.training.packing import Packing, pack_share
from agenticrec_jax.training.types import Demonstration, RolloutBatch
from agenticrec_jax.types import SAMPLED

INVALID = "invalid"
TOO_FEW_CALLS = "too_few_calls"
TOO_MANY_CALLS = "too_many_calls"
REPEATED_CALL = "repeated_call"
LOW_RANK = "low_rank"
SURPLUS = "surplus"
RULES = (INVALID, TOO_FEW_CALLS, TOO_MANY_CALLS, REPEATED_CALL, LOW_RANK, SURPLUS)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules for trajectories that are worth imitating: a valid answer, no repeated call, and these.

    Attributes:
      max_calls: most tool calls.
      min_calls: fewest tool calls.
      best_rank: worst rank of the target (2: NDCG@10 of at least .63).
      per_example: most trajectories of a group.
    """

    max_calls: int = 8
    min_calls: int = 1
    best_rank: int = 2
    per_example: int = 2

    def __post_init__(self):
        expect(self.min_calls >= 0, "min_calls", self.min_calls, "0 or above")
        enough = f"min_calls {self.min_calls} or above"
        expect(self.max_calls >= self.min_calls, "max_calls", self.max_calls, enough)
        expect(self.best_rank >= 1, "best_rank", self.best_rank, "1 or above")
        expect(self.per_example >= 1, "per_example", self.per_example, "1 or above")

    def broken(self, trajectory: Trajectory) -> str | None:
        """Returns the first of ``RULES`` that a trajectory breaks by itself; None for none."""
        calls = [
            (call.name, strict_json.dumps(call.arguments, sort_keys=True))
            for call in trajectory.calls
        ]
        broken = {
            INVALID: not trajectory.valid,
            TOO_FEW_CALLS: len(calls) < self.min_calls,
            TOO_MANY_CALLS: len(calls) > self.max_calls,
            REPEATED_CALL: len(set(calls)) < len(calls),
            LOW_RANK: trajectory.rank is None or trajectory.rank > self.best_rank,
        }
        return next((rule for rule, breaks in broken.items() if breaks), None)


def select(
    groups: Iterable[Sequence[Trajectory]], rules: Rules
) -> tuple[list[list[Trajectory]], Counter]:
    """Returns the selected trajectories of each group, and how many each of ``RULES`` dropped.

    The better rank goes first, then fewer calls, then the earlier member. A trajectory counts for
    the first rule it breaks, so selected and dropped ones add up to all of them.
    """
    selected = []
    dropped = Counter(dict.fromkeys(RULES, 0))
    for group in groups:
        verdicts = [rules.broken(trajectory) for trajectory in group]
        dropped.update(verdict for verdict in verdicts if verdict)
        good = [t for t, verdict in zip(group, verdicts, strict=True) if verdict is None]
        good.sort(key=lambda t: (t.rank, len(t.calls), t.member))
        selected.append(good[: rules.per_example])
        dropped[SURPLUS] += len(good) - len(selected[-1])
    return selected, dropped


class Imitation(Epochs):
    """Batches of trajectories, ``size`` a step."""

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """Returns this process's micro-batches of a step, weighted for a mean over sampled tokens.

        The ids are those that were sampled: no text is tokenized again.
        """
        trajectories = self.items_at(step)
        groups = demonstration_groups(
            prompts=[t.prompt for t in trajectories],
            demonstrations=[[Demonstration(t.ids, t.origin)] for t in trajectories],
        )
        return pack_share(groups, packing)


def learning_forced(trajectory: Trajectory) -> Trajectory:
    """Returns the trajectory with a forced first call as if the policy had sampled it.

    Forced ids (`agent.openings`) stand at the beginning and have the origin of observations, so an
    imitation does not learn them otherwise. A trajectory without a forced call stays as it is, and
    so does one whose forced call the tool refused.
    """
    sampled = np.flatnonzero(trajectory.origin == SAMPLED)
    forced = int(sampled[0]) if len(sampled) else 0
    if not forced or not trajectory.calls or not trajectory.calls[0].ok:
        return trajectory
    origin = trajectory.origin.copy()
    origin[:forced] = SAMPLED
    return dataclasses.replace(trajectory, origin=origin)


def read_groups(path: Path, members: int) -> list[list[Trajectory]]:
    """Returns the trajectories of a file of JSON lines, in groups of ``members``."""
    with path.open() as file:
        trajectories = [Trajectory.from_json(line) for line in file]
    return [trajectories[i : i + members] for i in range(0, len(trajectories), members)]
