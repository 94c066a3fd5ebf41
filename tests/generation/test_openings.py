"""Rollouts whose first ids are given: against plain forwards, refilled, and beside free ones."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.testing.agreement import plain_logprobs
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import calling_qwen3
from agenticrec_jax.types import OBSERVATION, SAMPLED

V = 40
PAUSE = 3
STOP = 5
SIZES = {
    "slots": 16,
    "prompt_buckets": (20,),
    "splice_buckets": (7,),
    "max_tokens": 48,
    "row_buckets": (16,),
    "window_buckets": (128,),
}
# Longer than a splice bucket, with a pause and a stop in it; none; one id; and none.
OPENINGS = ((9, PAUSE, STOP, 11, 12, 13, 14, 15, 16), (), (21,), ())


@pytest.fixture(scope="module")
def policy():
    """A random policy that calls at one token in ten and stops at one in forty."""
    return nnx.split(calling_qwen3({PAUSE: 1.2, STOP: 0.0}, vocab_size=V))


def make_engine(policy, **changes):
    return Engine(policy[0], EngineConfig(**SIZES | changes), PAUSE, (STOP,), 0)


def make_requests(openings):
    rng = np.random.default_rng(2)
    prompts = [tuple(rng.integers(7, V, length).tolist()) for length in (4, 20, 9, 13, 6, 17)]
    return [Request(p, 4, (3, i), openings=openings) for i, p in enumerate(prompts)]


def respond(request, member, ids):
    return Reply((8, sum(ids) % V))


@pytest.fixture(scope="module")
def engine(policy):
    return make_engine(policy)


@pytest.fixture(scope="module")
def opened(policy, engine):
    return engine.generate(policy[1], make_requests(OPENINGS), respond, temperature=1.0, seed=4)


def test_openings_are_observed_and_what_follows_is_sampled_behind_them(policy, opened):
    model = nnx.merge(*policy)
    for request, group in zip(make_requests(OPENINGS), opened, strict=True):
        for opening, rollout in zip(OPENINGS, group, strict=True):
            n = len(opening)
            assert tuple(rollout.ids[:n].tolist()) == opening
            assert (rollout.origin[:n] == OBSERVATION).all() and rollout.origin[n] == SAMPLED
            sampled = rollout.origin == SAMPLED
            expected = plain_logprobs(model, request, rollout.ids, 1.0)
            np.testing.assert_allclose(
                rollout.logprobs[sampled], np.asarray(expected)[sampled], atol=1e-4
            )
            assert len(rollout.ids) <= SIZES["max_tokens"] and rollout.finish


def same(actual, expected):
    assert actual.ids.tolist() == expected.ids.tolist() and actual.finish == expected.finish
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-5)


def test_members_without_an_opening_are_those_of_a_free_group(policy, engine, opened):
    free = engine.generate(policy[1], make_requests(()), respond, temperature=1.0, seed=4)
    for with_openings, without in zip(opened, free, strict=True):
        same(with_openings[1], without[1])
        same(with_openings[3], without[3])


def test_members_that_wait_for_a_slot_begin_with_their_openings_too(policy, opened):
    """Two slots for groups of four: half of the members join later, with a copy of the prompt."""
    small = make_engine(policy, slots=2, row_buckets=(2,))
    out = small.generate(policy[1], make_requests(OPENINGS), respond, temperature=1.0, seed=4)
    for actual, expected in zip(out, opened, strict=True):
        for a, b in zip(actual, expected, strict=True):
            same(a, b)


def test_a_paused_member_is_answered_with_its_opening_in_the_ids(policy, engine):
    seen = []

    def listen(request, member, ids):
        seen.append((member, tuple(ids)))
        return respond(request, member, ids)

    engine.generate(policy[1], make_requests(OPENINGS), listen, temperature=1.0, seed=4)
    calls = [ids for member, ids in seen if member == 0]
    assert calls and all(ids[: len(OPENINGS[0])] == OPENINGS[0] for ids in calls)
    # The pause inside of the opening is no call.
    assert all(len(ids) > len(OPENINGS[0]) for ids in calls)


@pytest.mark.parametrize(
    ("openings", "named"),
    [
        (((7,),), ["request 1", "openings", 1, 4]),
        (((7,), (), (V,), ()), ["request 1", "openings", V]),
        (((7,) * 48, (), (), ()), ["request 1", "openings", 48, 47]),
    ],
)
def test_openings_that_do_not_fit_are_refused(policy, engine, openings, named):
    first, second, *_ = make_requests(())
    requests = [first, dataclasses.replace(second, openings=openings)]
    sentence = refused(engine.generate, policy[1], requests, respond, temperature=1.0, seed=0)
    assert_names(sentence, *named)
