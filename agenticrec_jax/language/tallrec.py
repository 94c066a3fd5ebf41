"""TALLRec: a language model says of each candidate whether the user takes it next, yes or no.

Bao et al., "TALLRec: An Effective and Efficient Tuning Framework to Align Large Language Model with
Recommendation" (RecSys 2023, arXiv:2305.00447). The model is fine-tuned on the answer to such
questions and ranks by the probability of yes, against that of no. Theirs lists liked and disliked
items; here the history has the items that the user took.

Axes: C candidates.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample, drawn_negatives
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.errors import InputError
from agenticrec_jax.language.answers import numbered, shown_titles
from agenticrec_jax.language.turns import assistant_turn, user_turn
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.training.epochs import Epochs
from agenticrec_jax.training.groups import demonstration_groups
from agenticrec_jax.training.packing import Packing, pack_groups, pack_share
from agenticrec_jax.training.references import Scorer
from agenticrec_jax.training.types import Demonstration, RolloutBatch
from agenticrec_jax.types import OBSERVATION, SAMPLED


@dataclasses.dataclass(frozen=True)
class YesNoPrompts:
    """Questions on one candidate each. Those of an example share their beginning, the history.

    Attributes:
      tokenizer: of the policy.
      items: the catalog, for titles.
      title_words: words of a title before its visible cut.
    """

    tokenizer: Tokenizer
    items: Items
    title_words: int = 20

    @cached_property
    def answers(self) -> tuple[int, int]:
        """The first ids of yes and no.

        Raises:
          InputError: the tokenizer begins both with the same id.
        """
        yes, no = (self.tokenizer.encode_data(word)[0] for word in ("Yes", "No"))
        if yes == no:
            file = self.tokenizer.file
            raise InputError(f"{file}: found one id that begins Yes and No, expected two")
        return yes, no

    def beginning(self, history: Sequence[int]) -> list[int]:
        """Returns the ids up to the candidate, for items that were taken, oldest first."""
        titles = shown_titles(self.items, history, self.title_words)
        text = f"Taken before, oldest first:\n{numbered(titles, mark='h')}"
        return [*user_turn(self.tokenizer), *self.tokenizer.encode_data(text)]

    def question(self, item: int) -> list[int]:
        """Returns the ids of a candidate, up to the answer."""
        (title,) = shown_titles(self.items, [item], self.title_words)
        text = f"\nCandidate: {title}\nDoes the user take the candidate next? Answer Yes or No."
        return [*self.tokenizer.encode_data(text), *assistant_turn(self.tokenizer)]

    def answered(self, item: int, taken: bool) -> Demonstration:
        """Returns the question on a candidate to read, and its answer to imitate."""
        ids = [*self.question(item), self.answers[0 if taken else 1]]
        origin = np.full(len(ids), OBSERVATION)
        origin[-1] = SAMPLED
        return Demonstration(np.asarray(ids), origin)


@dataclasses.dataclass(frozen=True)
class YesNoQuestions(Epochs):
    """Batches of questions on examples, ``size`` examples a step.

    Of each example the target is answered by yes, and ``negatives`` of its other candidates, drawn
    anew in each step, by no.

    Attributes:
      prompts: of the questions.
      negatives: questions that are answered by no, of each example.
    """

    prompts: YesNoPrompts
    negatives: int

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """Returns this process's micro-batches of a step, weighted for a mean over questions."""
        examples = self.items_at(step)
        answers = [self._answers(example, step) for example in examples]
        groups = demonstration_groups(
            prompts=[self.prompts.beginning(example.history) for example in examples],
            demonstrations=answers,
            weight=1.0 / (len(examples) * (1 + self.negatives)),
        )
        return pack_share(groups, packing)

    def _answers(self, example: RankingExample, step: int) -> list[Demonstration]:
        drawn = drawn_negatives(example, self.negatives, seed=(self.seed, step))
        return [
            self.prompts.answered(example.target, True),
            *(self.prompts.answered(item, False) for item in drawn),
        ]


def yes_scores(
    score: Scorer, params: Any, prompts: YesNoPrompts, example: RankingExample, packing: Packing
) -> Float[np.ndarray, "C"]:
    """Returns the log-odds of yes against no for each candidate of an example.

    Args:
      score: of `training.logprobs.make_scorer`.
      params: parameters of the policy.
      prompts: of the questions.
      example: whose candidates are scored; its target is not read.
      packing: of the example's questions.
    """
    answers = [
        prompts.answered(item, taken) for taken in (True, False) for item in example.candidates
    ]
    groups = demonstration_groups([prompts.beginning(example.history)], [answers], weight=1.0)
    (batch,) = pack_groups(groups, packing)
    logprobs = np.asarray(score(params, batch))[0].sum(axis=-1)  # of the answer: 0 elsewhere
    yes, no = np.split(logprobs, 2)
    return yes - no
