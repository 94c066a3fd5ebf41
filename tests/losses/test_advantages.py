"""Advantages and dynamic sampling against hand-worked tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agenticrec_jax.losses.advantages import group_advantages, keep_groups

REWARDS = jnp.array([[1.0, 0.5, -0.5, -1.0], [1.1, 0.0, 0.3, 0.2]])


def test_mean_baseline_by_hand():
    expected = [[1.0, 0.5, -0.5, -1.0], [0.7, -0.4, -0.1, -0.2]]
    np.testing.assert_allclose(group_advantages(REWARDS), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(group_advantages)(REWARDS), expected, atol=1e-6)


def test_leave_one_out_by_hand():
    # First member of the second group: 1.1 - (0.0 + 0.3 + 0.2) / 3.
    expected = [
        [1.0 + 1.0 / 3, 0.5 + 0.5 / 3, -0.5 - 0.5 / 3, -1.0 - 1.0 / 3],
        [1.1 - 0.5 / 3, 0.0 - 1.6 / 3, 0.3 - 1.3 / 3, 0.2 - 1.4 / 3],
    ]
    np.testing.assert_allclose(
        group_advantages(REWARDS, baseline="leave_one_out"), expected, atol=1e-6
    )


def test_std_scale_by_hand():
    # Squares of the centered first group: 1 + .25 + .25 + 1 = 2.5, over n - 1 = 3.
    expected = np.array([1.0, 0.5, -0.5, -1.0]) / (np.sqrt(2.5 / 3) + 0.01)
    actual = group_advantages(REWARDS, scale="std", epsilon=0.01)[0]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_masked_members_neither_count_nor_learn():
    mask = jnp.array([[True, True, False, True], [False, False, True, False]])
    actual = group_advantages(REWARDS, mask)
    mean = (1.0 + 0.5 - 1.0) / 3
    expected = [[1.0 - mean, 0.5 - mean, 0.0, -1.0 - mean], [0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    for options in ({"baseline": "leave_one_out"}, {"scale": "std"}):
        others = group_advantages(REWARDS.at[0, 2].set(99.0), mask, **options)
        np.testing.assert_array_equal(others, group_advantages(REWARDS, mask, **options))
        np.testing.assert_array_equal(others[1], 0.0)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-2, 2, width=32)), st.floats(-3, 3))
def test_advantages_ignore_a_constant_and_sum_to_zero(rewards, shift):
    advantages = group_advantages(rewards)
    np.testing.assert_allclose(advantages.sum(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(group_advantages(rewards + np.float32(shift)), advantages, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("baseline", "median"), ("scale", "max")])
def test_unknown_names_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}.*'{value}'"):
        group_advantages(REWARDS, **{name: value})


DYNAMIC = np.array(
    [
        [-1.0, -0.5, -0.5, -1.0],  # all negative
        [-1.0, -1.0, -1.0, -1.0],  # all negative and all equal
        [0.5, 0.5, 0.5, 0.5],  # all equal
        [0.0, 0.0, 0.0, 0.0],  # all equal: 0 is not negative
        [-1.0, 0.0, -0.5, -0.5],  # learns
        [1.1, 1.0, 1.1, 1.1],  # learns
    ]
)


def test_keep_groups_by_hand():
    keep, counts = keep_groups(DYNAMIC)
    assert keep.tolist() == [False, False, False, False, True, True]
    assert {name: (int(s), int(n)) for name, (s, n) in counts.items()} == {
        "groups_all_negative": (2, 6),
        "groups_all_equal": (3, 6),
        "groups_dropped": (4, 6),
    }


def test_keep_groups_options():
    keep, _ = keep_groups(DYNAMIC, drop_negative=False)
    assert keep.tolist() == [True, False, False, False, True, True]
    keep, counts = keep_groups(DYNAMIC, drop_equal=False)
    assert keep.tolist() == [False, False, True, True, True, True]
    assert int(counts["groups_all_equal"][0]) == 3  # counted even where it is not dropped


def test_keep_groups_looks_at_unmasked_members_only():
    mask = np.ones((6, 4), bool)
    mask[4, 1] = False  # without its 0.0 the group is all negative
    mask[5] = False  # nobody left
    keep, _ = keep_groups(DYNAMIC, mask)
    assert not keep[4] and not keep[5]
