import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.data.formats.files import TableFile
from agenticrec_jax.ingest.events import Events, IdCodes, ItemMentions, count_events
from agenticrec_jax.ingest.filters import (
    FilterLog,
    ItemRowCounts,
    first_of_pairs,
    k_core,
    not_duplicated,
    user_sample,
    window,
)
from agenticrec_jax.ingest.row_errors import RowErrors
from agenticrec_jax.testing.errors import assert_names, refused


def log(user, item, time=None, rating=None):
    """Events in the given order; ids are the codes' own numbers."""
    size = len(user)
    user_ids, item_ids = IdCodes(), IdCodes()
    return Events(
        user=user_ids.encode(pl.Series([f"u{n}" for n in user])),
        item=item_ids.encode(pl.Series([f"i{n}" for n in item])),
        time=np.asarray(np.arange(size) if time is None else time, np.float64),
        rating=np.asarray(np.ones(size) if rating is None else rating, np.float32),
        row_number=np.arange(1, size + 1),
        user_ids=user_ids,
        item_ids=item_ids,
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
    mask, rounds = k_core(events, k)
    wanted, wanted_rounds = core_by_rounds(pairs, k)
    assert [pair for pair, is_kept in zip(pairs, mask, strict=True) if is_kept] == wanted
    assert rounds == wanted_rounds


def test_a_chain_takes_a_round_a_link():
    """The lone item of user 0 takes user 0 with it, who takes the next item, and so on."""
    user, item = [0, 0, 1, 1, 2, 2, 8, 8, 9, 9], [0, 1, 1, 2, 2, 3, 8, 9, 8, 9]
    mask, rounds = k_core(log(user, item), 2)
    assert mask.tolist() == [False] * 6 + [True] * 4
    assert rounds == 4


@given(
    st.lists(
        st.tuples(*(st.integers(0, 2) for _ in range(3)), st.sampled_from([1.0, 2.0, np.nan])),
        min_size=1,
    )
)
def test_duplicates_are_the_later_equal_rows(rows):
    mask = not_duplicated(log(*zip(*rows, strict=True)))
    seen, wanted = set(), []
    for row in rows:
        wanted.append(str(row) not in seen)
        seen.add(str(row))
    assert mask.tolist() == wanted


def test_of_a_repeated_pair_the_first_is_kept():
    events = log([0, 1, 0, 0, 1], [5, 5, 6, 5, 5])
    assert first_of_pairs(events).tolist() == [True, True, True, False, False]
    assert count_events(events) == (5, 2, 2, 3)


def test_a_window_has_its_start_and_not_its_end():
    def unix(*date):
        return datetime.datetime(*date, tzinfo=datetime.UTC).timestamp()

    times = [unix(2022, 10, 1) - 1, unix(2022, 10, 1), unix(2023, 2, 15) - 1, unix(2023, 2, 15)]
    events = log([0] * 4, range(4), times)
    assert window("2022-10", "2023-02-15")(events).tolist() == [False, True, True, False]
    assert window("", "2022-10")(events).tolist() == [True, False, False, False]
    assert_names(refused(window, "2022-13", ""), "window", "'2022-13'", "month or day")


def test_a_filter_log_has_what_each_filter_left_and_refuses_an_empty_log():
    filters = FilterLog(log([0, 0, 1], [5, 6, 5]), "good rows")
    filters.keep("first user", lambda events: events.user == 0)
    filters.core("1-core", 1)
    assert [step.record() for step in filters.steps] == [
        {"name": "good rows", "events": 3, "users": 2, "items": 2, "pairs": 3},
        {"name": "first user", "events": 2, "users": 1, "items": 2, "pairs": 2},
        {"name": "1-core", "events": 2, "users": 1, "items": 2, "pairs": 2, "rounds": 1},
    ]
    assert_names(refused(filters.core, "9-core", 9), "'9-core'", "nothing left of 2 events")


def test_every_row_of_a_table_of_items_is_bad_dropped_or_kept():
    errors = RowErrors()
    errors.add(TableFile(Path("i.csv"), "csv"), "an item without an id", [3], lambda i: None)
    items = ItemRowCounts(9, errors, ItemMentions(np.array([2, 0, 1]), np.array([1, 0, 2])))
    items.drop("without a price", 2)
    items.drop("without a title", 0)
    items.drop_unused(np.array([1, 2, 7], np.uint32))  # of which no row names the first and last
    items.drop_unused(np.array([0], np.uint32))
    assert items.record() == {
        "read": 9,
        "bad": 1,
        "dropped": {
            "without a price": 2,
            "never interacted with": 2,
            "left without an event by the filters": 2,
        },
        "kept": 2,
        "bad_rows": errors.records(),
    }


def drawn_events():
    """1,500 users of 2 to 39 events; a tenth of them like ten items, the others any of 3,000."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 40, 1500)
    user = rng.permutation(np.repeat(np.arange(1500), sizes))
    item = np.where(
        user % 10 == 0, rng.integers(0, 10, len(user)), rng.integers(0, 3000, len(user))
    )
    columns = {
        "user": user.astype(np.uint32),
        "item": item.astype(np.uint32),
        "time": np.arange(len(user), dtype=np.float64),
        "rating": np.ones(len(user), np.float32),
        "row_number": np.arange(1, len(user) + 1),
    }
    return Events(**columns, user_ids=IdCodes(), item_ids=IdCodes())


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_draw_has_a_user_sample_and_the_newest_events_of_each(kind):
    events = drawn_events()
    how = {"users": 100, "last_events": 15}
    mask = user_sample(events, kind, **how, seed=3)
    chosen = np.unique(events.user[mask])
    assert len(chosen) == 100
    for user in chosen:
        user_events = np.flatnonzero(events.user == user)
        assert len(user_events) >= 8
        assert np.flatnonzero(mask & (events.user == user)).tolist() == user_events[-15:].tolist()
    assert (user_sample(events, kind, **how, seed=3) == mask).all()
    assert (user_sample(events, kind, **how, seed=4) != mask).any()


def test_a_dense_draw_takes_those_whose_items_others_have():
    events = drawn_events()
    shares = {}
    for kind in ("sparse", "dense"):
        mask = user_sample(events, kind, users=100, last_events=15, seed=3)
        shares[kind] = np.mean(np.unique(events.user[mask]) % 10 == 0)
    assert shares["sparse"] < 0.25 and shares["dense"] > 0.7


def test_too_few_users_and_another_kind_are_refused():
    events = drawn_events()
    eligible = np.count_nonzero(np.bincount(events.user) >= 8)
    how = {"last_events": 15, "seed": 0}
    sentence = refused(user_sample, events, "sparse", users=1490, **how)
    assert_names(sentence, "sampling", f"{eligible} users of at least 8 events", "expected 1490")
    sentence = refused(user_sample, events, "thin", users=10, **how)
    assert_names(sentence, "sampling", "'thin'", "sparse or dense")
