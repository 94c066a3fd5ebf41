"""Exact nearest neighbours by inner product, jitted."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def unit_rows(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Rows scaled to length 1, so that inner products are cosines; zero rows stay zero."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


@partial(jax.jit, static_argnames="k")
def top_k(
    queries: Float[Array, "Q D"],
    table: Float[Array, "N D"],
    k: int,
    exclude: Int[Array, "Q X"] | None = None,
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """The ``k`` rows of ``table`` with the largest inner product with each query, best first.

    Args:
      queries, table: vectors of the same width.
      k: how many, at most N; ties go to the lower row.
      exclude: rows left out per query; entries outside 0..N-1 leave out nothing. Excluded rows
        come last with score ``-inf`` where fewer than ``k`` others remain.

    Returns:
      Scores and row numbers.
    """
    chex.assert_rank([queries, table], 2)
    scores = queries @ table.T
    if exclude is not None:
        rows = jnp.where(exclude < 0, table.shape[0], exclude)
        query = jnp.arange(queries.shape[0])[:, None]
        scores = scores.at[query, rows].set(-jnp.inf, mode="drop")
    return jax.lax.top_k(scores, k)
