"""Dynamic sampling: rolls out further tasks in place of groups that teach nothing.

DAPO (arXiv:2503.14476, Eq. 11) samples until a batch is full of groups with unequal rewards. Here a
step has a bounded number of rounds. The first round rolls out the step's P tasks. Each further one
rolls out as many tasks as groups are still missing. All processes exchange how many groups they
have, so they take the same rounds. In a round with fewer tasks than processes some have none.

The batch has P groups: the first that teach, in the order of their tasks. If fewer than P teach,
the first dropped groups fill it up. The denominators are those of the batch: if every dropped group
was replaced, means are over P groups that teach; one that was not replaced keeps its share.

Example: P = 4 tasks and at most 2 further rounds. In step 3 the first round is turn 9; of its tasks
0 to 3 the groups 0 and 3 teach. Turn 10 rolls out 2 tasks, 4 and 5, of which 5 teaches. Turn 11
rolls out 1 task, 6, which teaches. The batch is 0, 3, 5 and 6; 3 groups were rolled out beyond P.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agenticrec_jax.agent.trajectories import Trajectory
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.losses import keep_groups
from agenticrec_jax.parallel.multihost import allgather, local_items, nonempty_local_items
from agenticrec_jax.training.groups import GroupWeighting, rewards_of
from agenticrec_jax.training.tasks import TasksAt
from agenticrec_jax.training.types import Rollouts


@dataclass(frozen=True)
class DynamicSampling:
    """Samples the rollouts of a step in 1 to ``1 + rounds`` rounds.

    Rounds are numbered through all steps: round r of a step is turn ``step * (1 + rounds) + r``.
    The turn stands for the step in the sampling keys, so no two rounds share their noise.

    Attributes:
      roll_out: ``(params=, tasks=, step=turn) -> [tasks][G]`` trajectories (`run_episodes`).
      engine: its ``telemetry`` holds the counters of its last call.
      tasks_at: tasks of a turn. A further round takes the first of them and passes over the rest.
      weighting: says which groups are dropped.
      rounds: most rounds after the first, 1 or more.
    """

    roll_out: Callable[..., list[list[Trajectory]]]
    engine: Engine
    tasks_at: TasksAt
    weighting: GroupWeighting
    rounds: int

    def __call__(self, step: int, params: Any) -> Rollouts:
        """Returns this process's rollouts of a step (from 0); every process must call this.

        Their metrics count groups over all rounds: those of `losses.keep_groups`, and

        - ``groups_oversampled``: groups that rounds after the first rolled out, per task of the
          first;
        - ``groups_missing``: dropped groups that no other replaced, per task of the first round;
        - ``oversampling_rounds``: rounds after the first.
        """
        turn = first_turn = step * (1 + self.rounds)
        tasks = list(self.tasks_at(turn))
        prompts = count = len(tasks)
        telemetry: Counter = Counter()
        trajectories = self._round(params, nonempty_local_items(tasks), turn, telemetry)
        positions = local_items(range(prompts))  # of each group's task among those of all rounds
        while turn < first_turn + self.rounds:
            # Counted over all processes, so that all leave the loop in the same turn.
            missing = prompts - sum(allgather(int(self._teaching(trajectories).sum())))
            if not missing:
                break
            turn += 1
            tasks = list(self.tasks_at(turn))[:missing]
            trajectories = trajectories + self._round(params, local_items(tasks), turn, telemetry)
            positions += local_items(range(count, count + len(tasks)))
            count += len(tasks)

        # False sorts before True: groups that teach come first, all in the order of their tasks.
        teaching = self._teaching(trajectories)
        ranked = [[not good, p] for good, p in zip(teaching.tolist(), positions, strict=True)]
        ranked = sorted(row for rows in allgather(ranked) for row in rows)
        chosen = {position for _, position in ranked[:prompts]}
        batch = [i for i, position in enumerate(positions) if position in chosen]
        first = sum(position < prompts for position in positions)
        _, metrics = self._keep(trajectories)
        metrics |= {
            "groups_oversampled": (len(positions) - first, first),
            "groups_missing": (int((~teaching[batch]).sum()), first),
            "oversampling_rounds": (turn - first_turn, 1),
        }
        return Rollouts(
            trajectories, batch=batch, prompts=prompts, telemetry=telemetry, metrics=metrics
        )

    def _round(self, params: Any, tasks: Sequence, turn: int, telemetry: Counter) -> list:
        trajectories = self.roll_out(params=params, tasks=tasks, step=turn)
        telemetry.update(self.engine.telemetry)
        return trajectories

    def _teaching(self, trajectories: Sequence[Sequence[Trajectory]]) -> np.ndarray:
        """Returns which groups are not dropped, bool [groups]."""
        return np.asarray(self._keep(trajectories)[0])

    def _keep(self, trajectories: Sequence[Sequence[Trajectory]]) -> tuple:
        return keep_groups(
            rewards_of(trajectories),
            None,
            self.weighting.drop_negative,
            self.weighting.drop_equal,
        )
