"""Device meshes and the one table that maps logical axes to mesh axes.

A parameter names its dimensions (``nnx.Param(..., logical_axes=("embed", "mlp"))``); no layer names
a mesh axis. Another table over the same mesh (one for the learner, one for decoding) is another
``Rules``; moving between them is ``shard_params`` again.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from agenticrec_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")
Rules = Mapping[str, str | tuple[str, ...] | None]

# Logical axis -> mesh axis (or axes), None: replicated.
RULES: Rules = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "norm": None,
    "layers": None,
    "rank": None,
}

_traced_rules = contextvars.ContextVar("rules", default=RULES)


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of ``data x fsdp x tensor`` devices (default: all of them) with automatic axes.

    Devices of several processes come process by process: each then holds one run of rows, and a
    tensor group lies within one, which rollouts need. (The order that JAX finds for a slice's wires
    breaks this for most sizes: on v5e:4x4 a tensor group of 4 is a row of chips of two hosts.)

    Raises:
        InputError: if the sizes do not multiply to the number of devices.
    """
    shape = (data, fsdp, tensor)
    devices = jax.devices() if devices is None else devices
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise InputError(
            f"mesh data={data} fsdp={fsdp} tensor={tensor} takes {math.prod(shape)} devices; "
            f"found {len(devices)}"
        )
    types = (AxisType.Auto,) * len(shape)
    if len({device.process_index for device in devices}) > 1:
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        return Mesh(np.array(ordered).reshape(shape), MESH_AXES, axis_types=types)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)


def partition_spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Rules = RULES,
    name: str = "array",
) -> PartitionSpec:
    """The placement of one array whose dimensions are called ``axes``.

    A dimension that its mesh axes do not divide is replicated: exact, only larger. So 2 key heads
    on ``tensor=4`` stay whole on every device instead of being split inside a head.

    Raises:
        InputError: names the array if an axis is in no rule, a rule names no axis of the mesh, the
            axes do not match the shape, or two dimensions ask for the same mesh axis.
    """
    if len(axes) != len(shape):
        raise InputError(f"{name}: {len(axes)} logical axes {tuple(axes)} for shape {tuple(shape)}")
    wanted = [_mesh_axes(axis, mesh, rules, name) for axis in axes]
    flat = [mesh_axis for group in wanted for mesh_axis in group]
    for mesh_axis in flat:
        if flat.count(mesh_axis) > 1:
            raise InputError(
                f"{name}: the rules put two dimensions of {tuple(axes)} on mesh axis {mesh_axis}"
            )
    fits = [size % _devices(group, mesh) == 0 for size, group in zip(shape, wanted, strict=True)]
    return PartitionSpec(
        *(_entry(group) if fit else None for group, fit in zip(wanted, fits, strict=True))
    )


def _mesh_axes(axis: str | None, mesh: Mesh, rules: Rules, name: str) -> tuple[str, ...]:
    if axis is None:
        return ()
    if axis not in rules:
        raise InputError(f"{name}: logical axis {axis} has no rule; known: {', '.join(rules)}")
    rule = rules[axis]
    group = () if rule is None else (rule,) if isinstance(rule, str) else tuple(rule)
    for mesh_axis in group:
        if mesh_axis not in mesh.shape:
            raise InputError(
                f"{name}: the rule for {axis} names mesh axis {mesh_axis}; "
                f"the mesh has {', '.join(mesh.axis_names)}"
            )
    return group


def _devices(group: tuple[str, ...], mesh: Mesh) -> int:
    return math.prod(mesh.shape[mesh_axis] for mesh_axis in group)


def _entry(group: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return group if len(group) > 1 else group[0] if group else None


def tree_shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The same tree with a ``NamedSharding`` for every array.

    Works on parameters, gradients and optimizer states: whatever carries ``logical_axes`` is placed
    by them, every other array (a step counter) is replicated.
    """

    def choose(path, leaf):
        if not isinstance(leaf, nnx.Variable):
            return replicated(mesh)
        value = leaf.get_value()
        axes = leaf.get_metadata().get("logical_axes", (None,) * value.ndim)
        spec = partition_spec(axes, value.shape, mesh, rules, jax.tree_util.keystr(path))
        return leaf.replace(NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(choose, tree, is_leaf=is_variable)


def shard_params(params: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Places (or moves) parameters, or any tree that carries their logical axes, on the mesh."""
    return jax.tree.map(put_sharded, params, tree_shardings(params, mesh, rules))


def put_sharded(value: Any, sharding: NamedSharding) -> jax.Array:
    """Puts one array where ``sharding`` says.

    What lies on the devices of ``sharding`` moves between them; ``jax.device_put`` would read it
    into the host's memory where its parts are cut otherwise. If the mesh spans processes and
    ``value`` is on this host, every process must hold the same whole value; each keeps its part.
    """
    if isinstance(value, jax.Array) and value.sharding.device_set == sharding.device_set:
        same = value.sharding.is_equivalent_to(sharding, value.ndim)
        return jax.device_put(value, sharding) if same else _mover(sharding)(value)
    here = not isinstance(value, jax.Array) or value.is_fully_addressable
    if sharding.is_fully_addressable or not here:
        return jax.device_put(value, sharding)
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


@functools.lru_cache
def _mover(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=sharding)


@contextlib.contextmanager
def traced_on(mesh: Mesh | None, rules: Rules = RULES) -> Iterator[None]:
    """Names the mesh and its table while a program is traced, for what XLA cannot split well."""
    if mesh is None:
        yield
        return
    token = _traced_rules.set(rules)
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            yield
    finally:
        _traced_rules.reset(token)


def traced_spec(
    axes: Sequence[str | None], shape: Sequence[int], name: str
) -> PartitionSpec | None:
    """``partition_spec`` by the mesh and table of ``traced_on``; None where no mesh is named."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else partition_spec(axes, shape, mesh, _traced_rules.get(), name)


def constrain(array: jax.Array, axes: Sequence[str | None], name: str) -> jax.Array:
    """Places an array by its logical axes inside a program; as it is where no mesh is named."""
    spec = traced_spec(axes, array.shape, name)
    return array if spec is None else jax.lax.with_sharding_constraint(array, spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Rows over the data and fsdp axes; every other dimension whole."""
    return NamedSharding(mesh, PartitionSpec(_entry(_mesh_axes("batch", mesh, rules, "batch"))))


def batch_shardings(batch: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The same tree with rows split for every array, or whole where rows do not divide."""

    def choose(array):
        axes = ("batch",) + (None,) * (np.ndim(array) - 1) if np.ndim(array) else ()
        return NamedSharding(mesh, partition_spec(axes, np.shape(array), mesh, rules, "batch"))

    return jax.tree.map(choose, batch)


def shard_batch(batch: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Places every array of a batch by ``batch_shardings``."""
    return jax.tree.map(put_sharded, batch, batch_shardings(batch, mesh, rules))


def abstract(tree: Any, shardings: Any = None) -> Any:
    """Shapes and types of a tree's arrays, and where ``shardings`` would have them: no numbers."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    if shardings is None:
        return shapes
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def is_variable(leaf: Any) -> bool:
    """Whether a node is a variable of a model: the ``is_leaf`` of ``jax.tree`` functions.

    (Flax's own flattening keeps its arrays alive until garbage is collected.)
    """
    return isinstance(leaf, nnx.Variable)
