"""Title match: its features by hand, and its weights on a log whose titles tell the next item."""

from types import SimpleNamespace

import numpy as np

from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.evaluation.baselines import titles
from agenticrec_jax.metrics.ranking import ndcg_at_k, rank_of_target
from agenticrec_jax.testing.world import tiny_world


def example(history, candidates):
    return SimpleNamespace(history=history, candidates=candidates)


def test_shared_words_count_by_their_rarity():
    """Of four titles "pen" is in three, "gel" in two and "blue" in two."""
    names = ["Gel pen", "Blue PEN 12", "tape", "blue gel pen"]
    pen = np.log(4 / 3)
    rare = np.log(2)
    features = titles.title_overlaps(names, [example((0, 1), (3, 2))])
    # Candidate 3 shares gel and pen with item 0, and blue and pen with item 1, the newest.
    np.testing.assert_allclose(features, [[[rare + pen, rare + pen, rare + pen], [0, 0, 0]]])
    features = titles.title_overlaps(names, [example((3, 2), (0, 1))])
    half = (rare + pen) / 2
    np.testing.assert_allclose(features, [[[rare + pen, 0, half], [rare + pen, 0, half]]])


def test_brands_are_counted_in_the_history_and_none_matches_nothing():
    brands = ["a", "b", "a", None, None]
    features = titles.brand_matches(
        brands, [example((0, 2, 1), (2, 1, 3)), example((3,), (4,) * 3)]
    )
    assert features[0].tolist() == [[2, 0], [1, 1], [0, 0]] and not features[1].any()


def planted(world, rng):
    """The log's items with titles in ten families, and samples whose target is of the newest's."""
    items = world.log.items
    family = rng.integers(10, size=len(items))
    named = SimpleNamespace(
        title=[f"word{chr(97 + f)} {chr(97 + i % 26)}x" for i, f in enumerate(family)],
        brand=[None] * len(items),
    )
    history = rng.integers(len(items), size=(400, 3))
    examples = []
    for row in history:
        candidates = rng.choice(len(items), size=20, replace=False)
        alike = np.flatnonzero(family == family[row[-1]])
        target = int(rng.choice(alike))
        candidates[0] = target
        examples.append(
            SimpleNamespace(history=tuple(row.tolist()), candidates=tuple(candidates.tolist()))
        )
    return named, examples


def test_weights_follow_the_newest_item_where_it_alone_tells(monkeypatch):
    world = tiny_world()
    named, examples = planted(world, np.random.default_rng(0))
    monkeypatch.setattr(titles, "draw_candidates", lambda *args, **kwargs: examples)
    for each in examples:
        each.target_number = 1
    log = SimpleNamespace(items=named)
    weights = titles.fit_title_match(log, examples)
    assert weights[1] > 3 * max(weights[0], weights[2], 0.1)
    scores = titles.title_match_scores(named, weights, examples)
    ndcg = ndcg_at_k(rank_of_target(scores, np.zeros(len(examples), int)), 10)
    assert ndcg > 0.5  # chance is .227


def test_weights_are_fitted_on_candidates_drawn_beside_the_targets_of_the_samples():
    world = tiny_world()
    fit = chronological_splits(prediction_samples(world.log)).fit
    weights = titles.fit_title_match(world.log, fit[:40], negatives=5)
    assert weights.shape == (5,) and np.isfinite(weights).all() and weights.any()
    others = titles.fit_title_match(world.log, fit[:40], negatives=5, seed=1)
    assert not np.allclose(weights, others)
