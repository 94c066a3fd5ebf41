"""Samples, splits and fit ranges: time order, nothing lost, no served instant ever fitted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.interactions import make_items, make_log
from agenticrec_jax.data.samples import load_sample
from agenticrec_jax.data.splits import (
    FitRange,
    chronological_splits,
    leave_one_out,
    prediction_samples,
)
from agenticrec_jax.errors import InputError
from agenticrec_jax.testing.errors import assert_names, refused

ITEMS = make_items([f"i{n}" for n in range(30)], [f"Item {n}" for n in range(30)])


def _log(rows):
    """A log of (user, item, time) rows."""
    user, item, time = zip(*rows, strict=True)
    return make_log([f"u{n}" for n in user], item, np.array(time), items=ITEMS)


def test_samples_by_hand():
    log = _log([(0, 1, 5), (1, 2, 5), (0, 3, 5), (0, 4, 2), (1, 5, 9)])
    # Log order: (0,4,2) (0,1,5) (1,2,5) (0,3,5) (1,5,9).
    samples = prediction_samples(log, max_history=1)
    assert [(s.user, s.position, s.time, s.target, s.history, s.earlier) for s in samples] == [
        (0, 1, 5, 1, (4,), 1),
        (0, 3, 5, 3, (1,), 1),
        (1, 4, 9, 5, (2,), 4),
    ]


events = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 29), st.integers(0, 8)), min_size=1, max_size=80
)


@settings(max_examples=60, deadline=None)
@given(events)
def test_samples_agree_with_a_slow_reading_of_the_definition(rows):
    log = _log(rows)
    expected = []
    for position in range(len(log)):
        before = [p for p in range(position) if log.user[p] == log.user[position]]
        if before:
            history = tuple(int(log.item[p]) for p in before)[-10:]
            earlier = sum(int(t) < log.time[position] for t in log.time)
            expected.append((position, history, earlier))
    assert [(s.position, s.history, s.earlier) for s in prediction_samples(log)] == expected


@settings(max_examples=60, deadline=None)
@given(events, st.sampled_from([chronological_splits, leave_one_out]))
def test_fit_ranges_end_before_whatever_they_serve(rows, split):
    log = _log(rows)
    samples = prediction_samples(log)
    try:
        splits = split(samples)
    except InputError:
        return
    all_splits = (splits.fit, splits.policy, splits.valid, splits.test)
    assert sorted(s.position for one in all_splits for s in one) == [s.position for s in samples]
    for name, served in (
        ("fit_range_a", splits.policy),
        ("fit_range_b", splits.valid + splits.test),
    ):
        first = min(s.time for s in served)
        if not (log.time < first).any():
            with pytest.raises(InputError, match=f"time {first}"):
                getattr(splits, name)
            continue
        fit_range = getattr(splits, name)
        fitted = log.before(fit_range.end_time)
        assert len(fitted) == fit_range.events
        assert all(log.time[position] < s.time for position in fitted for s in served)
        for sample in served:
            fit_range.check(sample.time, "served")


def test_chronological_sizes_of_the_office_sample():
    log = load_sample("office")
    splits = chronological_splits(prediction_samples(log))
    sizes = [len(one) for one in (splits.fit, splits.policy, splits.valid, splits.test)]
    assert sizes == [11557, 2890, 1806, 1806]
    assert splits.train == splits.fit + splits.policy
    positions = [s.position for s in splits.train + splits.valid + splits.test]
    assert positions == sorted(positions)
    assert splits.fit_range_a.end_time == splits.policy[0].time
    assert splits.fit_range_b.end_time == splits.valid[0].time
    # The boundary instant is shared by several events; none of them may be fitted.
    assert log.time[splits.fit_range_b.events - 1] < splits.fit_range_b.end_time
    assert log.time[splits.fit_range_b.events] == splits.fit_range_b.end_time
    assert splits.fit_range_b.events < splits.valid[0].position


def test_shares_are_honored():
    log = _log([(0, n % 30, n) for n in range(101)])
    splits = chronological_splits(prediction_samples(log), (0.5, 0.2, 0.3), policy_share=0.4)
    sizes = [len(one) for one in (splits.fit, splits.policy, splits.valid, splits.test)]
    assert sizes == [30, 20, 20, 30]


def test_leave_one_out_takes_the_last_of_every_user():
    log = _log([(n % 3, n, n) for n in range(18)] + [(3, 1, 20), (3, 2, 21)])
    splits = leave_one_out(prediction_samples(log))
    assert [(s.user, s.target) for s in splits.test] == [(0, 15), (1, 16), (2, 17), (3, 2)]
    assert [(s.user, s.target) for s in splits.valid] == [(0, 12), (1, 13), (2, 14)]
    assert len(splits.train) == 9 and len(splits.policy) == 2


def test_a_sample_inside_the_range_is_refused():
    fit_range = FitRange(end_time=100, events=7)
    fit_range.check(100, "SASRec")
    assert_names(refused(fit_range.check, 99, "SASRec"), "SASRec", "time 99", "time 100")


@pytest.mark.parametrize(
    "ratios,share", [((0.8, 0.1, 0.2), 0.2), ((1.0, 0.1, -0.1), 0.2), ((0.8, 0.1, 0.1), 1.0)]
)
def test_bad_shares_are_refused(ratios, share):
    log = _log([(0, n % 30, n) for n in range(101)])
    sentence = refused(chronological_splits, prediction_samples(log), ratios, share)
    assert_names(sentence, "split ratios", ratios, share)


def test_too_few_samples_are_refused():
    samples = prediction_samples(_log([(0, 1, 1), (0, 2, 2)]))
    assert_names(refused(chronological_splits, samples), "splits", "1 samples", "'fit'")
