"""Ranking metrics against hand-worked tables, brute force and the exact chance level."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.metrics.ranking import (
    expected_metrics,
    hr_at_k,
    ndcg_at_k,
    ndcg_values,
    rank_of_target,
    score_order,
    summarize,
)


def test_hand_worked_table():
    ranks = [1, 2, 3, 10, 11, 0, None, 5]
    assert hr_at_k(ranks, 1) == 1 / 8
    assert hr_at_k(ranks, 5) == 4 / 8
    assert hr_at_k(ranks, 10) == 5 / 8
    # 1/log2(r+1): rank 2 .6309, rank 3 .5, rank 5 .3869, rank 10 .2891.
    np.testing.assert_allclose(
        ndcg_values(ranks, 10), [1, 0.6309298, 0.5, 0.2890648, 0, 0, 0, 0.3868528], atol=1e-7
    )
    assert ndcg_at_k(ranks, 5) == pytest.approx((1 + 0.6309298 + 0.5 + 0.3868528) / 8)
    assert ndcg_at_k(ranks, 2) == pytest.approx((1 + 0.6309298) / 8)


def test_chance_is_exact():
    rounded = {name: round(value, 4) for name, value in expected_metrics(20).items()}
    assert rounded == {
        "hr@1": 0.05,
        "hr@5": 0.25,
        "hr@10": 0.5,
        "ndcg@5": 0.1474,
        "ndcg@10": 0.2272,
    }
    # Of 3 candidates every order, listed: the target is first, second and third equally often.
    orders = list(itertools.permutations(range(3)))
    values = [1 / math.log2(order.index(0) + 2) for order in orders]
    assert expected_metrics(3)["ndcg@5"] == pytest.approx(sum(values) / len(values))


def test_random_scores_are_at_chance():
    scores = np.random.default_rng(1).random((4000, 20))
    ranks = rank_of_target(scores, np.arange(4000) % 20)
    # The standard error of the mean NDCG@10 over 4000 examples is about .0042.
    assert abs(ndcg_at_k(ranks, 10) - expected_metrics(20)["ndcg@10"]) < 4 * 0.0042


def test_ties_rank_before_the_target():
    scores = np.array([[3.0, 5.0, 3.0, 1.0]] * 4)
    assert rank_of_target(scores, np.arange(4)).tolist() == [3, 1, 3, 4]
    assert rank_of_target(np.zeros(20), 7) == 20
    assert rank_of_target(np.array([np.nan, 1.0, 2.0]), 0) == 3
    assert rank_of_target(np.array([np.nan, 1.0, 2.0]), 2) == 2


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_rank_is_the_worst_of_all_sortings(scores, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i == target))
    assert rank_of_target(np.array(scores), target) == order.index(target) + 1


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.nan]), min_size=1, max_size=12), st.data())
def test_the_order_of_scores_has_the_target_at_its_rank(scores, data):
    target = data.draw(st.integers(0, len(scores) - 1))
    (order,) = score_order(np.array([scores]), np.array([target])).tolist()
    assert sorted(order) == list(range(len(scores)))
    assert order.index(target) + 1 == rank_of_target(np.array(scores), target)
    others = [scores[i] for i in order if i != target and not np.isnan(scores[i])]
    assert others == sorted(others, reverse=True)


def test_invalid_outputs_are_misses_that_stay_in_the_denominator():
    row = summarize([1, 1, 3, 0], [False, True, False, True], [2, 0, 4, 0], [0, 0, 1, 2])
    assert row["n"] == 4 and row["invalid_rate"] == 0.5 and row["mean_tool_calls"] == 1.5
    assert row["hr@1"] == 0.25 and row["hr@5"] == row["hr@10"] == 0.5
    assert row["ndcg@10"] == row["ndcg@5"] == pytest.approx((1 + 0.5) / 4)
    low, high = row["ndcg@10_interval"]
    assert low <= row["ndcg@10"] <= high
    assert set(row) == {
        "hr@1",
        "hr@5",
        "hr@10",
        "ndcg@5",
        "ndcg@10",
        "invalid_rate",
        "mean_tool_calls",
        "n",
        "ndcg@10_interval",
    }


def test_interval_is_over_users_not_examples():
    ranks = np.repeat(np.random.default_rng(0).integers(1, 21, 30), 20)
    users = np.repeat(np.arange(30), 20)
    wide = np.ptp(summarize(ranks, users=users)["ndcg@10_interval"])
    narrow = np.ptp(summarize(ranks)["ndcg@10_interval"])
    assert wide > 3 * narrow  # about sqrt(20) times


def test_bad_columns_are_refused():
    with pytest.raises(ValueError, match="-1"):
        hr_at_k([1, -1], 1)
    with pytest.raises(ValueError, match="invalid.* 1 .* 2"):
        summarize([1, 2], invalid=[True])
    with pytest.raises(ValueError, match="no examples"):
        summarize([])
