"""On 8 simulated devices (data x fsdp x tensor) the engine gives what it gives on one."""

import jax
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.errors import InputError
from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.parallel.mesh import make_mesh, shard_params
from agenticrec_jax.testing.models import tiny_qwen3
from agenticrec_jax.types import OBSERVATION

CONFIG = EngineConfig(
    slots=16,
    prompt_buckets=(12,),
    splice_buckets=(6,),
    max_tokens=40,
    row_buckets=(4,),
    window_buckets=(96,),
)


def respond(request, member, ids):
    return Reply(tuple((ids[0] + i) % 30 for i in range(len(ids) % 9)))


@pytest.fixture(scope="module")
def policy():
    graphdef, params = nnx.split(tiny_qwen3(5, vocab_size=32))
    return graphdef, jax.tree.map(lambda x: x * 9 if x.ndim > 1 else x, params)


def test_eight_devices_give_the_rollouts_of_one(policy):
    graphdef, params = policy
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(4, 30, rng.integers(3, 13)).tolist()) for _ in range(6)]
    requests = [Request(prompt, 3, (2, i)) for i, prompt in enumerate(prompts)]
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    engines = [Engine(graphdef, CONFIG, 3, (1,), 0, mesh=m) for m in (None, mesh)]
    placed = [params, shard_params(params, mesh)]
    one, eight = (
        engine.generate(p, requests, respond, temperature=0.9, seed=1)
        for engine, p in zip(engines, placed, strict=True)
    )
    observed = 0
    for a, b in zip(sum(one, []), sum(eight, []), strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.finish == b.finish
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
        observed += (a.origin == OBSERVATION).sum()
    assert observed > 10
    assert engines[1].telemetry["prompt_tokens"] == sum(map(len, prompts))
    check_places(engines[1], params)


def check_places(engine, params):
    """Slots and key heads are split; weights are whole along the rows' axes."""
    state = engine.state
    whole = state.cache.k[0].shape
    assert state.cache.k[0].addressable_shards[0].data.shape == (4, whole[1] // 2, *whole[2:])
    assert state.length.addressable_shards[0].data.shape == (4,)
    gate = engine.placement.params(params)["layers"][0]["mlp"]["gate"]["kernel"][...]
    assert gate.addressable_shards[0].data.shape == (gate.shape[0], gate.shape[1] // 2)


def test_slots_must_divide_over_the_shards(policy):
    config = EngineConfig(slots=6, prompt_buckets=(12,), splice_buckets=(6,), max_tokens=4)
    with pytest.raises(InputError, match="6 slots do not divide over 4 shards"):
        Engine(policy[0], config, 3, (1,), 0, mesh=make_mesh(data=2, fsdp=2, tensor=2))
