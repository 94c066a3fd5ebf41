"""The record of a row: ids that a reply adds, and replies that end the row."""

import numpy as np
import pytest

from agenticrec_jax.generation.requests import Budget, Reply, Row, reply_failure
from agenticrec_jax.testing.errors import assert_names

PAUSE = 9


def paused_row(completion=10, turn=0, context=100):
    budget = Budget(completion, turn, context)
    row = Row(request=0, member=0, shard=0, slot=3, prompt=5, budget=budget)
    row.add_sampled([4, PAUSE], [-0.5, -0.25])
    return row


def test_an_answer_is_recorded_and_waits_to_be_spliced_after_the_pausing_token():
    row = paused_row()
    row.add_reply(Reply((7, 8)))
    assert row.finish is None and row.pending == [PAUSE, 7, 8]
    row.add_sampled([1], [-1.0])
    rollout = row.rollout()
    assert rollout.ids.tolist() == [4, PAUSE, 7, 8, 1] and rollout.ids.dtype == np.int32
    assert rollout.origin.tolist() == [1, 1, 2, 2, 1] and rollout.origin.dtype == np.uint8
    assert rollout.logprobs.tolist() == [-0.5, -0.25, 0, 0, -1]


@pytest.mark.parametrize(
    "reply, room, finish, length",
    [
        (Reply((7, 8, 6)), 4, "token_budget", 2),  # does not fit: not there
        (Reply((7, 8)), 4, "token_budget", 4),  # fits, and leaves no room for a token
        (Reply((), "too_many_calls"), 10, "too_many_calls", 2),
        (Reply((7,), "done"), 10, "done", 3),
        (Reply(()), 10, None, 2),
    ],
)
@pytest.mark.parametrize("bound", ["completion", "context"])
def test_how_an_answer_ends_a_row(reply, room, finish, length, bound):
    in_context = bound == "context"
    row = paused_row(context=5 + room) if in_context else paused_row(room)
    row.add_reply(reply)
    named = "context_limit" if in_context and finish == "token_budget" else finish
    assert (row.finish, len(row.ids)) == (named, length)
    assert len(row.logprobs) == len(row.origin) == length


@pytest.mark.parametrize("room, accepted", [(4, [[4, PAUSE, 7, 8]]), (3, [])])
def test_a_reply_that_does_not_fit_is_not_accepted(room, accepted):
    row = paused_row(room)
    seen = []
    row.add_reply(Reply((7, 8), on_accept=lambda: seen.append(list(row.ids))))
    assert seen == accepted and row.finish == "token_budget"


@pytest.mark.parametrize(
    "completion, turn, context, first, second",
    [
        (10, 0, 100, (15, "token_budget"), (15, "token_budget")),
        (10, 4, 100, (9, "turn_budget"), (13, "turn_budget")),
        (10, 7, 100, (12, "turn_budget"), (15, "token_budget")),
        (10, 6, 14, (11, "turn_budget"), (14, "context_limit")),
        (10, 0, 15, (15, "context_limit"), (15, "context_limit")),  # of equals the harder one
        (10, 10, 100, (15, "token_budget"), (15, "token_budget")),
    ],
)
def test_a_turn_ends_at_the_smallest_of_its_bounds(completion, turn, context, first, second):
    """A prompt of 5, a turn of 2 and an observation of 2: the second turn begins after 9."""
    row = paused_row(completion, turn, context)
    assert (row.limit, row.limit_reason) == first
    row.add_reply(Reply((7, 8)))
    assert (row.limit, row.limit_reason) == second


@pytest.mark.parametrize(
    "reply, named",
    [
        (None, ["NoneType", "Reply"]),
        ((1, 2), ["tuple", "Reply"]),
        (Reply((1, 40)), ["id 40", "0 to 39"]),
        (Reply((-1,)), ["id -1", "0 to 39"]),
        (Reply((1.0,)), ["id", "float"]),
        (Reply(("1",)), ["id", "str"]),
        (Reply("12"), ["ids"]),
        (Reply((), 3), ["finish"]),
        (Reply((1,) * 11), ["11 ids", 10]),
        (Reply((1,), on_accept=3), ["on_accept", "int"]),
    ],
)
def test_a_malformed_reply_is_junk(reply, named):
    failure = reply_failure(reply, vocabulary=40, longest=10)
    assert failure.reason == "junk"
    assert_names(failure.detail, *named)


def test_a_reply_of_numpys_integers_is_one():
    assert reply_failure(Reply(tuple(np.arange(5))), 40, 10) is None
    assert reply_failure(Reply(), 40, 10) is None
    assert reply_failure(Reply((1,) * 11), 40, None) is None


def test_an_opening_takes_the_place_of_the_sampled_id_and_waits_to_be_spliced():
    row = Row(0, 0, shard=0, slot=3, prompt=5, budget=Budget(10, 6, 100), opening=(7, 8, 9))
    row.add_sampled([4], [-0.5])
    row.open()
    assert (row.ids, row.pending, row.opening) == ([7, 8, 9], [7, 8, 9], ())
    assert row.finish is None and (row.limit, row.limit_reason) == (5 + 3 + 6, "turn_budget")
    row.add_sampled([1], [-1.0])
    rollout = row.rollout()
    assert rollout.origin.tolist() == [2, 2, 2, 1] and rollout.logprobs.tolist() == [0, 0, 0, -1]


def test_an_opening_that_leaves_no_room_ends_the_row():
    row = Row(0, 0, shard=0, slot=3, prompt=5, budget=Budget(10, 0, 8), opening=(7, 8, 9))
    row.add_sampled([4], [-0.5])
    row.open()
    assert row.finish == "context_limit"
