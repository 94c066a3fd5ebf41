"""The bootstrap against its own definition, enumerated, and against its known spread."""

import itertools

import numpy as np
import pytest

from agenticrec_jax.metrics.significance import (
    bootstrap_interval,
    bootstrap_means,
    holm,
    paired_difference,
)


def test_resampled_means_are_those_of_drawn_users_with_all_their_examples():
    values = [1.0, 3.0, 10.0, 0.0]
    users = ["a", "a", "b", "c"]
    by_user = {"a": [1.0, 3.0], "b": [10.0], "c": [0.0]}
    means = [
        np.mean(sum((by_user[user] for user in drawn), []))
        for drawn in itertools.product("abc", repeat=3)
    ]
    resampled = bootstrap_means(values, users, seed=1, resamples=40_000)
    assert set(np.round(resampled, 9)) == set(np.round(means, 9))
    assert resampled.mean() == pytest.approx(np.mean(means), abs=0.05)
    assert resampled.std() == pytest.approx(np.std(means), rel=0.02)


def test_interval_of_independent_examples_is_the_normal_one():
    values = np.random.default_rng(0).normal(2.0, 3.0, 4000)
    low, high = bootstrap_interval(values, np.arange(4000), resamples=4000)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    low80, high80 = bootstrap_interval(values, np.arange(4000), resamples=4000, level=0.8)
    assert (high80 - low80) / (high - low) == pytest.approx(1.2816 / 1.96, rel=0.05)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        size = rng.integers(1, 6, 60)
        user = np.repeat(np.arange(60), size)
        values = rng.normal(0, 1, 60)[user] + rng.normal(0, 0.5, len(user))
        low, high = bootstrap_interval(values, user, seed=trial, resamples=400)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.985


def test_pairing_removes_what_both_methods_share():
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(100), 3)
    hard = rng.normal(0, 1, 300)
    a = hard + 0.05 + rng.normal(0, 0.1, 300)
    b = hard + rng.normal(0, 0.1, 300)
    difference = paired_difference(a, b, users)
    assert difference.mean == pytest.approx((a - b).mean())
    assert 0 < difference.low < difference.mean < difference.high < 0.1
    reverse = paired_difference(b, a, users)
    assert reverse.high == pytest.approx(-difference.low)
    assert paired_difference(a, a, users) == (0.0, 0.0, 0.0, 1.0)
    low, high = bootstrap_interval(a, users)
    assert high - low > 5 * (difference.high - difference.low)


def test_the_seed_decides_the_resamples_and_chunks_do_not_change_them(monkeypatch):
    values = np.random.default_rng(3).random(50)
    users = np.arange(50) // 2
    whole = bootstrap_means(values, users, seed=4, resamples=100)
    assert len(whole) == 100
    monkeypatch.setattr("agenticrec_jax.metrics.significance._CHUNK_CELLS", 200)
    np.testing.assert_array_equal(bootstrap_means(values, users, seed=4, resamples=100), whole)
    assert not np.array_equal(bootstrap_means(values, users, seed=5, resamples=100), whole)


def test_names_of_users_do_not_change_the_resamples():
    values = np.random.default_rng(3).random(6)
    users = np.array([7, 7, 2, 9, 2, 4])
    ids = np.array(["m", "m", "z", "a", "z", "q"])  # sorted in another order
    expected = bootstrap_means(values, users, seed=0, resamples=50)
    np.testing.assert_array_equal(bootstrap_means(values, ids, seed=0, resamples=50), expected)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="2 values.* 1 users"):
        bootstrap_interval([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_interval([], [])
    with pytest.raises(ValueError, match="shapes"):
        paired_difference([1.0, 2.0], [1.0], [0, 0])


def test_the_p_value_is_that_of_the_enumerated_resamples():
    """Two users of differences 3 and -1: resamples have the means 3, 1, 1 and -1, one of four."""
    difference = paired_difference([3.0, 0.0], [0.0, 1.0], ["a", "b"], resamples=40_000)
    assert difference.p == pytest.approx(2 * 1 / 4, abs=0.02)
    assert paired_difference([0.0, 1.0], [3.0, 0.0], ["a", "b"], resamples=40_000).p == (
        pytest.approx(difference.p, abs=0.02)
    )
    assert paired_difference([1.0, 2.0], [0.5, 1.0], ["a", "b"], resamples=99).p == 2 / 100


def test_holm_is_the_step_down_procedure():
    """By its definition: hypotheses are rejected from the smallest p on, until p > level / left."""
    # .005 * 4, .01 * 3, .03 * 2, and .04 * 1, which is less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == [] and holm([0.2]) == [0.2]
    p_values = np.random.default_rng(0).uniform(0, 0.2, 12)
    for level in (0.01, 0.05, 0.2, 0.9):
        rejected = set()
        for left, i in zip(range(12, 0, -1), np.argsort(p_values), strict=True):
            if p_values[i] > level / left:
                break
            rejected.add(int(i))
        corrected = holm(p_values)
        assert {i for i in range(12) if corrected[i] <= level} == rejected
