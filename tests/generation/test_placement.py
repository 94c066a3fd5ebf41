"""On 8 simulated devices (data x fsdp x tensor) the engine gives what it gives on one."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation import placement
from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.parallel.mesh import make_mesh, shard_params
from agenticrec_jax.testing.errors import assert_names, refused
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


def policy(scan, **changes):
    """Large weights, so that the next token depends on what was read; the same in both forms."""
    graphdef, params = nnx.split(tiny_qwen3(5, vocab_size=32, scan_layers=scan, **changes))
    flat = [
        (path, v if path[-1] == "scale" else v.replace(9 * v.get_value()))
        for path, v in nnx.to_flat_state(params)
    ]
    return graphdef, nnx.from_flat_state(flat)


def rollouts(scan, mesh, cache_dtype=""):
    """Returns an engine after a call, its parameters and the rollouts."""
    graphdef, params = policy(scan)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(4, 30, rng.integers(3, 13)).tolist()) for _ in range(6)]
    requests = [Request(prompt, 3, (2, i)) for i, prompt in enumerate(prompts)]
    config = dataclasses.replace(CONFIG, cache_dtype=cache_dtype)
    engine = Engine(graphdef, config, 3, (1,), 0, mesh=mesh)
    params = params if mesh is None else shard_params(params, mesh)
    out = engine.generate(params, requests, respond, temperature=0.9, seed=1)
    assert engine.telemetry["prompt_tokens"] == sum(map(len, prompts))
    return engine, params, sum(out, [])


@pytest.fixture(scope="module")
def one():
    return rollouts(False, None)[2]


@pytest.mark.parametrize(
    "scan,devices",
    [
        pytest.param(False, 8, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
        (True, 8),
    ],
)
def test_many_devices_and_scanned_layers_give_the_rollouts_of_one_unrolled(one, scan, devices):
    mesh = make_mesh(data=2, fsdp=2, tensor=2) if devices > 1 else None
    engine, params, got = rollouts(scan, mesh)
    for a, b in zip(one, got, strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.finish == b.finish
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
    assert sum((rollout.origin == OBSERVATION).sum() for rollout in got) > 10
    if mesh is not None:
        check_places(engine, params, scan)


@pytest.mark.slow
@pytest.mark.parametrize("cache_dtype,scan", [("bfloat16", False), ("int8", False), ("int8", True)])
def test_narrow_caches_are_split_as_wide_ones(one, cache_dtype, scan):
    """Scales lie with their slots and heads; log-probs are apart by far less than rounding costs.

    Not by 1e-4: the last bits of what is put differ, so that one number in about a thousand is
    rounded to the next step, and all that is read after it moves a little.
    """
    alone = rollouts(False, None, cache_dtype)[2]
    engine, params, got = rollouts(scan, make_mesh(data=2, fsdp=2, tensor=2), cache_dtype)
    check_places(engine, params, scan)
    apart = []
    cost = []
    for a, b, wide in zip(alone, got, one, strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.finish == b.finish
        apart.append(np.abs(a.logprobs - b.logprobs))
        if a.ids.tolist() == wide.ids.tolist():
            cost.append(np.abs(a.logprobs - wide.logprobs))
    apart = np.concatenate(apart)
    cost = np.concatenate(cost)
    assert apart.mean() < 0.2 * cost.mean() and apart.max() < cost.max()


def check_places(engine, params, scan):
    """Slots and key heads are split; weights are whole along the rows' axes."""
    state = engine.state
    layers = engine.placement.params(params, "float32")["layers"]
    for stored in jax.tree.leaves(state.cache):
        *stack, slots, heads, _, _ = stored.shape
        assert stored.addressable_shards[0].data.shape[-4:-2] == (slots // 4, heads // 2)
        assert len(stack) == scan
    assert state.length.addressable_shards[0].data.shape == (4,)
    gate = (layers if scan else layers[0])["mlp"]["gate"]["kernel"]
    names = gate.get_metadata()["logical_axes"]
    split = [
        size // (2 if name == "mlp" else 1) for size, name in zip(gate.shape, names, strict=True)
    ]
    assert gate[...].addressable_shards[0].data.shape == tuple(split)


@pytest.mark.slow
def test_weights_stored_wider_are_rounded_once_and_give_the_same_rollouts(monkeypatch):
    """The engine's copy is what every use would round to, but for the scales of norms."""
    wide = policy(False, dtype="bfloat16")
    rng = np.random.default_rng(1)
    requests = [Request(tuple(rng.integers(4, 30, 9).tolist()), 2, (i,)) for i in range(3)]

    def run():
        engine = Engine(wide[0], CONFIG, 3, (1,), 0)
        out = engine.generate(wide[1], requests, respond, temperature=0.9, seed=3)
        return engine, sum(out, [])

    engine, narrow = run()
    for path, x in nnx.to_flat_state(engine.placement.params(wide[1], "bfloat16")):
        assert x.dtype == ("float32" if path[-1] == "scale" else "bfloat16"), path
    with monkeypatch.context() as elsewhere:  # on a CPU kernels are stored otherwise
        elsewhere.setattr(jax, "default_backend", lambda: "gpu")
        assert placement.Placement(None, wide[0]).params(wide[1], "float32") is wide[1]
    monkeypatch.setattr(placement, "_in_dtype", lambda params, dtype: params)
    for a, b in zip(narrow, run()[1], strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        np.testing.assert_array_equal(a.logprobs, b.logprobs)


def test_weights_are_taken_over_without_the_host(monkeypatch):
    """The learner's shards become the engine's on the devices: nothing is read by the host."""
    graphdef, params = policy(False, dtype="bfloat16")
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    learners = shard_params(params, mesh)
    engines = placement.Placement(mesh, graphdef)

    def read(self, *arguments, **options):
        raise AssertionError("the host reads an array of the devices")

    for name in ("_value", "__array__", "__dlpack__"):
        stop = property(read) if name == "_value" else read
        monkeypatch.setattr(type(jax.numpy.zeros(1)), name, stop)
    with pytest.raises(AssertionError, match="the host reads"):
        np.asarray(jax.tree.leaves(learners)[0])
    taken = engines.params(learners, "bfloat16")
    monkeypatch.undo()
    moved = 0
    for (path, was), (_, now) in zip(
        nnx.to_flat_state(learners), nnx.to_flat_state(taken), strict=True
    ):
        moved += not now.get_value().sharding.is_equivalent_to(was.get_value().sharding, now.ndim)
        np.testing.assert_array_equal(now[...], was[...].astype(now.dtype), err_msg=str(path))
    assert moved > 10


def test_few_rows_are_decoded_with_one_copy_of_the_same_parameters(monkeypatch):
    monkeypatch.setattr(placement, "panel_width", lambda: 16)
    graphdef, params = policy(False, intermediate_size=64)
    placed = placement.Placement(None, graphdef)
    assert placed.decode_params(params, placement.PANEL_ROWS + 1) is params
    copy = placed.decode_params(params, placement.PANEL_ROWS)
    gate = copy["layers"][0]["mlp"]["gate"]["kernel"]
    assert gate.shape == (4, 32, 16) and placed.decode_params(params, 1) is copy
    again = jax.tree.map(lambda x: x + 1, params)  # what a learner gives
    other = placed.decode_params(again, 1)["layers"][0]["mlp"]["gate"]["kernel"]
    np.testing.assert_array_equal(other[...], gate[...] + 1)
    gone = weakref.ref(gate.get_value())
    del copy, gate, params
    assert gone() is None
    gone = weakref.ref(other.get_value())
    del other, again  # the copy lives no longer than what it is of
    assert gone() is None
    mesh = placement.Placement(make_mesh(data=2, fsdp=2, tensor=2), graphdef)
    _, params = policy(False)
    assert mesh.decode_params(params, 1) is params


def test_what_dies_with_a_copy_does_not_take_the_next_one_along(monkeypatch):
    """A copy in which no kernel fills panels is of the very arrays, and they end with it."""
    monkeypatch.setattr(placement, "panel_width", lambda: 64)
    graphdef, params = policy(False, hidden_size=20, intermediate_size=36)
    placed = placement.Placement(None, graphdef)
    assert placed.decode_params(params, 1) is not None
    params = jax.tree.map(lambda x: x + 1, params)  # what was copied is held by the copy alone
    gc.collect()
    copy = placed.decode_params(params, 1)
    assert copy is not None and placed.decode_params(params, 1) is copy
    for a, b in zip(jax.tree.leaves(copy), jax.tree.leaves(params), strict=True):
        assert a is b


def test_slots_must_divide_over_the_shards():
    config = EngineConfig(slots=6, prompt_buckets=(12,), splice_buckets=(6,), max_tokens=4)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sentence = refused(Engine, policy(False)[0], config, 3, (1,), 0, mesh=mesh)
    assert_names(sentence, "slots: found 6", "4 shards")


@pytest.mark.parametrize(
    ("extensions", "width"),
    [
        (["X86_V3"], 16),
        (["X86_V3", "X86_V4"], 64),
        (["AVX2", "AVX512F", "AVX512_SKX"], 64),
        (["ASIMDHP"], 16),
    ],
)
def test_panels_are_as_wide_as_the_processors_kernel(extensions, width, monkeypatch):
    known = {"baseline": ["X86_V2"], "found": extensions, "not found": ["X86_V4"]}
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": known})
    assert placement.panel_width.__wrapped__() == width
