"""Ranks of next items by inner products of states and items: in the whole catalog, and sampled.

Ties are handled as in `evaluation.metrics`: an item that scores as high as the target stands before
it, and a target whose score is NaN is last.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from agenticrec_jax.errors import InputError
from agenticrec_jax.sequential.sasrec import pad_histories


def catalog_ranks(
    states: Float[np.ndarray, "U D"],
    table: Float[Array, "I D"],
    targets: Int[np.ndarray, "U"],
    seen: Sequence[Sequence[int]] | None = None,
    batch: int = 1024,
) -> Int[np.ndarray, "U"]:
    """Rank from 1 of each target among all items.

    Args:
      states: of the users' histories.
      table: embeddings of the items.
      targets: codes of the items that came next.
      seen: items left out of each user's ranking, such as the history; the target never is. None
        keeps all.
      batch: users scored at once.
    """
    hidden = _filled([()] * len(targets) if seen is None else seen)
    parts = []
    for start in range(0, len(targets), batch):
        rows = slice(start, start + batch)
        parts.append(_catalog_ranks(states[rows], table, targets[rows], hidden[rows]))
    return np.concatenate([np.asarray(part) for part in parts])


def sampled_ranks(
    states: Float[np.ndarray, "U D"],
    table: Float[Array, "I D"],
    targets: Int[np.ndarray, "U"],
    negatives: Int[np.ndarray, "U N"],
) -> Int[np.ndarray, "U"]:
    """Rank from 1 of each target among itself and the user's negatives (`draw_unseen`)."""
    return np.asarray(_sampled_ranks(states, table, targets, negatives))


def draw_unseen(
    seen: Sequence[Sequence[int]], items: int, count: int, *, seed: int, chunk: int = 1024
) -> Int[np.ndarray, "U count"]:
    """``count`` different items for each user, uniform over those that are not in ``seen``.

    ``seen`` should hold the target and all that the user took, later events included.

    Raises:
      InputError: if a user has fewer unseen items.
    """
    most = max((len(set(row)) for row in seen), default=0)
    if items - most < count:
        raise InputError(
            f"negatives: found a user with {items - most} unseen items of {items}, expected {count}"
        )
    rng, drawn = np.random.default_rng(seed), []
    for start in range(0, len(seen), chunk):
        hidden = _filled(seen[start : start + chunk])
        order = rng.random((len(hidden), items + 1), np.float32)
        np.put_along_axis(order, hidden, np.inf, axis=1)  # PAD falls on the last column
        order[:, items] = np.inf
        drawn.append(np.argpartition(order, count, axis=1)[:, :count])
    return np.concatenate(drawn)


def _filled(rows: Sequence[Sequence[int]]) -> Int[np.ndarray, "U S"]:
    """Rows of one length, filled up with ``PAD``."""
    return pad_histories(rows, max(map(len, rows), default=0))


@jax.jit
def _catalog_ranks(states, table, targets, hidden) -> Int[Array, "U"]:
    scores = states @ table.T
    user = jnp.arange(len(targets))[:, None]
    rows = jnp.where((hidden < 0) | (hidden == targets[:, None]), scores.shape[1], hidden)
    shown = jnp.ones(scores.shape, bool).at[user, rows].set(False, mode="drop")
    own = jnp.take_along_axis(scores, targets[:, None], axis=1)
    return shown.sum(axis=1) - (shown & (own > scores)).sum(axis=1)


@jax.jit
def _sampled_ranks(states, table, targets, negatives) -> Int[Array, "U"]:
    own = (states * table[targets]).sum(axis=-1, keepdims=True)
    others = jnp.einsum("ud,und->un", states, table[negatives])
    return 1 + others.shape[1] - (own > others).sum(axis=1)
