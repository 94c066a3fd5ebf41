"""Adapters: the start is the base, the sum is the merged model, on one device and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agenticrec_jax.models.io.huggingface import load_policy, save_policy
from agenticrec_jax.models.lora import (
    BASE,
    TARGETS,
    LoraConfig,
    LoraParam,
    add_lora,
    join_learned,
    lora_config,
    split_learned,
)
from agenticrec_jax.parallel.mesh import make_mesh, shard_params
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3

CONFIG = LoraConfig(3, 7.0, ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
IDS = np.random.default_rng(1).integers(0, 96, (2, 11))
run = jax.jit(lambda graphdef, params: nnx.merge(graphdef, params)(IDS), static_argnums=0)


def logits(model):
    return run(*nnx.split(model))


def trained(config=CONFIG, **changes):
    """A policy whose adapters have left zero, as if trained."""
    model = add_lora(tiny_qwen3(qkv_bias=True, **changes), config, rngs=nnx.Rngs(1))
    rng = np.random.default_rng(2)

    def disturb(x):
        return jnp.asarray(rng.normal(size=x.shape, scale=0.3), jnp.float32)

    nnx.update(model, jax.tree.map(disturb, nnx.state(model, LoraParam)))
    return model


@pytest.mark.parametrize("scan_layers", [False, True])
def test_fresh_adapters_change_nothing(scan_layers):
    base = tiny_qwen3(scan_layers=scan_layers)
    want = logits(base)
    model = add_lora(base, LoraConfig(4, 8.0), rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(logits(model), want)
    state = nnx.state(model, LoraParam)
    for path, variable in nnx.to_flat_state(state):
        assert bool((variable.get_value() == 0).all()) is (path[-1] == "b"), path


@pytest.mark.parametrize("scan_layers", [False, True])
def test_logits_equal_those_of_the_merged_export(scan_layers, tmp_path):
    model = trained(qk_norm=False, scan_layers=scan_layers)
    adapted = logits(model)
    base = logits(tiny_qwen3(qkv_bias=True, qk_norm=False))
    assert jnp.abs(adapted - base).max() > 0.1
    save_policy(model, tmp_path / "merged")
    merged = load_policy(tmp_path / "merged")
    assert lora_config(merged) is None and lora_config(model) == CONFIG
    np.testing.assert_allclose(logits(merged), adapted, atol=1e-5)


def test_alpha_over_rank_scales_the_sum():
    base = logits(tiny_qwen3(qkv_bias=True))
    small = 1e-3  # where logits move in proportion
    moved = [logits(trained(LoraConfig(3, alpha * small))) - base for alpha in (2.0, 6.0)]
    np.testing.assert_allclose(moved[1], 3 * moved[0], atol=2e-2 * float(abs(moved[1]).max()))
    assert abs(moved[0]).max() > 1e-5


def test_adapters_are_on_the_named_projections_of_every_layer_only():
    _, state = nnx.split(trained(LoraConfig(2, 2.0, ("k_proj", "gate_proj"))))
    learned, frozen = split_learned(state)
    shapes = {path: v.get_value().shape for path, v in nnx.to_flat_state(learned)}
    assert shapes == {
        ("layers", i, *module, "lora", factor): shape
        for i in range(2)
        for module, factor, shape in (
            (("attention", "k"), "a", (32, 2)),
            (("attention", "k"), "b", (2, 2, 12)),
            (("mlp", "gate"), "a", (32, 2)),
            (("mlp", "gate"), "b", (2, 48)),
        )
    }
    assert not jax.tree.leaves(nnx.filter_state(frozen, LoraParam))
    joined = join_learned(learned, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(state), strict=True):
        assert a is b


def test_without_adapters_everything_is_learned():
    _, state = nnx.split(tiny_qwen3())
    learned, frozen = split_learned(state)
    assert learned is state and not jax.tree.leaves(frozen)
    assert join_learned(learned, frozen) is state


def test_factors_are_float32_over_a_narrow_base():
    model = trained(param_dtype="bfloat16", dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, LoraParam))} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, BASE))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_sharded_logits_equal_one_devices(sizes, scan_layers):
    """Factors lie as the kernel's inputs and outputs do; sizes that do not divide stay whole."""
    model = trained(scan_layers=scan_layers)
    graphdef, params = nnx.split(model)
    mesh = make_mesh(*sizes)
    placed = shard_params(params, mesh)
    adapters = nnx.to_flat_state(nnx.filter_state(placed, LoraParam))
    factors = {path[-3:]: v.get_value() for path, v in adapters}
    _, fsdp, tensor = sizes
    b = factors["up", "lora", "b"]
    assert b.sharding.shard_shape(b.shape)[-1] == 48 // tensor
    a = factors["up", "lora", "a"]
    assert a.sharding.shard_shape(a.shape)[-2:] == (32 // fsdp, 3)
    np.testing.assert_allclose(run(graphdef, placed), run(graphdef, params), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rank": 0}, ["rank", 0]),
        ({"alpha": -1.0}, ["alpha", -1.0]),
        ({"targets": ("q_proj", "lm_head")}, ["targets", "lm_head", "q_proj"]),
        ({"targets": ()}, ["targets", "()"]),
        ({"targets": ("q_proj", "q_proj")}, ["targets", ("q_proj", "q_proj")]),
    ],
)
def test_what_makes_no_adapter_is_refused(fields, named):
    options = {"rank": 2, "alpha": 4.0, "targets": tuple(TARGETS)} | fields
    assert_names(refused(LoraConfig, **options), *named)
