"""Ranking metrics of one relevant item per example, and the summary row of the results table.

A rank counts from 1. Rank 0 (or None) is a miss. An invalid output is a miss that stays in the
denominator, so that a method cannot gain by failing to answer.

Axes: ``examples``, C candidates.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax.metrics.significance import bootstrap_interval

HR_AT = (1, 5, 10)
NDCG_AT = (5, 10)


def as_ranks(ranks: Sequence[int | None]) -> Int[np.ndarray, "examples"]:
    """Returns ranks as integers, with None as 0.

    Raises:
      ValueError: a rank is negative.
    """
    array = np.array([0 if rank is None else rank for rank in ranks], np.int64)
    if (array < 0).any():
        raise ValueError(f"ranks must be 0 (miss) or positive, found {array.min()}")
    return array


def hr_values(ranks: Sequence[int | None], k: int) -> Float[np.ndarray, "examples"]:
    """Returns the hit rate at ``k`` of each example.

    Args:
      ranks: rank of each example's target from 1; 0 or None for a miss.
      k: length of the list that is read.

    Returns:
      1.0 where the target is among the first ``k``, else 0.0.

    Raises:
      ValueError: a rank is negative.

    Example:
      >>> hr_values([1, 3, 6, None], k=5).tolist()
      [1.0, 1.0, 0.0, 0.0]
    """
    ranks = as_ranks(ranks)
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def ndcg_values(ranks: Sequence[int | None], k: int) -> Float[np.ndarray, "examples"]:
    """Returns the normalized discounted cumulative gain at ``k`` of each example.

    With one relevant item the ideal gain is 1, so the metric of Järvelin and Kekäläinen (2002,
    "Cumulated gain-based evaluation of IR techniques") is the discount of the target's rank.

    Args:
      ranks: rank of each example's target from 1; 0 or None for a miss.
      k: length of the list that is read.

    Returns:
      ``1 / log2(rank + 1)`` where the target is among the first ``k``, else 0.0.

    Raises:
      ValueError: a rank is negative.

    Example:
      >>> ndcg_values([1, 3, 6, None], k=5).tolist()  # 1 / log2(2), 1 / log2(4), two misses
      [1.0, 0.5, 0.0, 0.0]
    """
    return hr_values(ranks, k) / np.log2(np.maximum(as_ranks(ranks), 1) + 1)


def hr_at_k(ranks: Sequence[int | None], k: int) -> float:
    """Returns the mean of `hr_values`: the share of examples with the target in the first ``k``.

    Example:
      >>> hr_at_k([1, 3, 6, None], k=5)
      0.5
    """
    return float(hr_values(ranks, k).mean())


def ndcg_at_k(ranks: Sequence[int | None], k: int) -> float:
    """Returns the mean of `ndcg_values`.

    Example:
      >>> ndcg_at_k([1, 3, 6, None], k=5)
      0.375
    """
    return float(ndcg_values(ranks, k).mean())


def rank_of_target(
    scores: Float[np.ndarray, "*examples C"], target: Int[np.ndarray, "*examples"] | int
) -> Int[np.ndarray, "*examples"]:
    """Returns the rank of each target by descending score, with ties decided against the target.

    Every other candidate whose score is not strictly lower ranks before it. A constant scorer thus
    gets the last rank, and so does a target whose score is NaN.

    Args:
      scores: scores of the candidates.
      target: column of the target, from 0.

    Example:
      >>> scores = np.array([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2]])
      >>> rank_of_target(scores, np.array([2, 0])).tolist()
      [2, 2]
    """
    scores = np.asarray(scores)
    target_score = np.take_along_axis(scores, np.asarray(target)[..., None], axis=-1)
    # The candidates below the target are counted: no comparison with NaN holds.
    return scores.shape[-1] - (target_score > scores).sum(axis=-1)


def score_order(
    scores: Float[np.ndarray, "examples C"], target: Int[np.ndarray, "examples"]
) -> Int[np.ndarray, "examples C"]:
    """Returns the columns of each example by descending score, the target at `rank_of_target`.

    Other candidates of equal scores stand by their columns.

    Args:
      scores: scores of the candidates.
      target: column of each target, from 0.

    Example:
      >>> score_order(np.array([[0.1, 0.9, 0.9], [0.7, 0.7, 0.2]]), np.array([1, 0])).tolist()
      [[2, 1, 0], [1, 0, 2]]
    """
    scores = np.asarray(scores, np.float64)
    is_target = np.arange(scores.shape[1]) == np.asarray(target)[:, None]
    # As in rank_of_target no NaN is below the target, and a target of NaN is last.
    scores = np.where(np.isnan(scores), np.where(is_target, -np.inf, np.inf), scores)
    return np.lexsort((is_target, -scores), axis=-1)


def expected_metrics(candidates: int) -> dict[str, float]:
    """Returns the exact expectation of each metric for a uniformly random order.

    The target's rank is then uniform over 1 to ``candidates``.

    Example:
      >>> {name: round(value, 4) for name, value in expected_metrics(20).items()}
      {'hr@1': 0.05, 'hr@5': 0.25, 'hr@10': 0.5, 'ndcg@5': 0.1474, 'ndcg@10': 0.2272}
    """
    ranks = np.arange(1, candidates + 1)
    return {f"hr@{k}": hr_at_k(ranks, k) for k in HR_AT} | {
        f"ndcg@{k}": ndcg_at_k(ranks, k) for k in NDCG_AT
    }


def summarize(
    ranks: Sequence[int | None],
    invalid: Sequence[bool] | None = None,
    tool_calls: Sequence[int] | None = None,
    users: Sequence[int] | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, float | int | list[float]]:
    """Returns one row of the results table.

    Args:
      ranks: [examples] ranks of the targets, 0 or None for a miss.
      invalid: [examples] whether the output was invalid; its rank then counts as a miss.
      tool_calls: [examples] number of calls.
      users: [examples] user of each example; the bootstrap draws users. None: each example is a
        user.
      seed: seed of the bootstrap.
      resamples: number of resamples of the bootstrap.

    Returns:
      ``hr@1``, ``hr@5``, ``hr@10``, ``ndcg@5``, ``ndcg@10``, ``invalid_rate``,
      ``mean_tool_calls``, ``n``, and ``ndcg@10_interval``, the 95% interval [low, high].

    Raises:
      ValueError: there are no examples, or the lengths differ.

    Example:
      >>> row = summarize([1, 1, 3, 0], invalid=[False, True, False, True])
      >>> row["n"], row["hr@1"], row["ndcg@10"], row["invalid_rate"]
      (4, 0.25, 0.375, 0.5)
    """
    ranks = as_ranks(ranks)
    size = len(ranks)
    if not size:
        raise ValueError("no examples to summarize")
    invalid = _column(invalid, np.zeros(size, bool), size, "invalid").astype(bool)
    tool_calls = _column(tool_calls, np.zeros(size), size, "tool_calls")
    users = _column(users, np.arange(size), size, "users")
    ranks = np.where(invalid, 0, ranks)
    values = ndcg_values(ranks, 10)
    interval = bootstrap_interval(values, users, seed=seed, resamples=resamples)
    row = {f"hr@{k}": hr_at_k(ranks, k) for k in HR_AT}
    row |= {f"ndcg@{k}": ndcg_at_k(ranks, k) for k in NDCG_AT}
    return row | {
        "invalid_rate": float(invalid.mean()),
        "mean_tool_calls": float(tool_calls.mean()),
        "n": size,
        "ndcg@10_interval": list(interval),
    }


def _column(values, default: np.ndarray, size: int, name: str) -> np.ndarray:
    values = default if values is None else np.asarray(values)
    if len(values) != size:
        raise ValueError(f"{name}: found {len(values)} values, expected {size}")
    return values
