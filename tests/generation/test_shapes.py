"""Shapes that are compiled ahead: all that a call can meet, and nothing that changes a rollout."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.generation.sampling import Filters
from agenticrec_jax.generation.shapes import Shapes
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.models import tiny_qwen3

V = 40
PAUSE = 3
STOP = 5
SIZES = {
    "slots": 8,
    "prompt_buckets": (6, 12),
    "splice_buckets": (2, 5),
    "max_tokens": 24,
    "decode_steps": 4,
    "least_steps": 2,
    "row_buckets": (8,),
    "window_buckets": (28,),
}
ONE_EACH = {"prompt_buckets": (12,), "splice_buckets": (5,), "window_buckets": (40,)}


@pytest.fixture(scope="module")
def policy():
    return nnx.split(tiny_qwen3(3, num_layers=1, vocab_size=V))


def make_engine(policy, mesh=None, **changes):
    config = EngineConfig(**{**SIZES, **changes})
    return Engine(policy[0], config, PAUSE, (STOP,), 0, mesh=mesh)


def draw_requests(seed, sizes):
    """Prompts of any length in groups of any of ``sizes``; how many is drawn too."""
    rng = np.random.default_rng(seed)

    def one(index):
        prompt = rng.integers(6, V, rng.integers(1, 13)).tolist()
        return Request(tuple(prompt), int(rng.choice(sizes)), (index, seed))

    return [one(i) for i in range(rng.integers(1, 14))]


def respond(request, member, ids):
    rng = np.random.default_rng([len(ids), sum(ids)])
    return Reply(tuple(rng.integers(6, V, rng.integers(0, 9)).tolist()))


@pytest.mark.parametrize(
    ("mesh", "sizes", "changes"),
    [
        (None, (1, 3), {}),
        pytest.param((2, 2, 2), (1, 2), ONE_EACH, marks=pytest.mark.slow),
        pytest.param((2, 1, 1), (1, 8), ONE_EACH | {"slots": 16}, marks=pytest.mark.slow),
    ],
)
def test_what_is_compiled_ahead_is_all_that_is_met(policy, mesh, sizes, changes):
    devices = jax.devices()[: math.prod(mesh or (1,))]
    mesh = mesh and make_mesh(*mesh, devices=devices)
    engine = make_engine(policy, mesh, compile_ahead=True, **changes)
    compilations = []
    for seed in range(8):
        requests = [*draw_requests(seed, sizes), Request((7,), sizes[-1], (99, seed))]
        requests += [Request((7,), size, (98, seed)) for size in sizes[:-1]]
        engine.generate(policy[1], requests, respond, temperature=2.0, seed=seed)
        compilations.append(engine.telemetry["compilations"])
    declared = list(engine.shapes.all(set(sizes), 2, Filters().draw(1.0)))
    assert compilations == [len(declared)] + [0] * 7


def test_a_large_group_may_stand_beside_many_small_ones_of_another_shard():
    config = EngineConfig(**SIZES | {"slots": 16})
    declared = Shapes(config, shards=2).prefill({1, 8}, 2, Filters().draw(1.0))
    prompts_and_members = {shape.inputs.rows.shape for shape in declared}
    assert (2 * 4, 8) in prompts_and_members, "a group of 8 in one, groups of 1 in the other"
    assert (2 * 16, 8) not in prompts_and_members, "so many have no room"


@pytest.mark.slow
def test_rollouts_are_those_of_shapes_compiled_where_they_are_met(policy):
    ahead = make_engine(policy, compile_ahead=True, **ONE_EACH)
    met = make_engine(policy, **ONE_EACH)
    for seed in range(3):
        requests = draw_requests(seed, (1, 3))
        a, b = (
            engine.generate(policy[1], requests, respond, temperature=2.0, seed=seed)
            for engine in (ahead, met)
        )
        for x, y in zip(sum(a, []), sum(b, []), strict=True):
            np.testing.assert_array_equal(x.ids, y.ids)
            np.testing.assert_array_equal(x.logprobs, y.logprobs)
    assert met.programs.compilations() < ahead.programs.compilations()


@pytest.mark.slow
def test_filters_and_no_requests_are_met_too(policy):
    engine = make_engine(policy, compile_ahead=True, **ONE_EACH)
    assert engine.generate(policy[1], [], respond, temperature=1.0, seed=0) == []
    for filters in (Filters(), Filters(top_p=0.9)):
        for seed, more in ((0, True), (1, False)):
            requests = draw_requests(seed, (2,))
            engine.generate(
                policy[1], requests, respond, temperature=1.0, seed=seed, filters=filters
            )
            assert (engine.telemetry["compilations"] > 0) == more
