"""Rollouts from a narrow copy of the weights, against plain forwards with the numbers it holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.generation.engine import Engine, EngineConfig, Reply, Request
from agenticrec_jax.generation.placement import DECODE_RULES, PANEL_ROWS
from agenticrec_jax.models.int8_weights import to_int8
from agenticrec_jax.models.lora import LoraConfig, add_lora
from agenticrec_jax.parallel.mesh import make_mesh, shard_params, tree_shardings
from agenticrec_jax.testing.agreement import plain_logprobs
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import TINY, tiny_qwen3
from agenticrec_jax.types import SAMPLED

PAUSE = 3
TEMPERATURE = 0.9
SIZES = EngineConfig(
    slots=8,
    prompt_buckets=(12,),
    splice_buckets=(6,),
    max_tokens=24,
    turn_tokens=7,
    row_buckets=(8,),
    window_buckets=(96,),
)
REQUESTS = [Request((7, 9, 11, 13, 4 + i), 3, (2, i)) for i in range(4)]
UNTIED = {"tie_word_embeddings": False, "scan_layers": True, "qkv_bias": True}
# Axes that a product sums over, of one layer's arrays; all other kernels have them first.
SUMMED = {"o": (0, 1), "embedding": (1,)}


def policy(lora=False, **changes):
    """Large weights, so that the next token depends on what was read; biases that are not 0."""
    model = tiny_qwen3(5, vocab_size=64, hidden_size=64, **changes)
    if lora:
        add_lora(model, LoraConfig(2, 4.0), rngs=nnx.Rngs(1))
    graphdef, params = nnx.split(model)
    rng = np.random.default_rng(0)

    def spread(path, x):
        value = np.asarray(x.get_value())
        if path[-1] in ("bias", "b"):
            value = rng.normal(size=value.shape).astype(np.float32) / 4
        return x if path[-1] == "scale" else x.replace(jnp.asarray(9 * value))

    return graphdef, nnx.from_flat_state([(p, spread(p, x)) for p, x in nnx.to_flat_state(params)])


def respond(request, member, ids):
    return Reply(tuple((ids[0] + i) % 60 for i in range(len(ids) % 6)))


def engine_of(graphdef, weight_dtype, mesh=None, **changes):
    sizes = dataclasses.replace(SIZES, weight_dtype=weight_dtype, **changes)
    return Engine(graphdef, sizes, PAUSE, (1,), 0, mesh=mesh)


def sampled(engine, params, respond=respond):
    out = engine.generate(params, REQUESTS, respond, temperature=TEMPERATURE, seed=1)
    return [rollout for group in out for rollout in group]


def rounded(params, dtype, summed=SUMMED):
    """The policy's parameters with the numbers of a narrow copy, by numpy alone."""

    def narrow(path, variable):
        value = np.asarray(variable.get_value())
        if path[-1] not in ("kernel", "embedding"):
            return variable
        if dtype == "bfloat16":
            return variable.replace(jnp.asarray(value.astype(jnp.bfloat16).astype(np.float32)))
        stacked = path[0] == "layers" and path[1] == "attention" or path[:2] == ("layers", "mlp")
        axes = summed.get(path[-2] if path[-1] == "kernel" else path[-1], (0,))
        axes = tuple(axis + stacked for axis in axes)
        scale = np.abs(value).max(axes, keepdims=True) / np.float32(127)
        return variable.replace(jnp.asarray(np.rint(value / scale) * scale))

    return nnx.from_flat_state([(p, narrow(p, x)) for p, x in nnx.to_flat_state(params)])


def gaps(graphdef, params, rollouts):
    """Differences of the rollouts' log-probs from plain forwards with ``params``."""
    model = nnx.merge(graphdef, params)
    members = [request for request in REQUESTS for _ in range(3)]
    result = []
    for request, rollout in zip(members, rollouts, strict=True):
        plain = plain_logprobs(model, request, rollout.ids, TEMPERATURE)
        result.append(np.abs(rollout.logprobs - plain)[rollout.origin == SAMPLED])
    return np.concatenate(result)


CASES = {
    "tied": ("int8", {}),
    "untied": ("int8", UNTIED),
    "adapters": pytest.param("int8", {"lora": True}, marks=pytest.mark.slow),
    "bfloat16": ("bfloat16", {}),
}


@pytest.mark.parametrize("dtype,changes", CASES.values(), ids=CASES)
def test_log_probs_are_those_of_the_numbers_that_the_copy_holds(dtype, changes):
    """The learner's own numbers, and scales along another axis, are told apart from them."""
    graphdef, params = policy(**changes)
    before = jax.tree.map(np.array, params)
    rollouts = sampled(engine_of(graphdef, dtype), params)
    assert gaps(graphdef, rounded(params, dtype), rollouts).max() < (
        2e-3 if "lora" in changes else 1e-4
    )
    assert gaps(graphdef, params, rollouts).mean() > 1e-3
    if dtype == "int8":
        faulty = rounded(params, dtype, {"o": (2,), "embedding": (0,)})
        assert gaps(graphdef, faulty, rollouts).mean() > 1e-3
    for a, b in zip(*map(jax.tree.leaves, (before, params)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sum((rollout.origin != SAMPLED).sum() for rollout in rollouts) > 10


@pytest.mark.slow
def test_few_rows_are_decoded_with_the_same_numbers_in_panels():
    graphdef, params = policy(intermediate_size=128, head_dim=16)
    engine = engine_of(graphdef, "int8", slots=PANEL_ROWS)
    decode = engine.placement.decode_params(engine.placement.params(params, "float32"), PANEL_ROWS)
    assert decode["layers"][0]["mlp"]["gate"]["kernel"].ndim == 3
    assert decode["layers"][0]["mlp"]["gate"]["kernel"].dtype == "int8"
    assert gaps(graphdef, rounded(params, "int8"), sampled(engine, params)).max() < 1e-4


def test_without_the_setting_the_very_parameters_are_sampled_with():
    graphdef, params = policy()
    engine = engine_of(graphdef, "", slots=16, row_buckets=(16,))
    copy = engine.placement.params(params, "float32")
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (copy, params)), strict=True))
    up = nnx.merge(graphdef, params).layers[0].mlp.up
    (operation,) = jax.make_jaxpr(up)(jnp.ones((2, 3, 64))).eqns
    assert operation.primitive.name == "dot_general"


def test_narrow_weights_are_split_as_wide_ones():
    """On 8 devices, from the learner's layout: each shard has the integers of the whole, scaled
    by the largest of the whole channel, and a later call follows the parameters it is given."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    graphdef, params = policy(**UNTIED)
    engine = engine_of(graphdef, "int8", mesh)
    learners = shard_params(params, mesh)
    copy = engine.placement.params(learners, "float32")
    alone = engine_of(graphdef, "int8").placement.params(params, "float32")
    places = dict(nnx.to_flat_state(tree_shardings(params, mesh, DECODE_RULES)))
    wholes = dict(nnx.to_flat_state(alone))
    kinds = set()
    for path, x in nnx.to_flat_state(copy):
        np.testing.assert_array_equal(x.get_value(), wholes[path].get_value())
        if path in places:
            assert x.get_value().sharding.is_equivalent_to(places[path].get_value(), x.ndim), path
        kinds.add((path[-1], x.dtype.name))
    narrow = {("kernel", "int8"), ("embedding", "int8")}
    wide = {(name, "float32") for name in ("kernel_scale", "embedding_scale", "bias", "scale")}
    assert kinds == narrow | wide
    up = copy["layers"]["mlp"]["up"]
    layers, width = TINY.num_layers, TINY.intermediate_size
    assert up["kernel_scale"].get_value().addressable_shards[0].data.shape == (layers, width // 2)
    rollouts = sampled(engine, learners)
    assert gaps(graphdef, rounded(params, "int8"), rollouts).max() < 1e-4
    updated = jax.tree.map(lambda x: x * 0.7, learners)
    rollouts = sampled(engine, updated)
    assert gaps(graphdef, rounded(jax.device_get(updated), "int8"), rollouts).max() < 1e-4


def test_no_second_float32_copy_is_kept_or_made():
    """While a tool is asked there are the learner's kernels and their integers; none afterwards."""
    graphdef, params = policy(intermediate_size=700)  # a size that nothing else has
    engine = engine_of(graphdef, "int8", slots=16, row_buckets=(16,))
    seen = []

    def alive():
        arrays = [x for x in jax.live_arrays() if 700 in x.shape and x.ndim == 2]
        return sorted(x.dtype.name for x in arrays)

    def look(request, member, ids):
        seen.append(alive())
        return respond(request, member, ids)

    sampled(engine, params, look)
    kernels = 3 * TINY.num_layers
    assert seen and all(each == kernels * ["float32"] + kernels * ["int8"] for each in seen)
    assert alive() == kernels * ["float32"]


@pytest.mark.slow
def test_a_loop_of_steps_widens_no_more_than_it_reads_at_once():
    """The compiled programs: of eight layers not a fifth is ever wide, and arguments are narrow.

    XLA's CPU compiler computes nothing in bfloat16, and widens such kernels ahead of the loop.
    """
    changes = {"num_layers": 8, "intermediate_size": 2048}
    graphdef, params = nnx.split(nnx.eval_shape(lambda: tiny_qwen3(hidden_size=256, **changes)))
    weights = sum(x.size for x in jax.tree.leaves(params))
    sizes = {}
    for each in ("", "int8"):
        lowered = engine_of(graphdef, each, slots=16, row_buckets=(16,)).lower(params, 3)
        sizes[each] = lowered["decode"].compile().memory_analysis()
    saved = sizes[""].argument_size_in_bytes - sizes["int8"].argument_size_in_bytes
    assert saved > 0.97 * 3 * weights
    more = sizes["int8"].temp_size_in_bytes - sizes[""].temp_size_in_bytes
    assert more < 0.2 * 4 * weights


def test_steps_reach_the_largest_of_a_channel_and_zeros_stay_zeros():
    steps, scale = to_int8(np.array([[2.54, -1.0, 0], [-0.40, 0.01, 0]], np.float32), 0)
    np.testing.assert_array_equal(steps, [[127, -127, 0], [-20, 1, 0]])
    np.testing.assert_allclose(scale, [[0.02, 1 / 127, 0]], rtol=1e-6)


def test_other_dtypes_are_refused():
    message = refused(lambda: dataclasses.replace(SIZES, weight_dtype="int4"))
    assert_names(message, "weight_dtype", "int4", "bfloat16", "int8")
