"""Answers of language models: rankings of an example's candidates, read from free text."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from rapidfuzz import fuzz, process

from agenticrec_jax.data.examples import RankingExample
from agenticrec_jax.data.interactions import Items
from agenticrec_jax.metrics.ranking import score_order
from agenticrec_jax.tokenizers.base import neutralize
from agenticrec_jax.tools.text import ELLIPSIS, cut

UNREADABLE = "unreadable"  # no candidate is named where the ranking should be
SURE = 90  # rapidfuzz ratio (0..100) from which a misspelled title counts as the title
_THOUGHT = "</think>"
_HEAD = re.compile(r"^[^\w\n]*ranking[^\w\n]*$", re.I | re.M)
_NUMBERED = re.compile(r"\s*\d+[.):]\s+#?(\d+)\W*")  # "3. 12": the third is candidate 12
_NUMBERS = re.compile(r"[\d\s,;>#.\[\](){}*-]*")
_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Answer:
    """A method's answer to one example.

    Attributes:
      example_id: id of the example.
      ranking: candidate numbers, best first. Candidates that were not named are missing, and the
        target is a miss if it is one of them.
      invalid_reason: why there is no ranking, None if there is one.
      calls: number of tool calls.
      texts: every completion that the answer was read from, in order.
      unreadable: how many of them could not be read.
    """

    example_id: int
    ranking: tuple[int, ...]
    invalid_reason: str | None
    calls: int
    texts: tuple[str, ...]
    unreadable: int = 0

    def rank(self, example: RankingExample) -> int:
        """Returns the target's rank from 1; 0 for a miss or an invalid answer."""
        number = example.target_number
        return self.ranking.index(number) + 1 if number in self.ranking else 0


def ranked_answer(example: RankingExample, scores: Float[np.ndarray, "C"]) -> Answer:
    """Returns the ranking by descending score, with ties decided against the target."""
    order = score_order(scores[None], np.array([example.target_number - 1]))[0]
    ranking = tuple((1 + order).tolist())
    return Answer(example.example_id, ranking, invalid_reason=None, calls=0, texts=())


def shown_titles(items: Items, codes: Sequence[int], words: int) -> list[str]:
    """Returns titles on one line each, cut to ``words`` words, in which no marker is spelled."""
    return [neutralize(cut(items.title[code], words)) for code in codes]


def numbered(titles: Sequence[str], mark: str = "") -> str:
    """Returns a line for each title, numbered from 1.

    >>> print(numbered(["Pen", "Ink"], mark="h"))
    h1. Pen
    h2. Ink
    """
    return "\n".join(f"{mark}{number}. {title}" for number, title in enumerate(titles, 1))


def read_ranking(text: str, titles: Sequence[str]) -> tuple[int, ...]:
    """Reads candidate numbers from the lines of a text, best first and each once.

    A line counts if it is made of numbers alone, or names a candidate's title. If a line is the
    word ``Ranking:``, only the lines after the last such line count, and a closed thought never
    does. Numbers of no candidate are left out, as LLMRank's own reader leaves them out.

    Args:
      text: completion of a model.
      titles: of the candidates, as the prompt shows them.

    Returns:
      candidate numbers, from 1; empty if no candidate is named.

    Example:
      >>> text = "Pens come first.\\nRanking:\\n1. 3\\n2. Blue Ink\\n9"
      >>> read_ranking(text, ["Pen", "Blue Ink", "Cap"])
      (3, 2)
    """
    text = without_thought(text)
    heads = list(_HEAD.finditer(text))
    lines = text[heads[-1].end() if heads else 0 :].splitlines()
    ranking: list[int] = []
    for line in lines:
        for number in _numbers(line, len(titles)) or _named(line, titles, ranking):
            if number not in ranking:
                ranking.append(number)
    return tuple(ranking)


def read_ranks(text: str, titles: Sequence[str]) -> tuple[int, ...]:
    """Reads the last JSON object of a text, from candidate to rank; returns candidates by rank.

    Keys are candidate numbers or titles, which may be slightly misspelled. Entries of other keys,
    or without a number as their rank, are left out, and equal ranks are in the order of numbers.

    Returns:
      candidate numbers, from 1; empty if no candidate is named.

    Example:
      >>> read_ranks('So: {"3": 1, "blue ink": 2, "Glue": 3}', ["Pen", "Blue Ink", "Cap"])
      (3, 2)
    """
    ranks: dict[int, float] = {}
    for key, rank in _last_object(without_thought(text)).items():
        number = number_of(str(key), titles)
        place = _float(rank)
        if number and place is not None and number not in ranks:
            ranks[number] = place
    return tuple(sorted(ranks, key=lambda number: (ranks[number], number)))


def number_of(name: str, titles: Sequence[str]) -> int | None:
    """Returns the candidate of a number or title; None if it is no candidate's."""
    text = _key(name)
    if re.fullmatch(r"\d{1,9}", text):
        return int(text) if 1 <= int(text) <= len(titles) else None
    near = process.extractOne(text, list(map(_key, titles)), scorer=fuzz.ratio, score_cutoff=SURE)
    return near[2] + 1 if near else None


def without_thought(text: str) -> str:
    """Returns what follows the last closed thought."""
    return text.rpartition(_THOUGHT)[2]


def literal(text: str) -> Any:
    """Returns the value of JSON or of a Python literal; None if the text is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _numbers(line: str, candidates: int) -> list[int]:
    """Returns the candidate numbers of a line that has nothing else but numbers."""
    if match := _NUMBERED.fullmatch(line):
        numbers = [match[1]]
    elif _NUMBERS.fullmatch(line):
        numbers = re.findall(r"\d+", line)
    else:
        return []
    return [int(n) for n in numbers if len(n) < 10 and 1 <= int(n) <= candidates]


def _named(line: str, titles: Sequence[str], ranking: Sequence[int]) -> list[int]:
    """Returns the candidate with the longest title in a line; of equal titles the next one."""
    words = _key(line)
    keys = {number: _key(title) for number, title in enumerate(titles, 1)}
    inside = [
        number
        for number, key in keys.items()
        if key and re.search(rf"(?<!\w){re.escape(key)}(?!\w)", words)
    ]
    length = max((len(keys[number]) for number in inside), default=0)
    longest = [number for number in inside if len(keys[number]) == length]
    new = [number for number in longest if number not in ranking]
    return new[:1]


def _key(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(ELLIPSIS)


def _last_object(text: str) -> Mapping:
    for match in reversed(_OBJECT.findall(text)):
        value = literal(match)
        if isinstance(value, dict):
            return value
    return {}


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number == number else None
