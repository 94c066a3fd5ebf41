"""LLMRank: a language model ranks numbered candidates, over several shuffled lists.

Hou et al., "Large Language Models are Zero-Shot Rankers for Recommender Systems" (ECIR 2024,
arXiv:2305.08845; github.com/RUCAIBox/LLMRank). The model tends to overlook the order of a history
and to prefer candidates by their place in the list. Prompts that name the newest item help with the
first (recency-focused and in-context prompts), bootstrapping with the second. The three prompts
follow theirs; their wording is ours, since the paper has one for each data set.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.errors import expect
from agenticrec_jax.language.answers import (
    UNREADABLE,
    Answer,
    numbered,
    read_ranking,
    shown_titles,
)
from agenticrec_jax.language.completion import USER, Chat, Completer, Decoding

SEQUENTIAL = "sequential"
RECENCY = "recency"
IN_CONTEXT = "in_context"
PROMPTS = (SEQUENTIAL, RECENCY, IN_CONTEXT)


@dataclass(frozen=True)
class LLMRank:
    """Ranks by the merged answers to several shuffled lists of the candidates.

    Attributes:
      items: the catalog, for titles.
      prompt: one of `PROMPTS`: the history in its order, the same with a note on the newest item,
        or the newest item as an example of a right recommendation after the others.
      rounds: shuffled lists of each example; the paper merges 3.
      decoding: the authors' temperature; their 512 tokens leave little room for thoughts.
      title_words: words of a title before its visible cut.
      seed: of the shuffling.
    """

    items: Items
    prompt: str = RECENCY
    rounds: int = 3
    decoding: Decoding = Decoding(temperature=0.2, max_tokens=1024)
    title_words: int = 20
    seed: int = 0

    def __post_init__(self):
        expect(self.prompt in PROMPTS, "prompt", self.prompt, f"one of {', '.join(PROMPTS)}")
        expect(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        expect(self.title_words >= 1, "title_words", self.title_words, "at least 1")

    def rank(
        self,
        completer: Completer,
        examples: Sequence[RankingExample],
    ) -> list[Answer]:
        """Returns an answer to each example.

        A round that names no candidate adds nothing. If none does, the answer is invalid.
        """
        rounds = range(self.rounds)
        chats = [self.chat(example, number) for example in examples for number in rounds]
        texts = iter(completer.complete(chats, self.decoding))
        return [self.answer(example, [next(texts) for _ in rounds]) for example in examples]

    def chat(self, example: RankingExample, number: int) -> Chat:
        """Returns the chat of a round, with its own order of the candidates."""
        text = self.text(example, self.order(example, number))
        return Chat((example.example_id, number), ((USER, text),))

    def order(self, example: RankingExample, number: int) -> list[int]:
        """Returns the candidate numbers in the order in which a round lists them."""
        rng = np.random.default_rng([self.seed, example.example_id, number])
        return (1 + rng.permutation(len(example.candidates))).tolist()

    def answer(self, example: RankingExample, texts: Sequence[str]) -> Answer:
        """Returns the answer of a text for each round."""
        titles = shown_titles(self.items, example.candidates, self.title_words)
        lists = []
        for number, text in enumerate(texts):
            order = self.order(example, number)
            places = read_ranking(text, [titles[n - 1] for n in order])
            lists.append([order[place - 1] for place in places])
        ranking = merged(lists, len(titles))
        return Answer(
            example.example_id,
            ranking,
            invalid_reason=None if ranking else UNREADABLE,
            calls=0,
            texts=tuple(texts),
            unreadable=sum(not each for each in lists),
        )

    def text(self, example: RankingExample, order: Sequence[int]) -> str:
        """Returns the prompt with the candidates in an order of their numbers.

        An example of a single item in its history has no other item to learn from, so the
        in-context prompt is then the recency-focused one.
        """
        history = shown_titles(self.items, example.history, self.title_words)
        candidates = shown_titles(self.items, example.candidates, self.title_words)
        listed = numbered([candidates[number - 1] for number in order])
        newest = history[-1]
        in_context = self.prompt == IN_CONTEXT and len(history) > 1
        past = numbered(history[:-1] if in_context else history)
        lines = [f"In the past I took these items, in this order:\n{past}\n"]
        count = len(order)
        if in_context:
            lines.append(
                "Had I asked you for a recommendation then, the right one would have been "
                f"{newest}. Now I have taken {newest}, and there are {count} candidates that I "
                f"could take next:\n{listed}\n"
            )
        else:
            lines.append(f"Now there are {count} candidates that I could take next:\n{listed}\n")
        lines.append(
            f"Rank these {count} candidates by how likely I am to take each of them next, judging "
            "by what I took before. Think step by step."
        )
        if self.prompt != SEQUENTIAL and not in_context:
            lines.append(f"Note that the item that I took last is {newest}.")
        lines.append(
            f'End with the line "Ranking:" and below it the numbers of all {count} candidates, the '
            "most likely one first, each on a line of its own. Rank no item that is not listed."
        )
        return "\n".join(lines)


def merged(lists: Sequence[Sequence[int]], candidates: int) -> tuple[int, ...]:
    """Merges rankings of the same candidates by the sum of their points.

    The first candidate of a list has as many points as there are candidates, each next one a point
    less. A candidate that a list leaves out comes behind all that more lists have: the authors'
    code adds -10000 for it. Ties are in the order of the numbers, which say nothing of the target.

    Args:
      lists: candidate numbers, best first. An empty list changes nothing.
      candidates: number of candidates.

    Returns:
      the candidates that at least one list has, best first.

    Example: candidate 2 has 3 + 2 points, candidate 1 has 2 + 1; candidate 3 is in one list only.

      >>> merged([[2, 1], [3, 2, 1]], candidates=3)
      (2, 1, 3)
    """
    named = Counter(number for ranking in lists for number in ranking)
    points: Counter[int] = Counter()
    for ranking in lists:
        for place, number in enumerate(ranking):
            points[number] += candidates - place
    return tuple(sorted(named, key=lambda number: (-named[number], -points[number], number)))
