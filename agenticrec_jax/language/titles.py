"""Titles as answers: a language model is asked which candidate comes next, and writes its title.

LLaRA, S-DPO and ReRe share this question. A candidate's score is the log-likelihood of its title,
so a model that writes one title ranks them all. A title ends with the end of the turn: without it
the beginning of another title would be as good an answer as the whole.

Axes: C candidates, T tokens of a title.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from agenticrec_jax.data.examples import RankingExample, drawn_negatives
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.language.answers import shown_titles
from agenticrec_jax.language.turns import assistant_turn, user_turn
from agenticrec_jax.tokenizers.base import Tokenizer
from agenticrec_jax.training.epochs import Epochs
from agenticrec_jax.training.groups import demonstration_groups
from agenticrec_jax.training.packing import Packing, pack_groups, pack_share
from agenticrec_jax.training.references import Scorer
from agenticrec_jax.training.types import Demonstration, Group, RolloutBatch
from agenticrec_jax.types import SAMPLED


@dataclasses.dataclass(frozen=True)
class TitlePrompts:
    """Questions that list history and candidates by title, and their answers.

    Attributes:
      tokenizer: of the policy.
      items: the catalog, for titles.
      title_words: words of a title before its visible cut.
    """

    tokenizer: Tokenizer
    items: Items
    title_words: int = 20

    def prompt(self, example: RankingExample, first_item_id: int | None = None) -> list[int]:
        """Returns the ids of the question, up to the answer.

        Args:
          example: of history and candidates; its target is not read.
          first_item_id: where item codes begin among the ids. Each title is followed by the id of
            its item then (LLaRA); None for text alone.
        """
        encode = self.tokenizer.encode_data
        ids = [*user_turn(self.tokenizer), *encode("Taken before, oldest first:")]
        for heading, mark, codes in (
            ("", "h", example.history),
            ("\nCandidates:", "", example.candidates),
        ):
            ids += encode(heading)
            titles = shown_titles(self.items, codes, self.title_words)
            for number, (code, title) in enumerate(zip(codes, titles, strict=True), 1):
                ids += encode(f"\n{mark}{number}. {title}")
                if first_item_id is not None:
                    ids.append(first_item_id + code)
        ids += encode("\nWhich candidate does the user take next? Answer with its title.")
        return [*ids, *assistant_turn(self.tokenizer)]

    def answer(self, item: int) -> Demonstration:
        """Returns the title of an item as an answer to imitate, with the end of the turn."""
        (title,) = shown_titles(self.items, [item], self.title_words)
        # Behind a blank a title has the same ids as in its line of the prompt.
        ids = [*self.tokenizer.encode_data(f" {title}"), self.tokenizer.stop_ids[0]]
        return Demonstration(np.asarray(ids), np.full(len(ids), SAMPLED))

    def answers(self, items: Sequence[int]) -> list[Demonstration]:
        """Returns the `answer` of each item."""
        return [self.answer(item) for item in items]


@dataclasses.dataclass(frozen=True)
class TitleAnswers(Epochs):
    """Batches of questions answered by the target's title, ``size`` examples a step.

    Attributes:
      prompts: of the questions.
    """

    prompts: TitlePrompts

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """Returns this process's micro-batches of a step, weighted for a mean over tokens."""
        examples = self.items_at(step)
        groups = demonstration_groups(
            prompts=[self.prompt(example, step) for example in examples],
            demonstrations=[self.prompts.answers([example.target]) for example in examples],
        )
        return pack_share(groups, packing)

    def prompt(self, example: RankingExample, step: int) -> list[int]:
        """Returns the ids of the question that a step asks about an example."""
        del step
        return self.prompts.prompt(example)


@dataclasses.dataclass(frozen=True)
class TitlePreferences(Epochs):
    """Batches of questions with the target's title and rejected ones, ``size`` examples a step.

    It is the data of S-DPO (Chen et al., "On Softmax Direct Preference Optimization for
    Recommendation", NeurIPS 2024, arXiv:2406.09215): rejected titles are candidates drawn at
    random, here anew in each epoch. `losses.dpo_preference_loss` takes the first member of a group
    as the preferred one.

    Attributes:
      prompts: of the questions.
      negatives: rejected titles of an example.
    """

    prompts: TitlePrompts
    negatives: int

    def batches(self, step: int, packing: Packing) -> list[RolloutBatch]:
        """Returns this process's micro-batches of a step, weighted for a mean over questions."""
        examples = self.items_at(step)
        answers = [
            [example.target, *drawn_negatives(example, self.negatives, seed=(self.seed, step))]
            for example in examples
        ]
        groups = demonstration_groups(
            prompts=[self.prompts.prompt(example) for example in examples],
            demonstrations=[self.prompts.answers(items) for items in answers],
            weight=1.0 / len(examples),
        )
        return pack_share(groups, packing)


def candidate_group(
    prompts: TitlePrompts, example: RankingExample, first_item_id: int | None = None
) -> Group:
    """Returns the question on an example with the titles of all its candidates as members."""
    prompt = prompts.prompt(example, first_item_id)
    (group,) = demonstration_groups([prompt], [prompts.answers(example.candidates)], weight=1.0)
    return group


def title_logprobs(
    score: Scorer, params: Any, group: Group, packing: Packing
) -> list[Float[np.ndarray, "T"]]:
    """Returns the log-prob of each token of each of the C titles.

    Args:
      score: of `training.logprobs.make_scorer`.
      params: parameters of the policy.
      group: of `candidate_group`.
      packing: of a group at a time.
    """
    (batch,) = pack_groups([group], packing)
    logprobs = np.asarray(score(params, batch))[0]
    return [
        row[: len(completion.ids)]
        for row, completion in zip(logprobs, group.completions, strict=True)
    ]


def likelihoods(logprobs: Sequence[Float[np.ndarray, "T"]]) -> Float[np.ndarray, "C"]:
    """Returns the mean log-prob of a token of each title, the score of LLaRA and S-DPO.

    Divided by its length, a title is not behind a shorter one for its length alone.

    >>> likelihoods([np.array([-1.0, -3.0]), np.array([-2.5])]).tolist()
    [-2.0, -2.5]
    """
    return np.array([row.mean() for row in logprobs])
