"""The engine with pages, against the same engine with columns, up to rounding."""

import jax
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.agent.answers import ranking_constraint
from agenticrec_jax.generation.engine import Engine, EngineConfig, Request
from agenticrec_jax.parallel.mesh import make_mesh
from agenticrec_jax.testing.agreement import differences, perturbed_logits
from agenticrec_jax.testing.errors import refused
from agenticrec_jax.testing.models import calling_qwen3, tiny_qwen3
from tests.generation import test_refill
from tests.generation.test_programs import Letters, abstract_policy, collectives
from tests.generation.test_refill import PAUSE, SAMPLING, STOP, V, make_requests, respond

MEMBERS = (4, 1, 5, 3)
SIZES = test_refill.SIZES | {"slots": 8}
FEW = {"page_tokens": 16, "pages": 14}


@pytest.fixture(scope="module")
def policy():
    """A random policy of two layers that calls at one token in ten and rarely stops."""
    model = calling_qwen3({PAUSE: 1.2, STOP: -1.0}, vocab_size=V, num_layers=2)
    return model, *nnx.split(model)


def roll_out(policy, mesh=None, **changes):
    """Returns the rollouts and the telemetry of an engine."""
    engine = Engine(policy[1], EngineConfig(**SIZES | changes), PAUSE, (STOP,), 0, mesh=mesh)
    out = engine.generate(policy[2], make_requests(MEMBERS), respond, **SAMPLING)
    return sum(out, []), engine.telemetry


@pytest.fixture(scope="module")
def expected(policy):
    """Rollouts of the engine with columns: long ones, with observations."""
    out, telemetry = roll_out(policy)
    assert telemetry["page_steps"] == telemetry["preempted_rows"] == 0
    assert np.mean([len(row.ids) for row in out]) > 30 and telemetry["join_dispatches"] > 1
    return out


def assert_agrees(policy, out, expected):
    members = [(request, m) for request in make_requests(MEMBERS) for m in range(request.members)]

    def perturbed(i):
        return perturbed_logits(policy[0], *members[i], expected[i].ids, **SAMPLING)

    assert differences(out, expected, perturbed) <= 1


def test_rows_that_gave_their_pages_back_are_those_of_an_engine_with_columns(policy, expected):
    out, telemetry = roll_out(policy, **FEW)
    assert_agrees(policy, out, expected)
    assert telemetry["preempted_rows"] > 1 and telemetry["recomputed_tokens"] > 50
    assert telemetry["prompt_tokens"] == sum(len(r.prompt) for r in make_requests(MEMBERS))
    assert telemetry["page_steps"] <= telemetry["decode_steps"] * FEW["pages"]


def test_pages_of_each_shard_of_a_mesh(policy, expected):
    """Four shards of six pages, one more than the longest row has, and split heads."""
    mesh = make_mesh(2, 2, 2)
    out, telemetry = roll_out(policy, mesh, page_tokens=16, pages=24)
    assert_agrees(policy, out, expected)
    assert telemetry["preempted_rows"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"deterministic": False}, {"pages": 6}, {"pages": 0}])
def test_other_orders_and_pools(policy, expected, changes):
    out, telemetry = roll_out(policy, **FEW | changes)
    assert_agrees(policy, out, expected)
    assert (telemetry["preempted_rows"] > 0) == (changes != {"pages": 0})


@pytest.mark.slow
def test_scanned_layers_share_the_pool(expected):
    model = calling_qwen3({PAUSE: 1.2, STOP: -1.0}, vocab_size=V, num_layers=2, scan_layers=True)
    policy = model, *nnx.split(model)
    assert_agrees(policy, roll_out(policy, **FEW)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("cache_dtype", ["bfloat16", "int8"])
def test_narrow_caches_round_the_same_numbers(policy, cache_dtype):
    """Bit by bit the same rounding; rows that are computed again read some tokens unrounded."""
    want, _ = roll_out(policy, cache_dtype=cache_dtype)
    out, telemetry = roll_out(policy, cache_dtype=cache_dtype, page_tokens=16)
    assert telemetry["preempted_rows"] == 0
    assert_agrees(policy, out, want)


@pytest.mark.slow
def test_a_constrained_answer_goes_on_where_it_was():
    """Of rows that gave their pages back in the middle of a list."""
    graphdef, params = nnx.split(tiny_qwen3(3, vocab_size=97))
    requests = [Request(tuple(range(40, 40 + n)), 4, (n,), choices=20) for n in (9, 14)]

    def run(**changes):
        sizes = SIZES | {"max_tokens": 100, "window_buckets": (128,)} | changes
        constraint = ranking_constraint(Letters())
        engine = Engine(
            graphdef, EngineConfig(**sizes), 98, Letters.stop_ids, 0, constraint=constraint
        )
        out = engine.generate(params, requests, None, **SAMPLING)
        return sum(out, []), engine.telemetry

    want, _ = run()
    got, telemetry = run(page_tokens=16, pages=18)
    assert telemetry["preempted_rows"] > 0
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.parametrize(
    "scan, sizes", [(True, None), pytest.param(False, (2, 2, 2), marks=pytest.mark.slow)]
)
def test_decode_and_splice_write_in_place_and_copy_one_layer_at_most(scan, sizes):
    """The pool is donated. Beside it lives a plain copy of one layer's pages of the rows."""
    graphdef, params = abstract_policy(scan)
    config = EngineConfig(
        slots=32, prompt_buckets=(64,), splice_buckets=(32,), max_tokens=192, page_tokens=16
    )
    engine = Engine(graphdef, config, 3, (5,), 0, mesh=sizes and make_mesh(*sizes))
    devices = 8 if sizes else 1
    cache = engine.abstract_state(params).cache
    pool = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) / devices
    for name in ("decode", "splice"):
        compiled = engine.lower(params, members=2)[name].compile()
        memory = compiled.memory_analysis()
        assert memory.alias_size_in_bytes > 0.99 * pool, name
        assert memory.temp_size_in_bytes < 0.5 * pool, name
        assert collectives(compiled, "all-gather") == [], name


def test_a_pool_too_small_or_uneven_is_refused():
    config = EngineConfig(**SIZES | FEW | {"pages": 5})
    graphdef, _ = abstract_policy(True)
    sentence = refused(Engine, graphdef, config, PAUSE, (STOP,), 0)
    assert sentence.startswith("pages: found 5, ") and "at least 6" in sentence
    config = EngineConfig(**SIZES | FEW | {"pages": 13})
    sentence = refused(Engine, graphdef, config, PAUSE, (STOP,), 0, make_mesh(2, 1, 4))
    assert sentence.startswith("pages: found 13, ") and "2 shards" in sentence
