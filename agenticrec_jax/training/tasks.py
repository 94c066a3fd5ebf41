"""Tasks of a stage of reinforcement: a pure function of the step, so that a run can resume."""

from collections.abc import Callable, Sequence

from agenticrec_jax.agent.tasks import Task
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.training.epochs import batch_at, shuffled_epochs
from agenticrec_jax.training.mining import HardPair, preference_tasks

TasksAt = Callable[[int], Sequence[Task]]  # the tasks of a step (from 0), of all processes


def ranking_tasks(examples: Sequence[RankingExample], prompts: int, seed: int) -> TasksAt:
    """Returns batches of ``prompts`` ranking tasks; each epoch goes over all examples anew."""
    shuffled = shuffled_epochs(examples, seed)

    def tasks_at(step: int) -> list[Task]:
        return [Task(example) for example in batch_at(shuffled, step, prompts)]

    return tasks_at


def refinement_tasks(
    pairs: Sequence[HardPair],
    examples: Sequence[RankingExample],
    prompts: int,
    rank_share: float,
    seed: int,
) -> TasksAt:
    """Returns batches of preference questions, with ranking tasks as an anchor against forgetting.

    The ranking tasks go over the examples in shuffled passes of their own. A step rolls them out
    anew, and each is a group of its own with the reward of stage one, so its advantages do not
    depend on the questions in the batch.

    Args:
      pairs: of the questions.
      examples: of the pairs, and to rank.
      prompts: tasks in a batch.
      rank_share: share of ranking tasks in a batch, 0 to 1, rounded to whole tasks.
      seed: of the order of tasks, and of A and B in a question.
    """
    questions = preference_tasks(pairs, {e.example_id: e for e in examples}, seed)
    shuffled = shuffled_epochs(questions, seed)
    rankings = round(prompts * rank_share)
    ranking = ranking_tasks(examples, rankings, seed + 1) if rankings else lambda step: []

    def tasks_at(step: int) -> list[Task]:
        return [*batch_at(shuffled, step, prompts - rankings), *ranking(step)]

    return tasks_at
