"""Ranks of held-out items by inner products of states and items: in the catalog, and sampled.

Ties are decided against the target, as in `metrics.ranking`: an item that scores as high as the
target ranks before it. A target whose score is NaN ranks last.

Axes: U users, I items of the catalog, D embedding, M negatives, X excluded items.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from agenticrec_jax.errors import expect
from agenticrec_jax.sequential.fields import whole
from agenticrec_jax.sequential.sequences import pad_histories


def catalog_ranks(
    states: Float[np.ndarray, "U D"],
    table: Float[Array, "I D"],
    targets: Int[np.ndarray, "U"],
    seen: Sequence[Sequence[int]] | None = None,
    batch: int = 1024,
) -> Int[np.ndarray, "U"]:
    """Returns the rank of each target among all items, from 1.

    Args:
      states: states of the users' histories.
      table: embeddings of the items.
      targets: code of each user's next item.
      seen: items left out of each user's ranking, such as the history; the target never is. None
        ranks all items.
      batch: users scored at once.

    Example:
      >>> table = jnp.array([[1.0], [3.0], [2.0]])
      >>> catalog_ranks(np.ones((2, 1)), table, np.array([0, 2])).tolist()
      [3, 2]
      >>> catalog_ranks(np.ones((2, 1)), table, np.array([0, 2]), seen=[[1], [1]]).tolist()
      [2, 1]
    """
    batch = whole("batch", batch)
    excluded = _padded([()] * len(targets) if seen is None else seen)
    ranks = [np.zeros(0, np.int32)]  # of no target
    for start in range(0, len(targets), batch):
        rows = slice(start, start + batch)
        ranks.append(_catalog_ranks(states[rows], table, targets[rows], excluded[rows]))
    return np.concatenate([np.asarray(batch_ranks) for batch_ranks in ranks])


def sampled_ranks(
    states: Float[np.ndarray, "U D"],
    table: Float[Array, "I D"],
    targets: Int[np.ndarray, "U"],
    negatives: Int[np.ndarray, "U M"],
) -> Int[np.ndarray, "U"]:
    """Returns the rank from 1 of each target among itself and the user's negatives.

    `draw_unseen` draws negatives.
    """
    return np.asarray(_sampled_ranks(states, table, targets, negatives))


def draw_unseen(
    seen: Sequence[Sequence[int]], items: int, count: int, *, seed: int, chunk: int = 1024
) -> Int[np.ndarray, "U M"]:
    """Draws ``count`` different items for each user, uniform over those that are not in ``seen``.

    Args:
      seen: items that are not drawn: the target and all items of the user, of later events, too.
      items: I of the catalog.
      count: number of items M.
      seed: seed of the draw.
      chunk: users of one draw. Another chunk gives other items.

    Raises:
      InputError: a user has fewer unseen items.
    """
    fewest = items - max((len(set(row)) for row in seen), default=0)
    expect(fewest >= count, f"unseen items of a user among {items}", fewest, f"at least {count}")
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, len(seen), chunk):
        excluded = _padded(seen[start : start + chunk])
        # The items of the smallest of uniform numbers are a draw without replacement.
        order = rng.random((len(excluded), items + 1), np.float32)
        np.put_along_axis(order, excluded, np.inf, axis=1)  # PAD, -1, falls on the last column
        order[:, items] = np.inf
        drawn.append(np.argpartition(order, count, axis=1)[:, :count])
    return np.concatenate(drawn)


def _padded(rows: Sequence[Sequence[int]]) -> Int[np.ndarray, "U X"]:
    return pad_histories(rows, max(map(len, rows), default=0))


@jax.jit
def _catalog_ranks(states, table, targets, excluded) -> Int[Array, "U"]:
    scores = states @ table.T
    user = jnp.arange(len(targets))[:, None]
    # PAD and the target become column I, which is outside: "drop" leaves both in the ranking.
    columns = jnp.where((excluded < 0) | (excluded == targets[:, None]), scores.shape[1], excluded)
    ranked = jnp.ones(scores.shape, bool).at[user, columns].set(False, mode="drop")
    positive = jnp.take_along_axis(scores, targets[:, None], axis=1)
    # Counts the items below the target: no comparison with NaN holds, so a NaN ranks last.
    return ranked.sum(axis=1) - (ranked & (positive > scores)).sum(axis=1)


@jax.jit
def _sampled_ranks(states, table, targets, negatives) -> Int[Array, "U"]:
    positive = (states * table[targets]).sum(axis=-1, keepdims=True)
    scores = jnp.einsum("ud,umd->um", states, table[negatives])
    return 1 + scores.shape[1] - (positive > scores).sum(axis=1)
