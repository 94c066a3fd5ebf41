"""A row's record: what a reply adds, and when it ends the row."""

import numpy as np
import pytest

from agenticrec_jax.generation.requests import Reply, Row

PAUSE = 9


def paused_row():
    row = Row(request=0, member=0, shard=0, slot=3, length=5)
    row.sampled([4, PAUSE], [-0.5, -0.25])
    return row


def test_an_answer_is_recorded_and_waits_to_be_spliced_after_the_pausing_token():
    row = paused_row()
    row.answered(Reply((7, 8)), max_tokens=10)
    assert row.finish is None and row.pending == [PAUSE, 7, 8]
    row.sampled([1], [-1.0])
    rollout = row.rollout()
    assert rollout.ids.tolist() == [4, PAUSE, 7, 8, 1] and rollout.ids.dtype == np.int32
    assert rollout.origin.tolist() == [1, 1, 2, 2, 1] and rollout.origin.dtype == np.uint8
    assert rollout.logprobs.tolist() == [-0.5, -0.25, 0, 0, -1]


@pytest.mark.parametrize(
    "reply, room, finish, length",
    [
        (Reply((7, 8, 6)), 4, "budget", 2),  # does not fit: not there
        (Reply((7, 8)), 4, "budget", 4),  # fits, and leaves no room for a token
        (Reply((), "too_many_calls"), 10, "too_many_calls", 2),
        (Reply((7,), "done"), 10, "done", 3),
        (Reply(()), 10, None, 2),
    ],
)
def test_how_an_answer_ends_a_row(reply, room, finish, length):
    row = paused_row()
    row.answered(reply, room)
    assert (row.finish, len(row.ids)) == (finish, length)
    assert len(row.logprobs) == len(row.origin) == length
