"""Retrieval from the whole catalog, against counts by hand and SASRec's own recommendations."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from agenticrec_jax.sequential.recommender import Recommender
from agenticrec_jax.serving.retrieval import best, catalog_scores, retrieve, taken_together
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.world import tiny_world
from agenticrec_jax.tools.statistics import Statistics

NOW = SimpleNamespace(time=2**40)


def counted_by_hand(log, events, history):
    """For each item the users who took it and an item of the history, once for each such item."""
    baskets = {}
    for user, item in zip(log.user[:events].tolist(), log.item[:events].tolist(), strict=True):
        baskets.setdefault(user, set()).add(item)
    counts = [0] * log.num_items
    for basket in baskets.values():
        for own in set(history) & basket:
            for other in basket:
                counts[other] += bool(own is not None)
    return counts


def test_items_taken_together_are_those_of_a_count_by_hand():
    world = tiny_world()
    log, events = world.log, world.artifacts.fit_range.events
    statistics = world.artifacts.as_of(NOW).statistics
    for user in (2, 30, 77):
        history = log.item[log.events_of(user)].tolist()
        expected = counted_by_hand(log, events, history)
        assert taken_together(statistics, history).tolist() == expected and max(expected) > 2


def test_the_example_of_three_users():
    pairs = [(0, 0), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
    user, item = np.array(pairs).T
    statistics = Statistics(np.array([3, 1, 3]), np.full(3, np.nan), user, item)
    assert taken_together(statistics, [0, 1])[2] == 4


def test_both_orders_by_turns_without_own_and_unknown_items():
    world = tiny_world()
    log, artifacts = world.log, world.artifacts
    data = artifacts.as_of(NOW)
    popularity = data.statistics.popularity
    model = Recommender(data.sasrec_index.model, log.items.item_id, artifacts.fit_range)
    for user in (2, 30, 77):
        history = log.item[log.events_of(user)].tolist()
        ids = [log.items.item_id[item] for item in history]
        codes = [log.items.code[i] for i, _ in model.recommend(ids, count=log.num_items)]
        by_sasrec = [item for item in codes if popularity[item]]
        counts = counted_by_hand(log, artifacts.fit_range.events, history)
        together = [i for i in range(log.num_items) if counts[i] and i not in history]
        together.sort(key=lambda i: (-counts[i], -popularity[i], i))
        expected = []
        for item in itertools.chain(*zip(by_sasrec, together, strict=False)):
            expected += [item] * (item not in expected)
        retrieved = retrieve(artifacts, NOW, history, 30)
        assert retrieved == expected[:30] and len(retrieved) == 30
        assert retrieve(artifacts, NOW, history, 20) == expected[:20]
        assert not set(retrieved) & set(history)


def test_a_small_catalog_gives_fewer():
    world = tiny_world()
    popular = np.flatnonzero(world.artifacts.as_of(NOW).statistics.popularity).tolist()
    retrieved = retrieve(world.artifacts, NOW, popular[3:], 20)
    assert sorted(retrieved) == popular[:3]


def test_scores_of_a_new_item_are_lowest_and_times_are_checked():
    artifacts = tiny_world().artifacts
    scores = catalog_scores(artifacts, NOW, [3, 5])
    extended = catalog_scores(artifacts.extended(2), NOW, [3, 5])
    np.testing.assert_array_equal(extended[:-2], scores)
    assert np.isneginf(extended[-2:]).all() and np.isfinite(scores).all()
    early = SimpleNamespace(time=0)
    assert_names(refused(retrieve, artifacts, early, [3], 20), "artifacts")
    assert_names(refused(catalog_scores, artifacts, early, [3]), "artifacts")


@pytest.mark.parametrize("count", [0, 2, 9])
def test_best_orders_by_score_tie_and_code(count):
    scores, ties = np.array([1.0, 2.0, 2.0, 2.0, 9.0]), np.array([0, 1, 3, 3, 0])
    allowed = np.array([True, True, True, True, False])
    assert best(scores, ties, allowed, count) == [2, 3, 1, 0][:count]
