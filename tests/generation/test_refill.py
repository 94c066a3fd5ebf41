"""Members of a group that find no slot with the first take the next free ones."""

from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.agreement import perturbed_logits, plain_logprobs
from agenticrec_jax.testing.models import calling_qwen3
from agenticrec_jax.types import SAMPLED

V = 40
PAUSE = 3
STOP = 5
PAD = 0
SAMPLING = {"temperature": 0.9, "seed": 6}
SIZES = {
    "prompt_buckets": (20,),
    "splice_buckets": (7,),
    "max_tokens": 48,
    "decode_steps": 8,
    "least_steps": 4,
    "row_buckets": (32,),
    "window_buckets": (96,),
}


@pytest.fixture(scope="module")
def policy():
    """A random policy that calls at one token in ten and stops at one in five."""
    model = calling_qwen3({PAUSE: 1.2, STOP: 2.4}, vocab_size=V)
    return model, *nnx.split(model)


def make_engine(policy, slots, mesh=None, **changes):
    config = EngineConfig(slots=slots, **SIZES | changes)
    return Engine(policy[1], config, PAUSE, (STOP,), PAD, mesh=mesh)


@pytest.fixture(scope="module")
def small_engine(policy):
    """An engine of five slots."""
    return make_engine(policy, 5)


def make_requests(members):
    rng = np.random.default_rng(1)
    prompts = [tuple(rng.integers(7, V, rng.integers(2, 21)).tolist()) for _ in members]
    return [Request(prompts[i], count, (11, 100 + i)) for i, count in enumerate(members)]


def respond(request, member, ids):
    rng = np.random.default_rng([len(ids), sum(ids)])
    return Reply(tuple(rng.integers(7, V, rng.integers(0, 10)).tolist()))


def roll_out(policy, engine, requests):
    return engine.generate(policy[2], requests, respond, **SAMPLING)


def assert_sampled_as_a_plain_forward_would(policy, requests, out):
    """The id with the largest perturbed logit at every position, and its log-prob."""
    for request, group in zip(requests, out, strict=True):
        for member, row in enumerate(group):
            sampled = row.origin == SAMPLED
            noisy = perturbed_logits(policy[0], request, member, row.ids, **SAMPLING)
            short = noisy.max(axis=1) - noisy[np.arange(len(row.ids)), row.ids]
            assert short[sampled].max() < 1e-4
            scores = plain_logprobs(policy[0], request, row.ids, SAMPLING["temperature"])
            np.testing.assert_allclose(row.logprobs[sampled], scores[sampled], atol=1e-4)


@pytest.mark.parametrize("deterministic", [True, False])
def test_members_that_join_later_sample_what_is_theirs(
    policy, small_engine, deterministic, monkeypatch
):
    """Also of a group that is larger than all slots, and where the first token is the last."""
    requests = make_requests((4, 1, 9, 3, 7))
    sizes = replace(small_engine.config, deterministic=deterministic)
    monkeypatch.setattr(small_engine, "config", sizes)
    out = roll_out(policy, small_engine, requests)
    assert_sampled_as_a_plain_forward_would(policy, requests, out)
    telemetry = small_engine.telemetry
    assert telemetry["prompt_tokens"] == sum(len(request.prompt) for request in requests)
    assert 10 < telemetry["join_dispatches"] < 24 - len(requests)
    assert any(len(row.ids) == 1 for row in out[2][5:])


def test_members_join_in_each_shard_of_a_mesh(policy):
    requests = make_requests((4, 1, 9, 3, 7))
    engine = make_engine(policy, 8, make_mesh(2, 2, 2))
    out = roll_out(policy, engine, requests)
    assert_sampled_as_a_plain_forward_would(policy, requests, out)
    assert engine.telemetry["join_dispatches"] > 5


@pytest.mark.parametrize("cache_dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_what_a_narrow_cache_has_rounded_is_copied_as_it_is(policy, cache_dtype):
    engine = make_engine(policy, 8, cache_dtype=cache_dtype, row_buckets=(8,))
    requests = make_requests((6, 6))
    together = roll_out(policy, engine, requests)
    assert engine.telemetry["join_dispatches"] == 4
    alone = [roll_out(policy, engine, [request])[0] for request in requests]
    assert engine.telemetry["join_dispatches"] == 0
    for a, b in zip(sum(together, []), sum(alone, []), strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.logprobs, b.logprobs)


def test_no_slot_is_empty_while_a_row_has_none(policy, small_engine, monkeypatch):
    """Without calls every slot decodes until the last row has one, whatever groups there are."""
    requests = make_requests((9, 7, 12, 6, 14))
    started = []
    full = []
    programs = small_engine.programs
    slots = small_engine.config.slots

    def watch(name, record):
        program = getattr(programs, name)

        def run(params, state, inputs, **static):
            record(int((inputs.rows < slots).sum()))
            return program(params, state, inputs, **static)

        monkeypatch.setattr(programs, name, run)

    watch("prefill", started.append)
    watch("join", started.append)
    watch("decode", lambda rows: full.append((sum(started) == 48, rows)))
    silent = calling_qwen3({PAUSE: -100.0, STOP: 2.4}, vocab_size=V)
    out = small_engine.generate(nnx.split(silent)[1], requests, respond, **SAMPLING)
    assert sum(started) == 48 == len(sum(out, []))
    steady = [rows for last, rows in full if not last]
    assert steady == [slots] * len(steady) and len(steady) > 3


def test_every_rollout_is_announced_once_as_it_ends(policy, small_engine):
    """With more members than slots the first ones end before the last ones call."""
    members = [3, 1, 4, 2]
    events = []
    announced = {}

    def answer(*call):
        events.append("call")
        return respond(*call)

    def announce(request, member, rollout):
        events.append((request, member))
        announced[request, member] = rollout

    out = small_engine.generate(
        policy[2], make_requests(members), answer, on_rollout=announce, **SAMPLING
    )
    order = [event for event in events if event != "call"]
    assert sorted(order) == [(i, m) for i, count in enumerate(members) for m in range(count)]
    assert events.index(order[0]) < len(events) - events[::-1].index("call") - 1
    for (i, m), rollout in announced.items():
        np.testing.assert_array_equal(rollout.ids, out[i][m].ids)
        assert rollout.finish == out[i][m].finish != ""
