import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.data.events import Codes, Events, counts
from agenticrec_jax.data.filters import Trail, first_of_pairs, k_core, not_duplicated, window
from agenticrec_jax.errors import InputError


def log(user, item, time=None, rating=None):
    """Events in the given order; ids are the codes' own numbers."""
    size = len(user)
    users, catalogue = Codes(), Codes()
    return Events(
        user=users.of(pl.Series([f"u{n}" for n in user])),
        item=catalogue.of(pl.Series([f"i{n}" for n in item])),
        time=np.asarray(np.arange(size) if time is None else time, np.float64),
        rating=np.asarray(np.ones(size) if rating is None else rating, np.float32),
        place=np.arange(1, size + 1),
        users=users,
        catalogue=catalogue,
    )


def core_by_rounds(pairs, k):
    """Drops all small users and items at once until none is left to drop."""
    rounds = 0
    while True:
        rounds += 1
        users, items = [u for u, _ in pairs], [i for _, i in pairs]
        left = [(u, i) for u, i in pairs if users.count(u) >= k and items.count(i) >= k]
        if left == pairs:
            return left, rounds
        pairs = left


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1), st.integers(1, 4))
def test_a_k_core_is_the_fixpoint(pairs, k):
    events = log([u for u, _ in pairs], [i for _, i in pairs])
    kept, rounds = k_core(events, k)
    wanted, wanted_rounds = core_by_rounds(pairs, k)
    assert [pair for pair, is_kept in zip(pairs, kept, strict=True) if is_kept] == wanted
    assert rounds == wanted_rounds


def test_a_chain_takes_a_round_a_link():
    """The lone item of user 0 takes user 0 with it, who takes the next item, and so on."""
    user, item = [0, 0, 1, 1, 2, 2, 8, 8, 9, 9], [0, 1, 1, 2, 2, 3, 8, 9, 8, 9]
    kept, rounds = k_core(log(user, item), 2)
    assert kept.tolist() == [False] * 6 + [True] * 4
    assert rounds == 4


@given(
    st.lists(
        st.tuples(*(st.integers(0, 2) for _ in range(3)), st.sampled_from([1.0, 2.0, np.nan])),
        min_size=1,
    )
)
def test_duplicates_are_the_later_equal_rows(rows):
    kept = not_duplicated(log(*zip(*rows, strict=True)))
    seen, wanted = set(), []
    for row in rows:
        wanted.append(str(row) not in seen)
        seen.add(str(row))
    assert kept.tolist() == wanted


def test_of_a_repeated_pair_the_first_is_kept():
    events = log([0, 1, 0, 0, 1], [5, 5, 6, 5, 5])
    assert first_of_pairs(events).tolist() == [True, True, True, False, False]
    assert counts(events) == (5, 2, 2, 3)


def test_a_window_has_its_start_and_not_its_end():
    def unix(*date):
        return datetime.datetime(*date, tzinfo=datetime.UTC).timestamp()

    times = [unix(2022, 10, 1) - 1, unix(2022, 10, 1), unix(2023, 2, 15) - 1, unix(2023, 2, 15)]
    events = log([0] * 4, range(4), times)
    assert window("2022-10", "2023-02-15")(events).tolist() == [False, True, True, False]
    assert window("", "2022-10")(events).tolist() == [True, False, False, False]
    with pytest.raises(InputError, match="found '2022-13', expected a month or day"):
        window("2022-13", "")


def test_a_trail_has_what_each_filter_left_and_refuses_an_empty_log():
    trail = Trail(log([0, 0, 1], [5, 6, 5]), "good rows")
    trail.keep("first user", lambda events: events.user == 0)
    trail.core("1-core", 1)
    assert [step.record() for step in trail.steps] == [
        {"name": "good rows", "events": 3, "users": 2, "items": 2, "pairs": 3},
        {"name": "first user", "events": 2, "users": 1, "items": 2, "pairs": 2},
        {"name": "1-core", "events": 2, "users": 1, "items": 2, "pairs": 2, "rounds": 1},
    ]
    with pytest.raises(InputError, match="filter '9-core': found nothing left of 2 events"):
        trail.core("9-core", 9)
