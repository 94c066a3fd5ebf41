"""How observations are worded: cut titles, orders of candidates, lists of counted words."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from agenticrec_jax.data.interactions import Items
from agenticrec_jax.errors import InputError

ELLIPSIS = "…"
MAX_WORD = 24  # characters of one word that are shown, so that no title can fill the budget

DAY = 86400  # seconds

DETAILS = ("compact", "full")


@dataclass(frozen=True)
class ToolOptions:
    """What observations show.

    Attributes:
      evidence_length: how many candidate numbers an order shows.
      title_words: how many words of a title are shown before the visible cut.
      candidate_evidence: whether the collaborative tools also order the candidates; without it
        they return neighbors only, the bare form of the paper.
      detail: ``compact``, or ``full`` to group candidates by category, brand and price in words.
      profile_words: how many words of a stored profile are shown before the visible cut.
      neighbors: how many users with the nearest SASRec states count as similar.
    """

    evidence_length: int = 10
    title_words: int = 4
    candidate_evidence: bool = True
    detail: str = "compact"
    profile_words: int = 200
    neighbors: int = 1500

    def __post_init__(self):
        if self.detail not in DETAILS:
            raise InputError(f"tool option detail: found {self.detail!r}, expected {DETAILS}")
        for name in ("evidence_length", "title_words", "profile_words", "neighbors"):
            if getattr(self, name) < 1:
                raise InputError(f"tool option {name}: found {getattr(self, name)}, expected >= 1")


def cut(text: str, words: int) -> str:
    """The first ``words`` words on one line; what is left out is marked with an ellipsis."""
    parts = text.split()
    kept = [w if len(w) <= MAX_WORD else w[:MAX_WORD] + ELLIPSIS for w in parts[:words]]
    shown = " ".join(kept)
    return shown.rstrip(",;:-& ") + ELLIPSIS if len(parts) > words else shown


def brand_of(items: Items, item: int, words: int = 2) -> str:
    """The item's brand, cut, or ``no brand``."""
    return cut(items.brand[item] or "", words) or "no brand"


def order(label: str, numbers: Iterable[int], length: int) -> str:
    """``label:7,3,12,``: at most ``length`` candidate numbers, best first; ``label:none`` if none.

    Answers list numbers in the same punctuation, so that copying one is copying tokens.
    """
    shown = list(numbers)[:length]
    return f"{label}:" + ("".join(f"{number}," for number in shown) or "none")


def ranked(scores: Sequence[float], ties: Sequence[float], positive: bool = False) -> list[int]:
    """Candidate numbers by descending score, then descending tie-breaker, then number.

    With ``positive`` only candidates of score above 0.
    """
    scores, ties = np.asarray(scores, float), np.asarray(ties, float)
    best_first = np.lexsort((np.arange(len(scores)), -ties, -scores))
    return [int(row) + 1 for row in best_first if not positive or scores[row] > 0]


def ago(seconds: int) -> str:
    """``today``, ``1 day ago``, ``7 days ago``: whole days."""
    days = seconds // DAY
    return "today" if days < 1 else f"{days} day{'s' if days > 1 else ''} ago"


def counted(words: Iterable[str], most: int) -> str:
    """The ``most`` frequent words, ``Avery 3, HP``; a count of 1 is left out, ties in order."""
    common = Counter(words).most_common(most)
    return ", ".join(f"{word} {count}" if count > 1 else word for word, count in common)
