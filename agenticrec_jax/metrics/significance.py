"""Confidence intervals of means and of paired differences, by a bootstrap over users.

A user's examples are not independent. Users are therefore drawn with replacement, each with all
their examples (cluster bootstrap; Davison and Hinkley, "Bootstrap Methods and their Application",
1997, section 3.8), and the interval has percentile limits.

Axes: ``examples``, ``resamples``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_CHUNK_CELLS = 4_000_000  # cells of the matrix of drawn counts that is in memory at once


class Difference(NamedTuple):
    """A mean difference and its confidence limits."""

    mean: float
    low: float
    high: float

    @property
    def relation(self) -> str:
        """``above`` or ``below`` where the interval excludes 0, else ``not told apart from``.

        Example:
          >>> Difference(0.02, 0.01, 0.03).relation, Difference(0.02, -0.01, 0.05).relation
          ('above', 'not told apart from')
        """
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "not told apart from"


def bootstrap_means(
    values: Sequence[float], users: Sequence, *, seed: int, resamples: int = 2000
) -> Float[np.ndarray, "resamples"]:
    """Returns the mean over examples in each resample of the users.

    Args:
      values: [examples] one number per example.
      users: [examples] user of each example; their names have no influence on the draws.
      seed: seed of the resampling; equal seeds draw equal users.
      resamples: number of resamples.

    Raises:
      ValueError: there are no values, or the lengths differ.

    Example:
      Of two users, one with the values 1 and 3 and one with 8, a resample draws the first twice
      (mean 2), each once (mean 4) or the second twice (mean 8).

      >>> means = bootstrap_means([1, 3, 8], ["a", "a", "b"], seed=0, resamples=100)
      >>> sorted(set(means.tolist()))
      [2.0, 4.0, 8.0]
    """
    values = np.asarray(values, np.float64)
    if not len(values) or len(values) != len(users):
        raise ValueError(f"found {len(values)} values of {len(users)} users, expected as many")
    # Numbered by first appearance: the draws are the same whether users are codes or ids.
    _, first, user = np.unique(np.asarray(users), return_index=True, return_inverse=True)
    user = np.argsort(np.argsort(first))[user]
    counts = np.bincount(user)
    sums = np.bincount(user, weights=values)
    size = len(counts)
    rng = np.random.default_rng(seed)
    means = []
    chunk = max(1, _CHUNK_CELLS // size)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        # The number of times that each user is drawn says as much as the drawn users.
        drawn = rng.multinomial(size, np.full(size, 1 / size), size=rows)
        means.append((drawn @ sums) / (drawn @ counts))
    return np.concatenate(means)


def bootstrap_interval(
    values: Sequence[float],
    users: Sequence,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Returns the percentile interval (low, high) of the mean over examples.

    Args:
      values: [examples] one number per example.
      users: [examples] user of each example.
      seed: seed of the resampling.
      resamples: number of resamples.
      level: share of the resamples' means inside the interval.

    Raises:
      ValueError: there are no values, or the lengths differ.

    Example:
      >>> bootstrap_interval([1, 3, 8], ["a", "a", "b"])
      (2.0, 8.0)
    """
    means = bootstrap_means(values, users, seed=seed, resamples=resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    users: Sequence,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Difference:
    """Returns the mean of ``a - b`` over the same examples, with its interval over users.

    The methods differ significantly at ``level`` if the interval does not contain 0.

    Args:
      a: [examples] values of one method, such as `ranking.ndcg_values`.
      b: [examples] values of another method on the same examples.
      users: [examples] user of each example.
      seed: seed of the resampling.
      resamples: number of resamples.
      level: share of the resamples' differences inside the interval.

    Raises:
      ValueError: there are no values, or the lengths differ.

    Example:
      >>> paired_difference([1.0, 0.5, 0.5], [0.5, 0.0, 0.0], users=[0, 1, 2])
      Difference(mean=0.5, low=0.5, high=0.5)
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values: found shapes {a.shape} and {b.shape}, expected equal")
    low, high = bootstrap_interval(a - b, users, seed=seed, resamples=resamples, level=level)
    return Difference(float((a - b).mean()), low, high)
