"""Training on pairs without rollouts: fixed answers to a question, the preferred one first.

A pair makes questions of one of two forms. Choices: which of the two items is MORE and which is
LESS likely next, answered by a letter (AgenticRec, arXiv:2603.21613, Section 3.3; DPO,
arXiv:2305.18290). Rankings: the usual prompt over all candidates, answered by the beginning of a
ranking that puts one item first, against several others (S-DPO, arXiv:2406.09215). Prompts are
those of rollouts, tools offered; the answer is scored as if it came at once, without calls.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agenticrec_jax.agent import protocol
from agenticrec_jax.agent.episodes import Agent
from agenticrec_jax.agent.tasks import Task, correct_choice
from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.training.epochs import Epochs
from agenticrec_jax.training.groups import demonstration_groups
from agenticrec_jax.training.mining import HardPair, preference_tasks
from agenticrec_jax.training.packing import Packing, pack_share
from agenticrec_jax.training.types import Demonstration, RolloutBatch
from agenticrec_jax.types import SAMPLED

Examples = Mapping[int, RankingExample]  # by their id


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt with fixed answers.

    Attributes:
      prompt: token ids.
      answers: token ids of each answer, the preferred one first.
    """

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]


QuestionsOf = Callable[[HardPair], Sequence[Question]]


def choice_questions(agent: Agent, examples: Examples, seed: int) -> QuestionsOf:
    """Returns a function from a pair to its MORE and its LESS question.

    Their order of A and B is that of `mining.preference_tasks`.
    """

    def questions_of(pair: HardPair) -> list[Question]:
        questions = []
        for task in preference_tasks([pair], examples, seed):
            letters = "AB" if correct_choice(task) == "A" else "BA"
            answers = [agent.prompts.written(protocol.render_choice(letter)) for letter in letters]
            questions.append(Question(agent.prompt(task), answers))
        return questions

    return questions_of


def first_rank_questions(
    agent: Agent, examples: Examples, negatives: int, seed: int
) -> QuestionsOf:
    """Returns a function from a pair to one question: which candidate is ranked first.

    Its answers are the pair's positive and ``negatives`` others: the pair's negative, and further
    candidates drawn by the seed.
    """

    def questions_of(pair: HardPair) -> list[Question]:
        example = examples[pair.example_id]
        rng = np.random.default_rng((seed, pair.example_id, pair.negative))
        others = [c for c in example.candidates if c not in (pair.positive, pair.negative)]
        drawn = rng.choice(others, size=negatives - 1, replace=False).tolist()
        numbers = [
            example.candidates.index(item) + 1 for item in (pair.positive, pair.negative, *drawn)
        ]
        answers = [agent.prompts.written(protocol.render_first(number)) for number in numbers]
        return [Question(agent.prompt(Task(example)), answers)]

    return questions_of


@dataclasses.dataclass(frozen=True)
class Preferences(Epochs):
    """Batches of questions about pairs, ``size`` pairs a step.

    Attributes:
      questions_of: `choice_questions` or `first_rank_questions`.
    """

    questions_of: QuestionsOf

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """Returns this process's micro-batches of a step, weighted for a mean over questions."""
        questions = [q for pair in self.items_at(step) for q in self.questions_of(pair)]
        answers = [
            [Demonstration(np.asarray(ids), np.full(len(ids), SAMPLED)) for ids in question.answers]
            for question in questions
        ]
        groups = demonstration_groups(
            prompts=[question.prompt for question in questions],
            demonstrations=answers,
            weight=1.0 / len(questions),
        )
        return pack_share(groups, packing)
