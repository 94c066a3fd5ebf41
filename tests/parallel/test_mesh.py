"""The table from logical to mesh axes, and a sharded policy equal to one on a single device."""

from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from agenticrec_jax.models.masks import Context
from agenticrec_jax.models.qwen3 import segment_positions
from agenticrec_jax.parallel.mesh import (
    RULES,
    abstract,
    batch_sharding,
    batch_shards,
    constrain,
    make_mesh,
    partition_spec,
    replicated,
    shard_batch,
    shard_params,
    traced_on,
    tree_shardings,
)
from agenticrec_jax.testing.errors import assert_names, refused
from agenticrec_jax.testing.models import tiny_qwen3


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=2, fsdp=2, tensor=2)


def test_mesh_has_automatic_axes(mesh):
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert make_mesh(tensor=3, devices=jax.devices()[:3]).devices.size == 3


@pytest.mark.parametrize("sizes", [(3, 1, 1), (1, 1, 1), (0, 4, 2), (-2, -2, 2)])
def test_sizes_that_do_not_match_the_devices_are_refused(sizes):
    data, fsdp, tensor = sizes
    sentence = refused(make_mesh, data=data, fsdp=fsdp, tensor=tensor)
    assert_names(sentence, f"data={data}", f"fsdp={fsdp}", f"tensor={tensor}", 8)


def test_several_slices_are_the_first_axis_and_split_nothing_but_rows():
    mesh = make_mesh(slices=2, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"slice": 2, "data": 1, "fsdp": 2, "tensor": 2}
    assert mesh.devices.reshape(2, 4).tolist() == [jax.devices()[:4], jax.devices()[4:]]
    assert batch_sharding(mesh).spec == P(("slice", "data", "fsdp"))
    assert batch_shards(mesh) == 4
    _, params = nnx.split(nnx.eval_shape(tiny_qwen3))
    shardings = jax.tree.leaves(tree_shardings(params, mesh))
    assert all("slice" not in str(sharding.spec) for sharding in shardings)
    one = make_mesh(data=2, fsdp=2, tensor=2)
    assert [s.spec for s in shardings] == [
        s.spec for s in jax.tree.leaves(tree_shardings(params, one))
    ]


@dataclass(frozen=True)
class StandIn:
    """A device, as far as a mesh reads it."""

    id: int
    process_index: int
    slice_index: int
    platform: str
    device_kind: str = "stand-in"


def devices_of(*owners, platform="cpu"):
    """Devices whose processes and slices are given, in an order of no meaning."""
    devices = [StandIn(i, *owner, platform) for i, owner in enumerate(owners)]
    return devices[1::2] + devices[::2]


@pytest.mark.parametrize(
    "platform,owners",
    [  # process and slice_index of each device
        ("tpu", [(0, 0), (1, 0), (2, 1), (3, 1)]),
        ("tpu", [(2, 0), (3, 0), (0, 1), (1, 1)]),
        ("gpu", [(0, 0), (1, 1), (2, 2), (3, 3)]),  # groups of NVLink, of which it takes two
    ],
)
def test_slices_are_those_of_the_devices_or_runs_of_processes(platform, owners):
    devices = devices_of(*owners, platform=platform)
    mesh = make_mesh(slices=2, fsdp=2, devices=devices)
    found = [[(d.process_index, d.slice_index) for d in row.flat] for row in mesh.devices]
    assert found == [owners[:2], owners[2:]]


@pytest.mark.parametrize(
    "slices,platform,owners,named",
    [
        (2, "tpu", [(0, 0), (1, 0)], ["slices", 2, 1]),
        (1, "tpu", [(0, 0), (1, 1)], ["slices", 1, 2]),
        (2, "cpu", [(p, 0) for p in (0, 0, 1, 1, 2, 2)], ["slices", 2, 3, "processes"]),
    ],
)
def test_slices_that_the_devices_do_not_form_are_refused(slices, platform, owners, named):
    devices = devices_of(*owners, platform=platform)
    sizes = {"slices": slices, "data": len(devices) // slices}
    assert_names(refused(make_mesh, **sizes, devices=devices), *named)


def test_table_decides_the_placement(mesh):
    def spec(axes, shape):
        return partition_spec(axes, shape, mesh)

    assert spec(("embed", "heads", "head_dim"), (32, 4, 12)) == P("fsdp", "tensor", None)
    assert spec(("vocab", "embed"), (96, 32)) == P("tensor", "fsdp")
    assert spec(("batch", None), (8, 3)) == P(("data", "fsdp"), None)
    assert spec((), ()) == P()


def test_dimensions_that_do_not_divide_are_replicated(mesh):
    assert partition_spec(("embed", "kv_heads", "head_dim"), (33, 1, 8), mesh) == P(
        None, None, None
    )
    assert partition_spec(("batch", None), (6, 3), mesh) == P(None, None)
    assert partition_spec(("embed", "mlp"), (33, 48), mesh) == P(None, "tensor")


@pytest.mark.parametrize(
    "axes,rules,named",
    [
        (("mlp", "heads"), RULES, ["mlp", "heads", "mesh axis tensor"]),
        (("embed", "mlp"), {"embed": "fsdp", "mlp": ("fsdp", "tensor")}, ["mesh axis fsdp"]),
        (("embed", "mlp"), {"embed": "fsdp"}, ["logical axis", "mlp", "embed"]),
        (("embed", "mlp"), {"embed": "fsdp", "mlp": "model"}, ["mlp", "model", "tensor"]),
        (("embed",), RULES, [("embed",), (32, 48)]),
    ],
)
def test_a_bad_table_is_refused(axes, rules, named, mesh):
    sentence = refused(partition_spec, axes, (32, 48), mesh, rules, "layers.up")
    assert_names(sentence, "layers.up", *named)


def test_every_parameter_of_the_policy_has_axes_and_none_collide(mesh):
    model = nnx.eval_shape(
        lambda: tiny_qwen3(qkv_bias=True, o_bias=True, tie_word_embeddings=False)
    )
    _, params = nnx.split(model)
    for path, variable in nnx.to_flat_state(params):
        assert len(variable.get_metadata()["logical_axes"]) == variable.get_value().ndim, path
    shardings = nnx.to_flat_state(tree_shardings(params, mesh))
    split = {path for path, v in shardings if any(v.get_value().spec)}
    kernels = {path for path, _ in shardings if path[-1] == "kernel"} | {("embedding",)}
    assert kernels <= split


def test_optimizer_state_follows_its_parameters(mesh):
    _, params = nnx.split(tiny_qwen3())
    optimizer = optax.adam(1e-3)
    state = jax.eval_shape(optimizer.init, params)
    shardings = tree_shardings(state, mesh)
    assert shardings[0].count == replicated(mesh)
    assert shardings[0].mu["layers"][0]["mlp"]["up"]["kernel"].get_value().spec == P(
        "fsdp", "tensor"
    )
    placed = jax.jit(optimizer.init, out_shardings=shardings)(shard_params(params, mesh))
    kernel = placed[0].nu["layers"][1]["mlp"]["down"]["kernel"].get_value()
    assert kernel.sharding.shard_shape(kernel.shape) == (24, 16)


def test_parameters_move_between_tables(mesh):
    decode = MappingProxyType(dict(RULES) | {"embed": None})
    _, params = nnx.split(tiny_qwen3())
    learner = shard_params(params, mesh)
    served = shard_params(learner, mesh, decode)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(served), strict=True):
        np.testing.assert_array_equal(before, after)
    assert served["embedding"].get_value().sharding.spec == P("tensor", None)
    assert learner["embedding"].get_value().sharding.spec == P("tensor", "fsdp")


def test_batches_are_split_by_rows(mesh):
    assert batch_sharding(mesh).spec == P(("data", "fsdp"))
    batch = shard_batch({"ids": np.zeros((8, 5)), "odd": np.zeros((3, 2)), "step": 7}, mesh)
    shapes = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), batch)
    assert shapes == {"ids": (2, 5), "odd": (3, 2), "step": ()}


@pytest.mark.parametrize(
    "axes,kv_heads,num_layers",
    [
        ((2, 2, 2), 2, 2),
        ((2, 2, 2), 1, 1),
        *(pytest.param(a, 1, 1, marks=pytest.mark.slow) for a in ((1, 8, 1), (1, 1, 8))),
    ],
)
def test_sharded_logits_and_gradients_equal_those_of_one_device(kv_heads, num_layers, axes):
    """Two streams (prompts once, completions after), which uses every path of the model."""
    mesh = make_mesh(**dict(zip(("data", "fsdp", "tensor"), axes, strict=True)))
    graphdef, params = nnx.split(tiny_qwen3(num_kv_heads=kv_heads, num_layers=num_layers))
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 96, (4, 6))
    completions = rng.integers(0, 96, (8, 5))
    valid = np.arange(6) < np.array([[6], [4], [5], [6]])

    def loss(params, prompts, completions, valid):
        model = nnx.merge(graphdef, params)
        _, kv = model.forward(prompts, segment_positions(prompts), valid)
        positions = jnp.repeat(valid.sum(1), 2)[:, None] + segment_positions(completions)
        real = jnp.ones(completions.shape, bool)
        hidden, _ = model.forward(completions, positions, real, Context(kv, valid))
        logits = model.logits(hidden)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), completions[..., None], 2)
        return -chosen.mean(), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    want = run(params, prompts, completions, valid)
    batch = shard_batch({"prompts": prompts, "completions": completions, "valid": valid}, mesh)
    got = run(shard_params(params, mesh), **batch)
    assert len(jax.tree.leaves(got)[0].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


@pytest.mark.parametrize("changes,expected", [({}, ("tensor",)), ({"vocab": "fsdp"}, ("fsdp",))])
def test_inside_a_program_the_table_that_was_named_is_used(changes, expected, mesh):
    @jax.jit
    def run(table):
        with traced_on(mesh, {**RULES, **changes}):
            return constrain(2 * table, ("vocab", None), "table")

    placed = run(jax.device_put(np.ones((8, 4)), replicated(mesh)))
    assert tuple(axis for axis in placed.sharding.spec if axis) == expected
    assert constrain(placed, ("vocab", None), "table") is placed  # no mesh is named here


def test_abstract_arrays_have_shape_type_and_place_but_no_numbers(mesh):
    _, params = nnx.split(tiny_qwen3())
    shapes = abstract(params, tree_shardings(params, mesh))
    placed = shard_params(params, mesh)
    for a, b in zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True):
        assert isinstance(a, jax.ShapeDtypeStruct)
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
    assert all(x.sharding is None for x in jax.tree.leaves(abstract(params)))
