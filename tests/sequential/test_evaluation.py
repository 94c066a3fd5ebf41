"""Ranks in the catalog beside a plain loop, and draws of unseen items."""

import numpy as np
import pytest

from agenticrec_jax.sequential.evaluation import catalog_ranks, draw_unseen, sampled_ranks
from agenticrec_jax.testing.errors import assert_names, refused

RNG = np.random.default_rng(0)
# Small whole numbers: many ties, no rounding.
STATES = RNG.integers(-2, 3, (9, 3)).astype(np.float32)
TABLE = RNG.integers(-2, 3, (12, 3)).astype(np.float32)
TARGETS = RNG.integers(0, 12, 9)
SEEN = [RNG.choice(12, size, replace=False).tolist() for size in (0, 1, 2, 3, 4, 5, 6, 7, 11)]


def plain_rank(scores, target, items):
    """Returns 1 and the number of other items that score at least as high."""
    return 1 + sum(scores[i] >= scores[target] for i in items if i != target)


@pytest.mark.parametrize("seen", [None, SEEN])
@pytest.mark.parametrize("batch", [4, 100])
def test_ranks_are_those_of_a_loop_over_items(seen, batch):
    ranks = catalog_ranks(STATES, TABLE, TARGETS, seen, batch)
    scores = STATES @ TABLE.T
    for user, target in enumerate(TARGETS):
        items = set(range(12)) - set(seen[user] if seen else ())
        assert ranks[user] == plain_rank(scores[user], target, items)


def test_a_target_with_a_nan_score_is_last():
    states = np.full((1, 3), np.nan, np.float32)
    assert catalog_ranks(states, TABLE, TARGETS[:1]).tolist() == [12]
    assert catalog_ranks(states, TABLE, np.array([0]), [[3, 4]]).tolist() == [10]


def test_sampled_ranks_count_the_negatives_alone():
    negatives = draw_unseen([[t] for t in TARGETS], 12, 5, seed=3)
    ranks = sampled_ranks(STATES, TABLE, TARGETS, negatives)
    scores = STATES @ TABLE.T
    for user, target in enumerate(TARGETS):
        assert ranks[user] == plain_rank(scores[user], target, negatives[user])


def test_drawn_items_are_different_unseen_and_uniform():
    seen = [[0, 5, 5], [3], []] * 2000
    drawn = draw_unseen(seen, 8, 4, seed=1, chunk=700)
    assert drawn.shape == (6000, 4)
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    for user, allowed in enumerate(({1, 2, 3, 4, 6, 7}, set(range(8)) - {3}, set(range(8)))):
        items, counts = np.unique(drawn[user::3], return_counts=True)
        assert set(items.tolist()) == allowed
        np.testing.assert_allclose(counts / 2000, 4 / len(allowed), atol=0.06)
    np.testing.assert_array_equal(drawn, draw_unseen(seen, 8, 4, seed=1, chunk=700))
    assert (drawn != draw_unseen(seen, 8, 4, seed=2, chunk=700)).any()
    sentence = refused(draw_unseen, seen, 8, 7, seed=1)
    assert_names(sentence, "unseen items", "among 8", "found 6", "at least 7")
