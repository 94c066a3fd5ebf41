"""Validation on a schedule: greedy NDCG@10 of held-out examples, and the best weights kept."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.evaluation.evaluator import evaluate
from agenticrec_jax.generation.engine import Engine
from agenticrec_jax.parallel.multihost import allgather, share
from agenticrec_jax.runtime.checkpoints import Checkpoints
from agenticrec_jax.training.learner import TrainState

METRIC = "valid/ndcg@10"


@dataclass(frozen=True)
class Validation:
    """``score`` of the parameters every ``every`` steps and at the end of a stage.

    ``best`` keeps the state of the highest score so far, and with it the score: of equal ones the
    first. A resumed run reads it back from there. So that it can go on from any of its checkpoints,
    ``best`` keeps besides what was the best at the oldest of them, and what became so since.
    """

    every: int
    score: Callable[[Any], float]
    best: Checkpoints

    def due(self, step: int, last: int) -> bool:
        """Whether the state after ``step`` updates, of ``last``, is scored."""
        return step % self.every == 0 or step == last

    def resume(self, start: int) -> None:
        """Forgets the best of steps after ``start``, from which the run goes on."""
        self.best.drop([step for step in self.best.steps if step > start])

    def __call__(
        self, step: int, state: TrainState, checkpoints: Sequence[int] = ()
    ) -> dict[str, float]:
        """Scores the state after ``step`` updates and keeps it if it is the best; the metrics.

        ``checkpoints`` are the steps from which the run could be resumed.
        """
        score = self.score(state.params)
        highest = (self.best.newest_host() or {}).get(METRIC, -math.inf)
        if score > highest:
            self.best.save(step, state, {METRIC: score})
            self.best.wait()  # or a later checkpoint may be there without it
        oldest = min(checkpoints, default=step)
        self.best.drop([kept for kept in self.best.steps if kept <= oldest][:-1])
        return {METRIC: score, "valid/best": max(score, highest)}


def ndcg_of(
    agent: Agent, engine: Engine, examples: Sequence[RankingExample]
) -> Callable[[Any], float]:
    """What scores parameters: mean NDCG@10 of greedy rankings, 0 for an invalid one.

    On several processes each ranks its share; all get the mean over all.
    """

    def score(params: Any) -> float:
        ranks = [t.rank for t in evaluate(agent, engine, params, share(examples))]
        gains = [1 / math.log2(rank + 1) for rank in ranks if rank and rank <= 10]
        return math.fsum(sum(part) for part in allgather(gains)) / len(examples)

    return score
