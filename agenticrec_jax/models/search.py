"""Nearest neighbours by inner product, jitted: exact, or approximate over large tables on a TPU."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def unit_rows(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Rows scaled to length 1, so that inner products are cosines; zero rows stay zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


LARGE = 1_000_000  # rows from which a TPU searches approximately
RECALL = 0.95  # of the best that an approximate search is expected to find


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
    chex.assert_rank([queries, table], 2)
    scores = queries @ table.T
    if exclude is not None:
        rows = jnp.where(exclude < 0, table.shape[0], exclude)
        query = jnp.arange(queries.shape[0])[:, None]
        scores = scores.at[query, rows].set(-jnp.inf, mode="drop")
    if recall < 1:
        return jax.lax.approx_max_k(scores, k, recall_target=recall)
    return jax.lax.top_k(scores, k)
