"""Training on pairs without rollouts: fixed answers to a question, the preferred one first.

A pair is asked in one of two forms. Questions: which of the two is MORE and which is LESS likely
next, answered by a letter (AgenticRec, arXiv:2603.21613, Section 3.3; DPO, arXiv:2305.18290).
Rankings: the usual prompt over all candidates, answered by the beginning of a ranking that puts one
item first, against several others (S-DPO, arXiv:2406.09215). Prompts are those of rollouts, tools
offered; the answer is scored as if it came at once, without calls.
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

Examples = Mapping[int, RankingExample]


@dataclasses.dataclass(frozen=True)
class Question:
    """Ids of a prompt, and of the answers to it: first the preferred one."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]


Ask = Callable[[HardPair], Sequence[Question]]


def choices(agent: Agent, examples: Examples, seed: int) -> Ask:
    """A MORE and a LESS question of each pair, as `preference_tasks` draws their order."""

    def ask(pair: HardPair) -> list[Question]:
        return [_choice(agent, task) for task in preference_tasks([pair], examples, seed)]

    return ask


def _choice(agent: Agent, task: Task) -> Question:
    letters = "AB" if correct_choice(task) == "A" else "BA"
    answers = [agent.prompts.written(protocol.render_choice(letter)) for letter in letters]
    return Question(agent.prompt(task), answers)


def first_places(agent: Agent, examples: Examples, negatives: int, seed: int) -> Ask:
    """One question of each pair: which candidate comes first, the positive or ``negatives`` others.

    The pair's negative is among these; the rest is drawn from the other candidates, by the seed.
    """

    def ask(pair: HardPair) -> list[Question]:
        example = examples[pair.example_id]
        rng = np.random.default_rng((seed, pair.example_id, pair.negative))
        others = [c for c in example.candidates if c not in (pair.positive, pair.negative)]
        drawn = rng.choice(others, size=negatives - 1, replace=False).tolist()
        named = [
            example.candidates.index(item) + 1 for item in (pair.positive, pair.negative, *drawn)
        ]
        answers = [agent.prompts.written(protocol.render_first(number)) for number in named]
        return [Question(agent.prompt(Task(example)), answers)]

    return ask


@dataclasses.dataclass(frozen=True)
class Preferences(Epochs):
    """Batches of questions about pairs, ``size`` pairs a step."""

    ask: Ask

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """The micro-batches of a step; the loss is a mean over its questions."""
        questions = [question for pair in self.items_at(step) for question in self.ask(pair)]
        answers = [
            [Demonstration(np.asarray(ids), np.full(len(ids), SAMPLED)) for ids in question.answers]
            for question in questions
        ]
        prompts = [question.prompt for question in questions]
        groups = demonstration_groups(prompts, answers, weight=1.0 / len(questions))
        return pack_share(groups, packing)
