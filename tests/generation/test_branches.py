"""Rows that branch at a pause, against plain forward passes and an engine without branches."""

import collections
import dataclasses

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.generation.paged_slots import make_slots
from agenticrec_jax.generation.requests import Budget, branch_number, reply_failure
from agenticrec_jax.generation.rows import PagedRows
from agenticrec_jax.parallel.mesh import make_mesh, shard_params
from agenticrec_jax.testing.agreement import differences, perturbed_logits, plain_logprobs
from agenticrec_jax.testing.models import calling_qwen3
from agenticrec_jax.types import JUNK, SAMPLED

PAUSE, STOP = 3, 5
TEMPERATURE, SEED = 0.9, 1
SIZES = EngineConfig(
    slots=48,
    prompt_buckets=(12, 24),
    splice_buckets=(6,),
    max_tokens=40,
    decode_steps=8,
    least_steps=8,
    row_buckets=(48,),
    window_buckets=(48, 96),
)
# Two prompts fill no whole number of pages, one does.
REQUESTS = [Request(tuple(range(7, 7 + n)), 2, (2, n)) for n in (9, 16, 19)]
LAYOUTS = {
    "columns": {},
    "columns, few slots": {"slots": 4, "row_buckets": (4,)},
    "pages": {"page_tokens": 16},
    "pages, few": {"page_tokens": 16, "pages": 12},
}


@pytest.fixture(scope="module")
def model():
    return calling_qwen3({PAUSE: 2.0, STOP: -1.0}, vocab_size=40)


def branching(request, member, ids):
    """Some rows branch, and some of their branches: a function of what was sampled alone."""
    observed = tuple((ids[0] + i) % 30 + 7 for i in range(len(ids) % 5))
    return Reply(observed, members=1 + (sum(ids) % 3 if len(ids) < 12 else 0))


def plain(request, member, ids):
    return dataclasses.replace(branching(request, member, ids), members=1)


def sampled(model, respond, mesh=None, **changes):
    graphdef, params = nnx.split(model)
    sizes = dataclasses.replace(SIZES, **changes)
    engine = Engine(graphdef, sizes, PAUSE, (STOP,), 0, mesh=mesh)
    params = params if mesh is None else shard_params(params, mesh)
    groups = engine.generate(params, REQUESTS, respond, temperature=TEMPERATURE, seed=SEED)
    return groups, engine.telemetry


def numbered(group):
    """Rollouts of a group by their numbers in the sampling keys, found by parent and position."""
    numbers = {}
    siblings = collections.Counter()
    for member, rollout in enumerate(group):
        if rollout.parent is None:
            numbers[member] = member
        else:
            place = (rollout.parent, rollout.shared)
            index = siblings[place]
            numbers[member] = branch_number(numbers[rollout.parent], rollout.shared, index)
            siblings[place] += 1
    assert len(set(numbers.values())) == len(group)
    return {numbers[member]: rollout for member, rollout in enumerate(group)}


@pytest.fixture(scope="module")
def reference(model):
    """Samples of an engine with columns and room for all rows."""
    return [numbered(group) for group in sampled(model, branching)[0]]


def check(model, groups):
    """Every id is what the noise of its row's number draws from a plain forward pass."""
    for request, group in zip(REQUESTS, groups, strict=True):
        for number, rollout in numbered(group).items():
            drawn = np.flatnonzero(rollout.origin == SAMPLED)
            scores = plain_logprobs(model, request, rollout.ids, TEMPERATURE)
            np.testing.assert_allclose(rollout.logprobs[drawn], scores[drawn], atol=1e-4)
            drawn = drawn[drawn >= rollout.shared]
            perturbed = perturbed_logits(
                model, request, number, rollout.ids, temperature=TEMPERATURE, seed=SEED
            )
            behind = perturbed.max(-1) - perturbed[np.arange(len(perturbed)), rollout.ids]
            assert behind[drawn].max(initial=0) < 1e-4
            if rollout.parent is not None:
                parent = group[rollout.parent]
                for name in ("ids", "logprobs", "origin"):
                    mine, theirs = (getattr(r, name)[: rollout.shared] for r in (rollout, parent))
                    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    "layout", [pytest.param(x, marks=[pytest.mark.slow] * (x == "pages")) for x in LAYOUTS]
)
def test_branches_are_those_of_any_layout_and_of_plain_forwards(model, reference, layout):
    groups, telemetry = sampled(model, branching, **LAYOUTS[layout])
    check(model, groups)
    branched = sum(rollout.parent is not None for group in groups for rollout in group)
    assert branched == telemetry["branched_rows"] > 6
    nested = [group[r.parent].parent for group in groups for r in group if r.parent is not None]
    assert any(parent is not None for parent in nested), "a branch has branched"
    for request, expected, group in zip(REQUESTS, reference, groups, strict=True):
        group = numbered(group)
        assert set(group) == set(expected)

        def perturbed(i, request=request, expected=expected):
            number = list(expected)[i]
            ids = expected[number].ids
            return perturbed_logits(model, request, number, ids, temperature=TEMPERATURE, seed=SEED)

        rollouts = [group[number] for number in expected]
        assert not differences(rollouts, list(expected.values()), perturbed)
    assert (telemetry["recomputed_tokens"] > 0) == ("few" in layout)
    assert (telemetry["preempted_rows"] > 0) == (layout == "pages, few")


@pytest.mark.slow
@pytest.mark.parametrize("page_tokens", [0, 16])
def test_branches_on_eight_devices_are_those_of_one(model, reference, page_tokens):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sizes = {"page_tokens": page_tokens, "row_buckets": (12,)}
    groups, telemetry = sampled(model, branching, mesh, **sizes)
    check(model, groups)
    assert telemetry["branched_rows"] > 6
    for expected, group in zip(reference, groups, strict=True):
        assert set(numbered(group)) == set(expected)


def test_members_of_a_request_are_those_of_an_engine_without_branches(model, reference):
    groups, telemetry = sampled(model, plain)
    assert telemetry["branched_rows"] == 0
    for request, expected, group in zip(REQUESTS, reference, groups, strict=True):
        members = [expected[number] for number in range(request.members)]
        assert not differences(group, members, lambda i: None)
        assert all(rollout.parent is None and rollout.shared == 0 for rollout in group)
        # Branches of the same row go other ways.
        ids = {tuple(rollout.ids) for rollout in expected.values()}
        assert len(ids) > 0.7 * len(expected)


@pytest.mark.slow
def test_without_the_copy_of_the_last_page_two_rows_write_to_one(model, monkeypatch):
    monkeypatch.setattr(PagedRows, "join", lambda self, state, inputs, window: state.cache)
    groups, _ = sampled(model, branching, page_tokens=16)
    with pytest.raises(AssertionError):
        check(model, groups)


def test_a_branch_shares_the_full_pages_and_has_a_copy_of_the_last():
    sizes = dataclasses.replace(SIZES, page_tokens=16)
    slots = make_slots(REQUESTS[2:], sizes, 1, Budget(40, 0, 1000))
    parent = slots.begin()[0][0]
    parent.add_sampled([PAUSE], [0.0])
    parent.length = 33
    slots.reserve([parent], lambda row: row.length)
    used = slots.used
    parent.add_reply(Reply((8, 9), members=3))
    first, second = slots.branches(parent, 2)
    assert [first.member, second.member] == [2, 3] and first.key_number != second.key_number
    assert slots.copy(first) and slots.copy(second)
    assert first.pages[:2] == parent.pages[:2] == second.pages[:2]
    lasts = [row.pages[2] for row in (parent, first, second)]
    assert len(set(lasts)) == 3 and slots.used == used + 2
    assert first.copy == (lasts[0], lasts[1]) and second.copy == (lasts[0], lasts[2])
    slots.release(parent)
    slots.release(first)
    assert slots.used == used, "the shared pages are still the second's"
    slots.release(second)
    assert slots.used == used - 2, "but for the first, which another member of the group has"


MALFORMED = [Reply(members=0), Reply(members=2, finish="end"), Reply(members="2")]


@pytest.mark.parametrize("reply", MALFORMED)
def test_other_numbers_of_members_are_malformed(reply):
    assert reply_failure(reply, 40, 10).reason == JUNK
    assert reply_failure(dataclasses.replace(reply, members=1), 40, 10) is None
