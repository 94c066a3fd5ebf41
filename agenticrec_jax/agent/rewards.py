"""Rewards of finished trajectories: the named ones, and the contract of a custom one.

A reward is a function ``(trajectory, task) -> Reward``. It is called once for every finished
trajectory, valid or not, and what it returns trains every token that the policy sampled in it. By
`expected_reward` it is called for each candidate in the place of the target.
``config.reward`` is a name in `REWARDS` or the import path of a custom function,
``package.module:function``.

The trajectory has everything that happened: ``valid`` and ``invalid_reason``, ``ranking`` and
``rank`` (of a ranking task), ``choice`` (of a preference question), ``calls`` and the token ids.
The task has the example with its ``target``. The function must

- return a `Reward` whose components are finite numbers, for every kind of task and also for an
  invalid trajectory (``ranking``, ``rank`` and ``choice`` are then None);
- depend on its arguments only: the processes of a run, and a resumed run, compute it again.

A reward that pays for short trajectories beside the ranking:

  >>> from agenticrec_jax.agent.rewards import agenticrec_reward
  >>> from agenticrec_jax.rewards import Reward
  >>> def brief_reward(trajectory, task):
  ...     reward = agenticrec_reward(trajectory, task)
  ...     if not trajectory.valid:
  ...         return reward
  ...     bonus = 0.1 * (1 - len(trajectory.calls) / 10)
  ...     return Reward(reward.ranking, reward.format, reward.tool_bonus + bonus)

In ``my_rewards.py`` it is chosen with ``--config.reward=my_rewards:brief_reward``. In Python it is
``Agent(..., reward=brief_reward)``.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.tasks import RANK, Task, correct_choice
from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.errors import expect, import_path_of
from agenticrec_jax.rewards import (
    Reward,
    efficient_ranking_reward,
    preference_reward,
    ranking_reward,
)

RewardFn = Callable[[Trajectory, Task], Reward]


def agenticrec_reward(trajectory: Trajectory, task: Task) -> Reward:
    """Returns AgenticRec's reward (arXiv:2603.21613), of a ranking Eq. 1, of a question Eq. 4."""
    if task.kind == RANK:
        return ranking_reward(trajectory.rank, trajectory.valid, bool(trajectory.calls))
    return preference_reward(trajectory.choice == correct_choice(task), trajectory.valid)


def recthinker_reward(trajectory: Trajectory, task: Task) -> Reward:
    """Returns RecThinker's reward (arXiv:2603.09843) of a ranking, with ``MAX_CALLS`` calls.

    The paper has no preference questions: their reward is AgenticRec's.
    """
    if task.kind != RANK:
        return agenticrec_reward(trajectory, task)
    calls = min(len(trajectory.calls), protocol.MAX_CALLS)
    return efficient_ranking_reward(trajectory.rank, trajectory.valid, calls, protocol.MAX_CALLS)


REWARDS: dict[str, RewardFn] = {"agenticrec": agenticrec_reward, "recthinker": recthinker_reward}


def expected_reward(reward: RewardFn, probabilities: Mapping[int, Mapping[int, float]]) -> RewardFn:
    """Returns a reward's mean over a task's candidates, by the probability of each as the target.

    The item that a user took is one draw of several that were likely. Where the probabilities are
    right given all that the agent reads, the mean has the expectation of the reward itself and less
    variance (Rao, 1945; Blackwell, 1947). What they do not know is not rewarded.

    Of a hard pair the mean is another reward and not only one of less variance: a pair is mined
    where the policy has the target wrong, so that its answer is the item against the evidence more
    often than in a pair drawn at random.

    Args:
      reward: of one target.
      probabilities: of the candidates of each example by its id, by item code. Of a pair they are
        divided by their sum.

    Returns:
      a reward that raises what `scored` does, and KeyError for an example without probabilities.
    """

    def mean_reward(trajectory: Trajectory, task: Task) -> Reward:
        example, ranking = task.example, trajectory.ranking or ()
        chances = np.array([probabilities[example.example_id][i] for i in example.candidates])
        components = dict.fromkeys(Reward(0.0, 0.0, 0.0).components(), 0.0)
        for number, chance in enumerate(chances / chances.sum(), 1):
            rank = ranking.index(number) + 1 if number in ranking else None
            target = dataclasses.replace(example, target=example.candidates[number - 1])
            as_target = Task(target, task.kind)
            one = scored(reward, dataclasses.replace(trajectory, rank=rank), as_target)
            for name, value in one.components().items():
                components[name] += float(chance) * value
        return Reward(**components)

    return mean_reward


def scored(reward: RewardFn, trajectory: Trajectory, task: Task) -> Reward:
    """Calls ``reward`` and checks what it returns.

    Returns:
      the same reward with components of type ``float``, as a trajectory's JSON line needs them.

    Raises:
      InputError: it is no `Reward`, or a component is no finite number; the error names the
        function.
    """
    where = f"reward {import_path_of(reward)} of example {trajectory.example_id}"
    returned = reward(trajectory, task)
    expect(isinstance(returned, Reward), where, returned, "a Reward")
    for component, value in returned.components().items():
        number = np.asarray(value)
        finite = number.ndim == 0 and number.dtype.kind in "biuf" and np.isfinite(number)
        expect(bool(finite), f"{where}, {component}", value, "a finite number")
    return Reward(**{component: float(value) for component, value in returned.components().items()})
