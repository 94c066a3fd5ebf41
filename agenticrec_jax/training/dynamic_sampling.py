"""Dynamic sampling: rolling out further tasks of a step in place of groups that teach nothing.

DAPO (arXiv:2503.14476, Eq. 11) samples until a batch is full of groups with unequal rewards. Here a
step has a number of rounds. The first rolls out its tasks; each further one, of which there may be
none, as many tasks more as groups are missing. All processes agree on the count of groups kept, so
they take the same rounds; in one with few tasks some processes have none.

A batch is the *first* P groups, P being the tasks of a first round: those that are kept, in the
order of their tasks, and where they are fewer, dropped ones in theirs. It alone decides the
denominators: with every place refilled, means are over P groups that teach; a place that was not
keeps its share, as all do where nothing is refilled.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.losses import Metrics, keep_groups
from agenticrec_jax.parallel.multihost import allgather, own_part, share
from agenticrec_jax.training.batches import Group, Weighing, rollout_groups, sampled_tokens
from agenticrec_jax.training.rollouts import rewards_of

Roll = Callable[[int, Sequence[Task]], list[list[Trajectory]]]


@dataclass(frozen=True)
class Rolled:
    """What this process rolled out in a step.

    trajectories: [groups][members].
    places: of each group's task among all those of the step, over rounds and processes.
    prompts: P, the tasks of the first round over all processes.
    rounds: how many there were after the first.
    limit: how many there could have been.
    """

    trajectories: list[list[Trajectory]]
    places: list[int]
    prompts: int
    rounds: int
    limit: int


def kept(trajectories: Sequence[Sequence[Trajectory]], weighing: Weighing) -> np.ndarray:
    """Which groups are learned from, bool [groups]."""
    drops = weighing.drop_negative, weighing.drop_equal
    return np.asarray(keep_groups(rewards_of(trajectories), None, *drops)[0])


def roll_out(
    roll: Roll,
    tasks_at: Callable[[int], Sequence[Task]],
    step: int,
    weighing: Weighing,
    oversample: int = 0,
) -> Rolled:
    """Rolls out this process's share of a step, in 1 to ``1 + oversample`` rounds.

    Args:
      roll: ``(turn, tasks) -> trajectories``; rounds are counted on through the steps, so that no
        two have a turn in common: it stands for the step in the keys of sampling.
      tasks_at: a pure function of the turn. A round takes the first so many of its tasks; those it
        leaves are passed over.
      weighing: says which groups are dropped.
      oversample: how many rounds there may be after the first.
    """
    first = step * (1 + oversample)
    tasks = list(tasks_at(first))
    found, places = roll(first, share(tasks)), own_part(range(len(tasks)))
    prompts, offset, turn = len(tasks), len(tasks), first
    while turn < first + oversample and (missing := prompts - _all_kept(found, weighing)):
        turn += 1
        tasks = list(tasks_at(turn))[:missing]
        found = found + roll(turn, own_part(tasks))
        places += own_part(range(offset, offset + len(tasks)))
        offset += len(tasks)
    return Rolled(found, places, prompts, turn - first, oversample)


def _all_kept(trajectories: Sequence[Sequence[Trajectory]], weighing: Weighing) -> int:
    return sum(allgather(int(kept(trajectories, weighing).sum())))


def step_groups(rolled: Rolled, weighing: Weighing) -> tuple[list[Group], Metrics]:
    """Returns this process's groups of the batch that teach something, and metrics.

    The metrics are those of `rollout_groups`; with rounds after the first the counts of groups are
    of all that were rolled out, and there are ``groups_oversampled`` and ``groups_missing`` (both
    of the first round's tasks: what later rounds rolled out, and places that stayed empty) and
    ``oversampling_rounds``.
    """
    keep, tokens = kept(rolled.trajectories, weighing), sampled_tokens(rolled.trajectories)
    order = [[not k, p, int(n.sum())] for k, p, n in zip(keep, rolled.places, tokens, strict=True)]
    batch = sorted(row for part in allgather(order) for row in part)[: rolled.prompts]
    inside = {place for _, place, _ in batch}
    own = [i for i, place in enumerate(rolled.places) if place in inside]
    members, rewards = [rolled.trajectories[i] for i in own], rewards_of(rolled.trajectories)
    groups, metrics = rollout_groups(
        [group[0].prompt for group in members],
        members,
        rewards[own],
        total_prompts=rolled.prompts,
        total_tokens=sum(count for _, _, count in batch),
        **asdict(weighing),
    )
    if rolled.limit:
        metrics |= keep_groups(rewards, None, weighing.drop_negative, weighing.drop_equal)[1]
        metrics |= _refilled(rolled, len(own) - len(groups))
    return groups, metrics


def _refilled(rolled: Rolled, missing: int) -> Metrics:
    first = sum(place < rolled.prompts for place in rolled.places)
    return {
        "groups_oversampled": (len(rolled.places) - first, first),
        "groups_missing": (missing, first),
        "oversampling_rounds": (rolled.rounds, 1),
    }
