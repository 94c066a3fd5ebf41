"""Who sits where, without a device: shards, groups that begin in part, and padded dispatches."""

import numpy as np

from agenticrec_jax.generation.requests import Budget, Request
from agenticrec_jax.generation.slots import Slots


def make_slots(members, shards, room):
    requests = [Request((7, 8), count, (i,)) for i, count in enumerate(members)]
    return Slots(requests, shards, room, Budget(10, 0, 100))


def names(rows):
    return [row and (row.request, row.member, row.shard, row.slot) for row in rows]


def test_a_group_begins_where_most_is_free_and_its_members_stay_in_that_shard():
    slots = make_slots((2, 4, 1), shards=2, room=3)
    first, second, third = slots.begin()
    assert names(first) == [(0, 0, 0, 0), (0, 1, 0, 1)]
    assert names(second) == [(1, 0, 1, 0), (1, 1, 1, 1), (1, 2, 1, 2), (1, 3, 1, 3)]
    assert names(third) == [(2, 0, 0, 2)]
    assert [slots.seated(row) for row in second] == [True] * 3 + [False] and slots.pending
    slots.leave(first[0])
    assert slots.join() == [None, None] and slots.pending  # freed in the other shard
    slots.leave(second[1])
    assert names(slots.join()) == [None, (1, 3, 1, 1)] and not slots.pending


def test_the_prompt_of_a_group_stays_until_its_last_member_is_seated():
    """One slot, three members, then another group: each takes it over from the one before."""
    slots = make_slots((3, 2), shards=1, room=1)
    [group] = slots.begin()
    for member in group[1:]:
        slots.leave(slots.rows[0, member.member - 1])
        assert slots.join() == [member] and slots.source(member) == 0 == member.slot
        assert slots.begin() == [], "the next group waits"
    slots.leave(group[-1])
    assert slots.join() == [None]
    [[first, second]] = slots.begin()
    assert (first.request, first.slot, slots.seated(second)) == (1, 0, False)


def test_a_dispatch_lists_slots_shard_by_shard_and_pads_with_none():
    slots = make_slots((1, 1, 1), shards=2, room=4)
    rows = sum(slots.begin(), [])
    placed, listed = slots.place(rows[::-1], (1, 3, 4))
    np.testing.assert_array_equal(listed, [1, 0, 4, 0, 4, 4])
    assert [(row.request, i) for row, i in placed] == [(2, 0), (0, 1), (1, 3)]
