"""How sure a mean or a difference is: bootstrap over users, whose examples belong together.

A user's examples are not independent, so users are drawn with replacement and bring all their
examples along (cluster bootstrap; Davison and Hinkley, 1997, chapter 3.8), with percentile limits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_CHUNK_CELLS = 4_000_000


class Difference(NamedTuple):
    """A mean difference and its confidence limits."""

    mean: float
    low: float
    high: float


def bootstrap_means(
    values: Sequence[float], users: Sequence, *, seed: int, resamples: int = 2000
) -> Float[np.ndarray, "resamples"]:
    """The mean over examples in each resample of the users.

    Args:
      values: [n] one number per example.
      users: [n] whose example it is.
      seed: of the resampling; the same seed draws the same users.
      resamples: how many.

    Raises:
      ValueError: if there are no values, or lengths differ.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or len(values) != len(users):
        raise ValueError(f"found {len(values)} values of {len(users)} users, expected as many")
    _, user = np.unique(np.asarray(users), return_inverse=True)
    counts = np.bincount(user)
    sums = np.bincount(user, weights=values)
    size = len(counts)
    rng = np.random.default_rng(seed)
    means = []
    chunk = max(1, _CHUNK_CELLS // size)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
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
    """Percentile interval (low, high) of the mean over examples; see ``bootstrap_means``."""
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
    """Mean of ``a - b`` over the same examples, with its interval over users.

    Args:
      a, b: [n] per-example values (an NDCG, say) of two methods on the same examples.
      users: [n] whose example it is.
      seed, resamples, level: of the bootstrap.

    Raises:
      ValueError: if the lengths differ.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values: found shapes {a.shape} and {b.shape}, expected equal")
    low, high = bootstrap_interval(a - b, users, seed=seed, resamples=resamples, level=level)
    return Difference(float((a - b).mean()), low, high)
