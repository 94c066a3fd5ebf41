"""The synthetic log carries three kinds of signal, and each can be switched off."""

import numpy as np
import pytest

from agenticrec_jax.data.candidates import draw_candidates
from agenticrec_jax.data.splits import chronological_splits, prediction_samples
from agenticrec_jax.evaluation.baselines.cooccurrence import cooccurrence_scores
from agenticrec_jax.evaluation.baselines.popularity import (
    brand_popularity_scores,
    popularity_scores,
)
from agenticrec_jax.metrics.ranking import ndcg_at_k, rank_of_target
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log


def _ndcg(log, method):
    splits = chronological_splits(prediction_samples(log))
    examples = draw_candidates(log, splits.test, seed=0, split="test")
    scores = method(log, splits.fit_range_b, examples)
    return ndcg_at_k(rank_of_target(scores, [e.target_number - 1 for e in examples]), 10)


@pytest.fixture(scope="module")
def log():
    return synthetic_log(seed=5)


def test_the_same_seed_gives_the_same_log(log):
    assert synthetic_log(seed=5).fingerprint == log.fingerprint
    assert synthetic_log(seed=6).fingerprint != log.fingerprint


def test_shape(log):
    assert (log.num_users, log.num_items) == (800, 400)
    assert len(set(log.items.title_key)) == 400 and None not in log.items.brand
    assert (np.diff(log.time) >= 0).all() and (log.time % 86_400 == 0).all()
    assert set(log.rating.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    pairs = np.stack([log.user, log.time])
    shared = np.unique(pairs, axis=1, return_counts=True)[1]
    assert shared[shared > 1].sum() > 0.5 * len(log)


def test_popularity_brand_and_sequence_each_carry_signal(log):
    popularity = _ndcg(log, popularity_scores)
    assert popularity > 0.33
    assert _ndcg(log, brand_popularity_scores) > popularity + 0.03
    assert _ndcg(log, cooccurrence_scores) > popularity + 0.03


def test_switched_off_signals_are_gone():
    plain = synthetic_log(SyntheticConfig(brand_share=0.0, sequence_share=0.0), seed=5)
    popularity = _ndcg(plain, popularity_scores)
    assert _ndcg(plain, brand_popularity_scores) < popularity + 0.01
    assert _ndcg(plain, cooccurrence_scores) < popularity + 0.01


def test_small_worlds_work():
    small = synthetic_log(SyntheticConfig(users=12, items=30, brands=3, days=20), seed=1)
    assert small.num_users == 12 and small.num_items == 30
