"""Titles of a catalog that are like a text, found without comparing it with every title.

An inverted index from runs of three characters to titles proposes the few titles that share most of
them with the text; only those are scored by rapidfuzz. A title of one or two letters that the text
happens to hold, which rapidfuzz alone would call very near, is seldom among them.
"""

import functools
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from rapidfuzz import fuzz, process

from agenticrec_jax.data.interactions import Items

PROPOSED = 48  # titles of each kind that are scored
_BUCKETS = 1 << 18  # runs of three characters are hashed; two that meet cost a little precision
_MIX = np.array([73_856_093, 19_349_663, 83_492_791], np.uint64)


class TitleIndex:
    """Proposes titles, as ``Items.title_key`` has them, by the runs of characters that they share.

    A run counts by how rare it is. Proposed are the titles of the highest shares of both texts'
    runs (Dice), and those that hold most of the text's, however long they are.
    """

    def __init__(self, titles: Sequence[str]):
        self.titles = titles
        runs = [_runs(title) for title in titles]
        sizes = np.fromiter(map(len, runs), np.int64, len(runs))
        bucket = np.concatenate(runs) if runs else np.zeros(0, np.int64)
        title = np.repeat(np.arange(len(runs), dtype=np.int32), sizes)
        counts = np.bincount(bucket, minlength=_BUCKETS)
        self._title = title[np.argsort(bucket, kind="stable")]
        self._start = np.concatenate([[0], np.cumsum(counts)])
        self._weight = np.log((1 + len(runs)) / (1 + counts)).astype(np.float32)
        self._size = np.bincount(title, weights=self._weight[bucket], minlength=len(runs))

    def proposed(self, text: str, most: int = PROPOSED) -> Int[np.ndarray, "n"]:
        """At most ``2 * most`` rows of titles that share runs with ``text``, ascending."""
        runs = _runs(text)
        pieces = [self._title[self._start[r] : self._start[r + 1]] for r in runs]
        if not sum(map(len, pieces)):
            return np.zeros(0, np.int64)
        weights = np.repeat(self._weight[runs], [len(piece) for piece in pieces])
        shared = np.bincount(np.concatenate(pieces), weights, minlength=len(self.titles))
        whole = self._size + self._weight[runs].sum()
        rows = [_largest(shared / np.maximum(whole, 1e-9), most), _largest(shared, most)]
        rows = np.unique(np.concatenate(rows))
        return rows[shared[rows] > 0]

    def nearest(self, text: str, count: int, cutoff: float) -> list[tuple[float, int]]:
        """(score, row) of the ``count`` titles most like ``text``, by ``fuzz.WRatio``, best first.

        Scores are 0 to 100; those below ``cutoff`` are left out, ties go to the lower row.
        """
        pool = {row: self.titles[row] for row in self.proposed(text).tolist()}
        return likest(text, pool, count, cutoff)


def likest(text: str, pool: dict[int, str], count: int, cutoff: float) -> list[tuple[float, int]]:
    """``TitleIndex.nearest`` over all titles of ``pool``."""
    found = process.extract(text, pool, scorer=fuzz.WRatio, limit=count, score_cutoff=cutoff)
    return [(score, row) for _, score, row in found]


_MAKING = threading.Lock()  # a cache alone would make it in every thread that asks meanwhile


def title_index(items: Items) -> TitleIndex:
    """The index of a catalog's titles, made once, whichever thread asks first."""
    with _MAKING:
        return _made(items)


@functools.lru_cache(maxsize=4)
def _made(items: Items) -> TitleIndex:
    return TitleIndex(items.title_key)


def _runs(text: str) -> Int[np.ndarray, "n"]:
    """The distinct buckets of the runs of three characters of ``text`` with a blank around it."""
    codes = np.frombuffer(f" {text} ".encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    if len(codes) < 3:
        return np.zeros(0, np.int64)
    hashed = codes[:-2] * _MIX[0] ^ codes[1:-1] * _MIX[1] ^ codes[2:] * _MIX[2]
    return np.unique((hashed ^ (hashed >> np.uint64(17))) % np.uint64(_BUCKETS)).astype(np.int64)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Rows of the ``count`` largest values, in no order."""
    if count >= len(values):
        return np.arange(len(values))
    return np.argpartition(-values, count)[:count]
