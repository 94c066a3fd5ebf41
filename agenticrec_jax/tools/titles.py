"""Search of a catalog for titles similar to a text, without comparing it with every title.

An inverted index from runs of three characters to titles proposes the titles that share most of
them with the text. Only those are scored by rapidfuzz, which alone would also score a title of one
or two letters very high if the text contains it; such a title is seldom proposed.
"""

import functools
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from rapidfuzz import fuzz, process

from agenticrec_jax.data.interactions import Items

PROPOSED = 48  # titles of each kind that are scored
_BUCKETS = 1 << 18  # runs of three characters are hashed; a collision costs a little precision
_MIX = np.array([73_856_093, 19_349_663, 83_492_791], np.uint64)


class TitleIndex:
    """Index of titles by their runs of three characters.

    A run is weighted by how rare it is. Proposed are the titles with the largest share of both
    texts' runs (Dice coefficient), and those that contain most of the text's runs, whatever their
    length.

    Args:
      titles: titles in the form of ``Items.title_key``.
    """

    def __init__(self, titles: Sequence[str]):
        self.titles = titles
        runs = [_runs(title) for title in titles]
        sizes = np.fromiter(map(len, runs), np.int64, len(runs))
        bucket = np.concatenate(runs) if runs else np.zeros(0, np.int64)
        title = np.repeat(np.arange(len(runs), dtype=np.int32), sizes)
        counts = np.bincount(bucket, minlength=_BUCKETS)
        # Titles sorted by bucket: those of bucket b are _title[_start[b] : _start[b + 1]].
        self._title = title[np.argsort(bucket, kind="stable")]
        self._start = np.concatenate([[0], np.cumsum(counts)])
        self._weight = np.log((1 + len(runs)) / (1 + counts)).astype(np.float32)
        self._size = np.bincount(title, weights=self._weight[bucket], minlength=len(runs))

    def proposed(self, text: str, most: int = PROPOSED) -> Int[np.ndarray, "n"]:
        """Returns at most ``2 * most`` rows of titles that share runs with ``text``, ascending."""
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
        """Returns (score, row) of the titles most similar to ``text`` by ``fuzz.WRatio``.

        Args:
          text: text in the form of ``Items.title_key``.
          count: largest number of titles.
          cutoff: lowest score, 0 to 100.

        Returns:
          scores and rows, best first; of equal scores the lower row is first.

        Example:
          >>> index = TitleIndex(["scotch magic tape", "avery labels", "pilot g2 pen"])
          >>> index.nearest("scoch tape", count=1, cutoff=50)[0][1]
          0
        """
        pool = {row: self.titles[row] for row in self.proposed(text).tolist()}
        return most_similar(text, pool, count, cutoff)


def most_similar(
    text: str, pool: dict[int, str], count: int, cutoff: float
) -> list[tuple[float, int]]:
    """Returns `TitleIndex.nearest` over all titles of ``pool``, by row."""
    matches = process.extract(text, pool, scorer=fuzz.WRatio, limit=count, score_cutoff=cutoff)
    return [(score, row) for _, score, row in matches]


_MAKING = threading.Lock()  # without it each thread that waits for the cache would make an index


def title_index(items: Items) -> TitleIndex:
    """Returns the index of a catalog's titles, which is made once for all threads."""
    with _MAKING:
        return _cached_index(items)


@functools.lru_cache(maxsize=4)
def _cached_index(items: Items) -> TitleIndex:
    return TitleIndex(items.title_key)


def _runs(text: str) -> Int[np.ndarray, "n"]:
    """Returns the distinct buckets of the runs of three characters of `` text `` with its blanks.

    ``pen`` has the runs `` pe``, ``pen`` and ``en ``.
    """
    codes = np.frombuffer(f" {text} ".encode("utf-32-le", "replace"), np.uint32).astype(np.uint64)
    if len(codes) < 3:
        return np.zeros(0, np.int64)
    hashed = codes[:-2] * _MIX[0] ^ codes[1:-1] * _MIX[1] ^ codes[2:] * _MIX[2]
    return np.unique((hashed ^ (hashed >> np.uint64(17))) % np.uint64(_BUCKETS)).astype(np.int64)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Returns rows of the ``count`` largest values, in no order."""
    if count >= len(values):
        return np.arange(len(values))
    return np.argpartition(-values, count)[:count]
