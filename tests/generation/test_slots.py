"""Assignment of rows to slots, without a device: shards, large groups and padded dispatches."""

import numpy as np

from agenticrec_jax.generation.requests import Budget, Request
from agenticrec_jax.generation.slots import Slots


def make_slots(members, shards, per_shard):
    requests = [Request((7, 8), count, (i,)) for i, count in enumerate(members)]
    return Slots(requests, shards, per_shard, Budget(10, 0, 100))


def names(rows):
    return [row and (row.request, row.member, row.shard, row.slot) for row in rows]


def test_a_group_begins_where_most_is_free_and_its_members_stay_in_that_shard():
    slots = make_slots((2, 4, 1), shards=2, per_shard=3)
    first, second, third = slots.begin()
    assert names(first) == [(0, 0, 0, 0), (0, 1, 0, 1)]
    assert names(second) == [(1, 0, 1, 0), (1, 1, 1, 1), (1, 2, 1, 2), (1, 3, 1, 3)]
    assert names(third) == [(2, 0, 0, 2)]
    assert [slots.has_slot(row) for row in second] == [True] * 3 + [False] and slots.pending
    slots.release(first[0])
    assert slots.join() == [None, None] and slots.pending  # freed in the other shard
    slots.release(second[1])
    assert names(slots.join()) == [None, (1, 3, 1, 1)] and not slots.pending


def test_the_prompt_of_a_group_stays_until_its_last_member_has_a_slot():
    """One slot, three members, then another group: each takes it over from the one before."""
    slots = make_slots((3, 2), shards=1, per_shard=1)
    [group] = slots.begin()
    for member in group[1:]:
        slots.release(slots.rows[0, member.member - 1])
        assert slots.join() == [member] and slots.source(member) == 0 == member.slot
        assert slots.begin() == [], "the next group waits"
    slots.release(group[-1])
    assert slots.join() == [None]
    [[first, second]] = slots.begin()
    assert (first.request, first.slot, slots.has_slot(second)) == (1, 0, False)


def test_a_dispatch_lists_slots_shard_by_shard_and_pads_with_none():
    slots = make_slots((1, 1, 1), shards=2, per_shard=4)
    rows = sum(slots.begin(), [])
    indexed, listed = slots.list_rows(rows[::-1], (1, 3, 4))
    np.testing.assert_array_equal(listed, [1, 0, 4, 0, 4, 4])
    assert [(row.request, i) for row, i in indexed] == [(2, 0), (0, 1), (1, 3)]
