"""Counts of a fit range: how often items were taken, how they were rated, and who took them.

Axes: I items, E distinct (user, item) pairs, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from agenticrec_jax.data.interactions import InteractionLog
from agenticrec_jax.data.splits import FitRange


@dataclass(frozen=True, eq=False)
class Statistics:
    """Counts over the fit range.

    Attributes:
      popularity: number of events of each item.
      mean_rating: mean of its ratings, NaN if it has none.
      taken_user: user code of each distinct pair (user, item), sorted.
      taken_item: item code of each of these pairs.
    """

    popularity: Int[np.ndarray, "I"]
    mean_rating: Float[np.ndarray, "I"]
    taken_user: Int[np.ndarray, "E"]
    taken_item: Int[np.ndarray, "E"]

    @cached_property
    def rank(self) -> Int[np.ndarray, "I"]:
        """Popularity rank of each item, from 1; equal counts share the best rank."""
        counts = np.sort(self.popularity)
        return 1 + len(counts) - np.searchsorted(counts, self.popularity, side="right")

    @cached_property
    def taken(self) -> sparse.csc_array:
        """A 1 for each user (row) and item (column) that the user took."""
        users = int(self.taken_user.max(initial=-1)) + 1
        ones = np.ones(len(self.taken_user), np.int32)
        pairs = (self.taken_user, self.taken_item)
        return sparse.csc_array((ones, pairs), shape=(users, len(self.popularity)))

    @cached_property
    def taken_by_user(self) -> sparse.csr_array:
        """The same matrix, for products with rows of users."""
        return self.taken.tocsr()

    def extended(self, count: int) -> "Statistics":
        """Returns statistics with ``count`` more items behind the others, which nobody took."""
        return replace(
            self,
            popularity=np.pad(self.popularity, (0, count)),
            mean_rating=np.pad(self.mean_rating, (0, count), constant_values=np.nan),
        )

    def taken_together(
        self, user: int, history: Sequence[int], candidates: Sequence[int]
    ) -> Float[np.ndarray, "C"]:
        """Returns how often each candidate was taken by users that took items of the history.

        Each other user counts with the number of the history's items that the user took, over the
        root of the number of all that the user took: the cosine of the two sets of items, up to a
        factor.

        Args:
          user: code of the user of the history, who does not count.
          history: item codes.
          candidates: item codes.
        """
        takers = self.taken[:, sorted(set(history))].indices
        users, shared = np.unique(takers[takers != user], return_counts=True)
        sizes = np.diff(self.taken_by_user.indptr)[users]
        shape = (1, self.taken.shape[0])
        weights = sparse.csr_array((shared / np.sqrt(sizes), (np.zeros_like(users), users)), shape)
        return (weights @ self.taken[:, list(candidates)]).toarray()[0]


def fit_statistics(log: InteractionLog, fit_range: FitRange) -> Statistics:
    """Returns counts, mean ratings and taken items over the events of ``fit_range``."""
    fitted = log.before(fit_range.end_time)
    item = log.item[fitted]
    rating = log.rating[fitted]
    size = log.num_items
    known = ~np.isnan(rating)
    rated = np.bincount(item[known], minlength=size)
    total = np.bincount(item[known], weights=rating[known], minlength=size)
    mean = np.where(rated > 0, total / np.maximum(rated, 1), np.nan)
    pairs = np.unique(np.stack([log.user[fitted], item], axis=1), axis=0)
    return Statistics(
        popularity=np.bincount(item, minlength=size),
        mean_rating=mean.astype(np.float32),
        taken_user=pairs[:, 0],
        taken_item=pairs[:, 1],
    )
