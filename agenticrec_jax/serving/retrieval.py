"""Candidates from the whole catalog, by SASRec and by what the same users took.

Axes: I items, D embedding.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from agenticrec_jax.sequential.model import user_states
from agenticrec_jax.sequential.search import SEARCHED
from agenticrec_jax.tools.artifacts import Artifacts, Query
from agenticrec_jax.tools.statistics import Statistics


def retrieve(artifacts: Artifacts, query: Query, history: Sequence[int], count: int) -> list[int]:
    """Returns items that the user has not taken: the best of SASRec and of co-occurrence by turns.

    An item of both orders stands where it comes first: if SASRec's order is 7, 3, 9 and that of
    co-occurrence 3, 5, the items are 7, 3, 5, 9. Only items that somebody took in the fit range are
    retrieved, since nothing was fitted of the others.

    Args:
      artifacts: fitted values.
      query: whose time lies after the fit range.
      history: codes of all the items that the user took, oldest first.
      count: number of items; fewer are returned of a small catalog.
    """
    statistics = artifacts.as_of(query).statistics
    popularity = statistics.popularity
    allowed = popularity > 0
    allowed[list(history)] = False
    together = taken_together(statistics, history)
    by_sasrec = best(catalog_scores(artifacts, query, history), popularity, allowed, count)
    by_counts = best(together, popularity, allowed & (together > 0), count)
    turns = itertools.chain(*itertools.zip_longest(by_sasrec, by_counts))
    return [item for item in dict.fromkeys(turns) if item is not None][:count]


def catalog_scores(
    artifacts: Artifacts, query: Query, history: Sequence[int]
) -> Float[np.ndarray, "I"]:
    """Returns SASRec's score of each item after a history.

    The score does not depend on other histories. It is -inf for items that SASRec does not know,
    those of `Artifacts.extended`.
    """
    data = artifacts.as_of(query)
    model = data.sasrec_index.model
    (state,) = user_states(model, [list(history)], batch=SEARCHED, all_positions=True)
    scores = np.asarray(model.item_embeddings) @ state
    unknown = len(data.statistics.popularity) - len(scores)
    return np.pad(scores, (0, unknown), constant_values=-np.inf)


def taken_together(statistics: Statistics, history: Sequence[int]) -> Int[np.ndarray, "I"]:
    """Returns for each item how many users took it and an item of the history.

    A user who took two items of the history counts twice. If 3 users took items 0 and 2, and one
    of them item 1 too, item 2 has 4 with the history 0, 1.
    """
    of_history = statistics.taken[:, sorted(set(history))]
    return np.asarray((of_history.T @ statistics.taken_by_user).sum(axis=0)).ravel()


def best(
    scores: np.ndarray, ties: np.ndarray, allowed: Bool[np.ndarray, "I"], count: int
) -> list[int]:
    """Returns the ``count`` allowed items of the highest scores, then tie-breakers, then codes."""
    items = np.flatnonzero(allowed)
    order = np.lexsort((items, -ties[items], -scores[items]))
    return items[order[:count]].tolist()
