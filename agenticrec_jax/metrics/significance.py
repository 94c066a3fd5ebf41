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
    """A mean difference, its confidence limits, and the p-value of no difference.

    Attributes:
      mean: of the differences.
      low, high: confidence limits.
      p: of both sides, by the resamples that the limits are of; None where it is not computed.
    """

    mean: float
    low: float
    high: float
    p: float | None = None

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
    return _percentiles(means, level)


def _percentiles(means: Float[np.ndarray, "resamples"], level: float) -> tuple[float, float]:
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

    The methods differ significantly at ``level`` if the interval does not contain 0. The p-value is
    that of the same bootstrap: twice the smaller share of resamples at or beyond 0, where the
    observed one counts as a resample, so that p is never 0 (Davison and Hinkley, section 4.2).

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
      >>> better = paired_difference([1.0, 0.5, 0.5], [0.5, 0.0, 0.0], users=[0, 1, 2])
      >>> better[:3], better.p == 2 / 2001
      ((0.5, 0.5, 0.5), True)
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values: found shapes {a.shape} and {b.shape}, expected equal")
    means = bootstrap_means(a - b, users, seed=seed, resamples=resamples)
    low, high = _percentiles(means, level)
    beyond = 1 + min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * float(beyond) / (1 + resamples))
    return Difference(float((a - b).mean()), low, high, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, in their order (Holm, 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none gets below a smaller
    one, or above 1. Where all tests that are below a level are called significant, the probability
    of one or more false ones is at most that level, however the tests depend on each other.

    Args:
      p_values: of the tests of one family.

    Example:
      .005 times 4, .01 times 3, .03 times 2; .04 times 1 is less than .06 and becomes it.

      >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
      [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()
