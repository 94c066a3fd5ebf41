"""Ranking metrics of one relevant item per example, and the summary row of the results table.

A rank counts from 1; rank 0 (or None) is a miss. An invalid output is a miss that stays in the
denominator, so that a method cannot gain by failing to answer.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from agenticrec_jax.metrics.significance import bootstrap_interval

HR_AT = (1, 5, 10)
NDCG_AT = (5, 10)


def as_ranks(ranks: Sequence[int | None]) -> Int[np.ndarray, "n"]:
    """Ranks as integers, with None as 0.

    Raises:
      ValueError: at a negative rank.
    """
    array = np.array([0 if rank is None else rank for rank in ranks], np.int64)
    if (array < 0).any():
        raise ValueError(f"ranks must be 0 (miss) or positive, found {array.min()}")
    return array


def hr_values(ranks: Sequence[int | None], k: int) -> Float[np.ndarray, "n"]:
    """Per example, 1.0 if the target is among the first ``k``, else 0.0."""
    ranks = as_ranks(ranks)
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def ndcg_values(ranks: Sequence[int | None], k: int) -> Float[np.ndarray, "n"]:
    """Per example, ``1 / log2(rank + 1)`` if the target is among the first ``k``, else 0.0."""
    return hr_values(ranks, k) / np.log2(np.maximum(as_ranks(ranks), 1) + 1)


def hr_at_k(ranks: Sequence[int | None], k: int) -> float:
    """Share of examples whose target is among the first ``k``."""
    return float(hr_values(ranks, k).mean())


def ndcg_at_k(ranks: Sequence[int | None], k: int) -> float:
    """Mean NDCG at ``k`` with a single relevant item (Jarvelin and Kekalainen, 2002)."""
    return float(ndcg_values(ranks, k).mean())


def rank_of_target(
    scores: Float[np.ndarray, "*n C"], target: Int[np.ndarray, "*n"] | int
) -> Int[np.ndarray, "*n"]:
    """Rank of column ``target`` (counted from 0) by descending score, ties against the target.

    Every other candidate whose score is not strictly lower stands before it, so a constant scorer
    gets the last rank, and a target whose score is NaN too.
    """
    scores = np.asarray(scores)
    own = np.take_along_axis(scores, np.asarray(target)[..., None], axis=-1)
    return scores.shape[-1] - (own > scores).sum(axis=-1)


def expected_metrics(candidates: int) -> dict[str, float]:
    """The metrics of a uniformly random order of ``candidates``, exactly."""
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
    """One row of the results table.

    Args:
      ranks: [n] ranks of the targets, 0 or None for a miss.
      invalid: [n], True where the output was invalid; its rank then counts as a miss.
      tool_calls: [n] calls made.
      users: [n] user of each example; the bootstrap draws users. Each example alone by default.
      seed, resamples: of the bootstrap.

    Returns:
      ``hr@1``, ``hr@5``, ``hr@10``, ``ndcg@5``, ``ndcg@10``, ``invalid_rate``,
      ``mean_tool_calls``, ``n``, and ``ndcg@10_interval``, the 95% interval [low, high].

    Raises:
      ValueError: if there are no examples or the lengths differ.
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
