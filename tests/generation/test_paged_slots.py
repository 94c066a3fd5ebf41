"""Pages of rows on the host, without a device: what is shared, copied, given back and taken."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agenticrec_jax.generation.paged_slots import NO_PAGE, PagedSlots
from agenticrec_jax.generation.requests import Budget, Request
from tests.generation.test_slots import names

PAGE = 4
NO_LIMIT = Budget(60, 0, 100)
Inputs = collections.namedtuple("Inputs", "ids rows pages")


def make_slots(members, prompts, pages, shards=1, per_shard=8, growth=1):
    requests = [
        Request(tuple(range(length)), count, (i,))
        for i, (count, length) in enumerate(zip(members, prompts, strict=True))
    ]
    return PagedSlots(
        requests, shards, per_shard, NO_LIMIT, pages=pages, page_tokens=PAGE, growth=growth
    )


def by_tokens(row):
    return row.prompt + len(row.ids)


def copies_of(slots, readmitted):
    """The pages that a prefill of prompts alone copies to."""
    inputs = Inputs(np.zeros((len(readmitted), 12)), np.zeros((len(readmitted), 1)), None)
    return slots.with_pages(inputs, [[row] for row in readmitted]).pages.copies


def test_members_share_full_pages_and_differ_from_the_first_that_is_not():
    slots = make_slots((3, 2), (6, 8), pages=20)
    first, second = slots.begin()
    assert names(first)[2] == (0, 2, 0, 2) and slots.used == (1 + 3) + 2
    full, last = zip(*(row.pages for row in first), strict=True)
    assert len(set(full)) == 1 and len(set(last)) == 3
    assert [row.copy for row in first] == [(last[2], last[0]), (last[2], last[1]), None]
    assert second[0].pages == second[1].pages and second[0].copy is None  # no page is half full
    slots.release(first[2])
    assert slots.used == 1 + 2 + 2 and not set(last[:2]) & {last[2]}
    for row in (*first[:2], *second):
        slots.release(row)
    assert slots.used == 0


def test_the_prompt_is_held_until_its_last_member_has_a_slot():
    slots = make_slots((3,), (6,), pages=9, per_shard=1)
    [group] = slots.begin()
    prompt = 2
    assert slots.used == prompt + 1 and group[0].copy[0] != group[0].pages[1]
    slots.release(group[0])
    assert slots.used == prompt and slots.admit_recomputed() == [] and slots.join() == [group[1]]
    source = group[1].copy[0]
    slots.release(group[1])
    assert slots.join() == [group[2]] and group[2].copy is None
    assert group[2].pages[1] == source and slots.used == prompt


def test_rows_begin_while_pages_are_free_and_a_dispatch_of_all_has_room():
    slots = make_slots((1, 1, 1, 1), (4, 4, 4, 4), pages=6, growth=1)
    begun = slots.begin()
    # A row has one page. A third would leave 3 pages for one more each, and they may need 4.
    assert [group[0].request for group in begun] == [0, 1] and slots.pending
    slots.release(begun[0][0])
    assert [group[0].request for group in slots.begin()] == [2]


def test_the_youngest_gives_its_pages_back_and_the_oldest_never():
    slots = make_slots((1, 1, 1), (4, 4, 4), pages=12)
    rows = [group[0] for group in slots.begin()]
    reserved, given = slots.reserve(rows, lambda row: 16)
    assert reserved == rows and given == [] and slots.used == 12
    reserved, given = slots.reserve(rows[:2], lambda row: 28)
    # The third makes room for the first; then the second is the youngest itself.
    assert reserved == rows[:1] and given == [(rows[2], 2), (rows[1], 1)]
    assert slots.used == 7 and not rows[1].pages and rows[1].recompute and not rows[0].recompute
    slots.rejoin(rows[2])
    slots.rejoin(rows[1])
    assert slots.admit_recomputed() == [rows[1]] and slots.join() == [rows[1]]  # the older first


def test_a_prompt_that_another_member_has_is_shared_again_and_not_computed():
    slots = make_slots((2,), (6,), pages=8)
    [[first, second]] = slots.begin()
    first.ids, second.ids = [7] * 3, [7] * 3
    reserved, [(given, _)] = slots.reserve([first], lambda row: 32)
    assert (reserved, given) == ([first], second)
    slots.trim([first])
    slots.rejoin(second)
    assert slots.admit_recomputed() == [] and slots.join() == [second]
    assert second.pages[0] == first.pages[0] and second.copy == (first.pages[1], second.pages[1])
    assert len(second.pages) == 3  # of 9 tokens, to be spliced behind the prompt


def test_a_dispatch_lists_the_pages_of_prompts_copies_and_rows():
    slots = make_slots((2,), (6,), pages=8)
    [[first, second]] = slots.begin()
    table = slots.table([(second, 1)], 3, 16)
    assert table.shape == (3, 4) and table[1].tolist() == [*second.pages, 0, 0]
    assert (table[[0, 2]] == 0).all()

    inputs = Inputs(np.zeros((2, 12)), np.zeros((2, 4)), None)
    pages = slots.with_pages(inputs, [[first, second], []]).pages
    assert pages.table.tolist() == [[*second.pages, NO_PAGE], [NO_PAGE] * 3]
    assert pages.last[0] == second.pages[1]
    assert pages.copies.tolist() == [[first.pages[1]] + [NO_PAGE] * 3, [NO_PAGE] * 4]


def test_a_prompt_that_is_computed_again_is_copied_to_no_page():
    """The page that its row once copied to belongs to another row by now."""
    slots = make_slots((1, 2), (4, 6), pages=12)
    [[oldest], [first, second]] = slots.begin()
    given_back = first.copy[1]
    _, given = slots.reserve([oldest], lambda row: 44)
    for row, _ in given:
        slots.rejoin(row)
    assert [row for row, _ in given] == [second, first] and given_back in oldest.pages
    oldest.length = 24
    slots.trim([oldest])
    assert slots.admit_recomputed() == [first] and given_back in oldest.pages
    assert copies_of(slots, [first]).tolist() == [[NO_PAGE]]


@pytest.mark.parametrize("shards", [1, 2])
@given(st.data())
def test_every_row_ends_and_pages_are_shared_in_prompts_alone(shards, data):
    """Rows of any lengths, in any order of growth, in pools that hold little more than one."""
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    members = draw.integers(1, 5, draw.integers(1, 6))
    prompts = draw.integers(1, 13, len(members))
    slots = make_slots(members, prompts, pages=int(draw.integers(9, 20)), shards=shards)
    target = {(i, m): int(draw.integers(1, 20)) for i, n in enumerate(members) for m in range(n)}
    live = []
    for _ in range(3000):
        assert (copies_of(slots, slots.admit_recomputed()) == NO_PAGE).all(), (
            "a page has two writers"
        )
        began = [row for row in slots.join() if row]
        if not began and not any(slots._joining):  # otherwise those that wait come first
            began = [row for group in slots.begin() for row in group if slots.has_slot(row)]
        live += began
        for row in began:
            row.recompute = False
            row.length = by_tokens(row)
        if not live and not slots.pending:
            break
        assert live, "rows wait and none is in a slot"
        chosen = [row for row in live if draw.random() < 0.7]
        reserved, given = slots.reserve(chosen, lambda row: by_tokens(row) + 3)
        for row, _ in given:
            slots.rejoin(row)
        live = [row for row in live if slots.has_slot(row)]
        assert set(reserved) <= set(live) and not {row for row, _ in given} & set(live)
        for row in reserved:
            row.ids += [0] * int(draw.integers(0, 4))
            row.length = by_tokens(row)
        slots.trim(reserved)
        users = collections.Counter((row.shard, page) for row in live for page in row.pages)
        for row in live:
            assert len(row.pages) * PAGE >= row.length
            unshared = row.pages[row.prompt // PAGE :]
            assert all(users[row.shard, page] == 1 for page in unshared), "a page has two writers"
        for row in [row for row in live if len(row.ids) >= target[row.request, row.member]]:
            slots.release(row)
            live.remove(row)
    assert not live and not slots.pending and slots.used == 0
    assert len(slots.rows) == members.sum()
