"""Item sequences of a log, and windows of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.data.splits import FitRange
from agenticrec_jax.sequential.sequences import (
    PAD,
    check_codes,
    fitted_sequences,
    pad_histories,
    shuffled_batches,
    user_windows,
)
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.synthetic import SyntheticConfig, synthetic_log


@pytest.fixture(scope="module")
def log():
    return synthetic_log(SyntheticConfig(users=30, items=20, brands=4), seed=1)


def test_sequences_end_where_the_range_ends(log):
    end = int(log.time[len(log) // 2])
    fitted = log.count_before(end)
    sequences = fitted_sequences(log, FitRange(end, fitted))
    assert sum(map(len, sequences.values())) == fitted
    for user, items in sequences.items():
        events = [e for e in log.events_of(user) if log.time[e] < end]
        assert items.tolist() == log.item[events].tolist()


def test_a_range_of_another_log_is_refused(log):
    end = int(log.time[50])
    events = log.count_before(end)
    sentence = refused(fitted_sequences, log, FitRange(end, events + 1))
    assert_names(sentence, "fit range", f"time {end}", f"found {events}", f"expected {events + 1}")


def test_histories_are_right_aligned_and_cut_to_the_newest():
    windows = pad_histories([(1,), (), (1, 2, 3, 4)], 3)
    np.testing.assert_array_equal(windows, [[PAD, PAD, 1], [PAD] * 3, [2, 3, 4]])


def test_windows_of_a_hand_worked_log():
    windows = user_windows([np.array([9]), np.array([1, 2]), np.arange(10, 17)], 3)
    np.testing.assert_array_equal(windows, [[PAD, PAD, 1, 2], [13, 14, 15, 16], [10, 11, 12, 13]])


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 5))
def test_every_event_but_the_first_is_a_target_once(lengths, length):
    starts = np.cumsum([0, *lengths])
    sequences = [np.arange(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    windows = user_windows(sequences, length)
    targets = windows[:, 1:][(windows[:, 1:] != PAD) & (windows[:, :-1] != PAD)]
    expected = [event for sequence in sequences for event in sequence[1:]]
    assert sorted(targets.tolist()) == sorted(expected)


def test_batches_have_every_window_once_and_another_order_each_time():
    windows = np.arange(14).reshape(7, 2)
    rng = np.random.default_rng(0)
    first, second = (shuffled_batches(windows, 3, rng) for _ in range(2))
    assert first.shape == (3, 3, 2)
    assert sorted(first[first != PAD].tolist()) == list(range(14))
    assert (first != second).any()


def test_codes_outside_of_the_catalog_are_refused():
    check_codes(np.array([[PAD, 0], [2, 1]]), items=3)
    for code in (3, -2, 2**40):
        assert_names(refused(check_codes, np.array([0, code]), 3), "item codes", code, "0 to 2")
