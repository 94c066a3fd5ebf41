"""Wording of observations: cut titles, orders of candidates, lists of counted words."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.errors import expect

ELLIPSIS = "…"
MAX_WORD = 24  # characters shown of one word, so that no title can fill the budget

DAY = 86400  # seconds

DETAILS = ("compact", "full")


@dataclass(frozen=True)
class ToolOptions:
    """Options of the observations.

    Attributes:
      evidence_length: candidate numbers in an order.
      title_words: words of a title before the visible cut.
      candidate_evidence: whether the collaborative tools also order the candidates. Without it
        they return neighbors only, the bare form of the paper.
      detail: ``compact``, or ``full`` to group candidates by category, brand and price in words.
      profile_words: words of a stored profile before the visible cut.
      neighbors: users with the nearest SASRec states that count as similar.
      related_titles: items of a relation that the knowledge graph lists by title.

    Raises:
      InputError: an option has no such value.
    """

    evidence_length: int = 10
    title_words: int = 4
    candidate_evidence: bool = True
    detail: str = "compact"
    profile_words: int = 200
    neighbors: int = 1500
    related_titles: int = 5

    def __post_init__(self):
        expect(self.detail in DETAILS, "tool option detail", self.detail, str(DETAILS))
        for name in (
            "evidence_length",
            "title_words",
            "profile_words",
            "neighbors",
            "related_titles",
        ):
            value = getattr(self, name)
            expect(value >= 1, f"tool option {name}", value, ">= 1")


def cut(text: str, words: int) -> str:
    """Returns the first ``words`` words on one line; an ellipsis marks the cut.

    Example:
      >>> cut("Scotch Magic Tape, 6 Rolls", 3)
      'Scotch Magic Tape…'
    """
    tokens = text.split()
    first = [w if len(w) <= MAX_WORD else w[:MAX_WORD] + ELLIPSIS for w in tokens[:words]]
    line = " ".join(first)
    return line.rstrip(",;:-& ") + ELLIPSIS if len(tokens) > words else line


def brand_of(items: Items, item: int, words: int = 2) -> str:
    """Returns the item's brand, cut, or ``no brand``."""
    return cut(items.brand[item] or "", words) or "no brand"


def order(label: str, numbers: Iterable[int], length: int) -> str:
    """Returns ``label:7,3,12,``: at most ``length`` candidate numbers, best first.

    Answers list numbers in the same punctuation, so that an order can be copied token by token.

    Example:
      >>> order("similar", [7, 3, 12], length=2), order("similar", [], length=2)
      ('similar:7,3,', 'similar:none')
    """
    first = list(numbers)[:length]
    return f"{label}:" + ("".join(f"{number}," for number in first) or "none")


def ranked(scores: Sequence[float], ties: Sequence[float], positive: bool = False) -> list[int]:
    """Returns candidate numbers by descending score, then descending tie-breaker, then number.

    Args:
      scores: [C] score of each candidate.
      ties: [C] tie-breaker of each candidate.
      positive: whether only candidates of a score above 0 are listed.

    Example, candidates 1 and 3 tie:
      >>> ranked([0.5, 0.0, 0.5], ties=[1, 2, 3])
      [3, 1, 2]
      >>> ranked([0.5, 0.0, 0.5], ties=[1, 2, 3], positive=True)
      [3, 1]
    """
    scores = np.asarray(scores, float)
    ties = np.asarray(ties, float)
    best_first = np.lexsort((np.arange(len(scores)), -ties, -scores))
    return [int(row) + 1 for row in best_first if not positive or scores[row] > 0]


def ago(seconds: int) -> str:
    """Returns a duration in whole days: ``today``, ``1 day ago``, ``7 days ago``."""
    days = seconds // DAY
    return "today" if days < 1 else f"{days} day{'s' if days > 1 else ''} ago"


def counted(words: Iterable[str], most: int) -> str:
    """Returns the ``most`` frequent words with their counts; a count of 1 is left out.

    Example:
      >>> counted(["Avery", "HP", "Avery", "Pilot"], most=2)
      'Avery 2, HP'
    """
    common = Counter(words).most_common(most)
    return ", ".join(f"{word} {count}" if count > 1 else word for word, count in common)
