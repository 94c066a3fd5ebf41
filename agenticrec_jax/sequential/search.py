"""Nearest neighbors by inner product: exact, or approximate over large tables on a TPU."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def unit_rows(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Rows scaled to length 1, so that inner products are cosines; zero rows stay zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


LARGE = 1_000_000  # rows from which a TPU searches approximately
RECALL = 0.95  # of the best that an approximate search is expected to find
SEARCHED = 32  # queries in one compiled search; fewer are filled up, so that a query's bits are its
MANY = 512  # rows asked for from which a CPU finds them sooner by partition than by `lax.top_k`


def recall_target(table: Float[Array, "N D"], platform: str | None = None) -> float:
    """1 for an exact search of a table; below 1 if it is large and the platform is a TPU.

    ``platform`` is JAX's default backend if it is not given. Elsewhere XLA has no approximate
    search: there ``jax.lax.approx_max_k`` sorts, and is exact.
    """
    tpu = (platform or jax.default_backend()) == "tpu"
    return RECALL if tpu and table.shape[0] >= LARGE else 1.0


@partial(jax.jit, static_argnames=("k", "recall"))
def top_k(
    queries: Float[Array, "Q D"],
    table: Float[Array, "N D"],
    k: int,
    exclude: Int[Array, "Q X"] | None = None,
    recall: float = 1.0,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The ``k`` rows of ``table`` with the largest inner product with each query, best first.

    Args:
      queries, table: vectors of the same width.
      k: how many, at most N; ties go to the lower row.
      exclude: rows left out per query; entries outside 0..N-1 leave out nothing. Excluded rows
        come last with score ``-inf`` where fewer than ``k`` others remain.
      recall: below 1 it is the share of the ``k`` best that ``jax.lax.approx_max_k`` is expected to
        find (Chern et al., "TPU-KNN", NeurIPS 2022).

    Returns:
      Scores and row numbers.
    """
    scores = masked_scores(queries, table, exclude)
    if recall < 1:
        return jax.lax.approx_max_k(scores, k, recall_target=recall)
    return jax.lax.top_k(scores, k)


@jax.jit
def masked_scores(
    queries: Float[Array, "Q D"], table: Float[Array, "N D"], exclude: Int[Array, "Q X"] | None
) -> Float[Array, "Q N"]:
    """Inner product of each query with each row, ``-inf`` where it is left out; see `top_k`."""
    chex.assert_rank([queries, table], 2)
    scores = queries @ table.T
    if exclude is None:
        return scores
    rows = jnp.where(exclude < 0, table.shape[0], exclude)
    query = jnp.arange(queries.shape[0])[:, None]
    return scores.at[query, rows].set(-jnp.inf, mode="drop")


def largest(
    scores: Float[np.ndarray, "Q N"], k: int
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """``jax.lax.top_k`` of scores without NaN, on the host: only what passes the k-th is sorted."""
    least = scores.shape[1] - k
    rows = np.empty((len(scores), k), np.int32)
    for own, best in zip(scores, rows, strict=True):
        passed = np.flatnonzero(own >= np.partition(own, least)[least])
        best[:] = passed[np.argsort(-own[passed], kind="stable")[:k]]
    return np.take_along_axis(scores, rows, axis=1), rows


def searched(
    queries: Float[np.ndarray, "Q D"],
    table: Float[Array, "N D"],
    count: int,
    exclude: Int[np.ndarray, "Q X"] | None = None,
) -> tuple[Float[np.ndarray, "Q K"], Int[np.ndarray, "Q K"]]:
    """`top_k` of any number of queries in pieces of one shape, on the host.

    Many rows of a CPU's table are found by `largest`: the same ones in the same order.
    """
    size = len(queries)
    if exclude is None:
        exclude = np.full((size, 1), -1, np.int32)
    by_partition = count >= MANY and jax.default_backend() == "cpu"
    parts = []
    for start in range(0, size, SEARCHED):
        part = slice(start, start + SEARCHED)
        missing = SEARCHED - len(exclude[part])
        filled = np.pad(queries[part], ((0, missing), (0, 0)))
        left_out = np.pad(exclude[part], ((0, missing), (0, 0)), constant_values=-1)
        if by_partition:
            scores = np.asarray(masked_scores(filled, table, left_out))
            parts.append(largest(scores[: SEARCHED - missing], count))
        else:
            found = jax.device_get(top_k(filled, table, count, left_out, recall_target(table)))
            parts.append(tuple(column[: SEARCHED - missing] for column in found))
    scores, rows = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(rows)
