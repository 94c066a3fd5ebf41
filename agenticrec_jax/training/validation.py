"""Validation on a schedule: greedy NDCG@10 of held-out examples, and the best state so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.parallel.multihost import allgather, nonempty_local_items
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.training.learner import TrainState

METRIC = "valid/ndcg@10"


@dataclass(frozen=True)
class Validation:
    """Scores the parameters on a schedule and saves the state with the highest score so far.

    Each best checkpoint stores its score, so a resumed run continues from it. Of equal scores the
    first is the best. A run can resume from any of its checkpoints. So beside the newest best state
    there stay the one that was the best at the oldest checkpoint, and every later one.

    Attributes:
      every: steps between scores; the last step of a stage is scored always.
      score: of the parameters, higher is better.
      best: checkpoints of the best states.
    """

    every: int
    score: Callable[[Any], float]
    best: Checkpoints

    def due(self, step: int, last: int) -> bool:
        """Whether the state after ``step`` updates, of ``last``, is scored."""
        return step % self.every == 0 or step == last

    def resume(self, start: int) -> None:
        """Deletes the best states of steps after ``start``, from which the run resumes."""
        self.best.drop([step for step in self.best.steps if step > start])

    def __call__(
        self, step: int, state: TrainState, checkpoints: Sequence[int] = ()
    ) -> dict[str, float]:
        """Scores a state, saves it if it is the best, and returns the metrics.

        - ``valid/ndcg@10``: score of this state;
        - ``valid/best``: highest score so far.

        Args:
          step: updates done.
          state: after them.
          checkpoints: steps from which the run could be resumed.
        """
        score = self.score(state.params)
        highest = (self.best.newest_host() or {}).get(METRIC, -math.inf)
        if score > highest:
            self.best.save(step, state, {METRIC: score})
            # Committed now: a kill could otherwise leave a later checkpoint without this state.
            self.best.wait()
        oldest = min(checkpoints, default=step)
        self.best.drop([saved for saved in self.best.steps if saved <= oldest][:-1])
        return {METRIC: score, "valid/best": max(score, highest)}


def ndcg_scorer(
    agent: Agent, engine: Engine, examples: Sequence[RankingExample]
) -> Callable[[Any], float]:
    """Returns a function from parameters to the mean NDCG@10 of greedy rankings.

    An invalid ranking counts as 0. On several processes each ranks its share; all get the mean over
    all.
    """

    def score(params: Any) -> float:
        share = nonempty_local_items(examples)
        ranks = [t.rank for t in evaluate(agent, engine, params, share, name="validation")]
        gains = [1 / math.log2(rank + 1) for rank in ranks if rank and rank <= 10]
        return math.fsum(sum(shares) for shares in allgather(gains)) / len(examples)

    return score
