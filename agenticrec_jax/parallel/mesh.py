"""Device meshes and the table that maps logical axes to mesh axes.

A parameter names its dimensions (``nnx.Param(..., logical_axes=("embed", "mlp"))``), and no layer
names a mesh axis. The learner and the rollout engine use two tables, ``Rules``, over the same mesh;
``shard_params`` moves parameters from one to the other.

With ``RULES`` on a mesh of data=2, fsdp=2, tensor=4 a kernel [D, N, H] with the axes ("embed",
"heads", "head_dim") has the placement ("fsdp", "tensor", None): a device has D / 2 inputs of N / 4
heads, and the two halves of ``data`` have copies.
"""

import collections
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

from agenticrec_jax.errors import InputError, expect

SLICE = "slice"  # the axis of a mesh over several slices
MESH_AXES = ("data", "fsdp", "tensor")  # within a slice
Rules = Mapping[str, str | tuple[str, ...] | None]

# Logical axis -> mesh axis or axes; None: replicated. A mesh over one slice has no axis SLICE.
RULES: Rules = {
    "batch": (SLICE, "data", "fsdp"),
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

# A context variable and not a global: programs with different tables may be traced in threads.
_traced_rules = contextvars.ContextVar("rules", default=RULES)


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    slices: int = 1,
) -> Mesh:
    """Makes a mesh of ``slices x data x fsdp x tensor`` devices with automatic axes.

    With one slice the mesh has the axes ``MESH_AXES``, with several ``SLICE`` before them. No other
    axis crosses slices. TPUs know theirs. Other devices are split process by process, or those of a
    single process in their order: ``slices=2`` of 4 hosts with GPUs are hosts 0, 1 and hosts 2, 3.

    Args:
      data: copies of the parameters in a slice, each for some rows of a batch.
      fsdp: devices that rows and parameters are split over.
      tensor: devices that heads, feed-forward and vocabulary are split over.
      devices: their devices; None for all.
      slices: groups of devices with a fast network within and a slow one between them. Each has
        copies of the parameters and some rows of a batch.

    Raises:
      InputError: the sizes do not multiply to the number of devices, or the devices do not form
        that many slices.
    """
    shape = (data, fsdp, tensor)
    devices = jax.devices() if devices is None else devices
    sizes = (slices, *shape)
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise InputError(
            f"mesh slices={slices} data={data} fsdp={fsdp} tensor={tensor} takes "
            f"{math.prod(sizes)} devices; found {len(devices)}"
        )
    # As `mesh_utils.create_hybrid_device_mesh`, which does not keep the hosts of a slice together.
    arranged = [_arranged(shape, group) for group in _by_slice(devices, slices)]
    if slices == 1:
        return auto_mesh(arranged[0], MESH_AXES)
    return auto_mesh(np.stack(arranged), (SLICE, *MESH_AXES))


def within_slice(rules: Rules) -> Rules:
    """Returns the rules of an array that each slice has for itself."""
    axes = {axis: (rule,) if isinstance(rule, str) else rule for axis, rule in rules.items()}
    return {axis: rule and tuple(x for x in rule if x != SLICE) for axis, rule in axes.items()}


def auto_mesh(devices: np.ndarray, axes: tuple[str, ...]) -> Mesh:
    """Returns a mesh of an array of devices, all of whose axes are automatic."""
    return Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))


def _by_slice(devices: Sequence[jax.Device], slices: int) -> list[list[jax.Device]]:
    """Returns the devices of each slice.

    Raises:
      InputError: they form another number of slices.
    """
    on_tpu = devices[0].platform == "tpu"
    by_index = collections.defaultdict(list)
    for device in devices:
        # Of a GPU the attribute counts groups of NVLink, and a lone slice may be without it.
        by_index[getattr(device, "slice_index", 0) if on_tpu else 0].append(device)
    if on_tpu:
        expect(len(by_index) == slices, "mesh slices", slices, f"{len(by_index)}, those of the TPU")
        return [by_index[index] for index in sorted(by_index)]
    processes = len({device.process_index for device in devices})
    splits = processes == 1 or processes % slices == 0
    expect(splits, "mesh slices", slices, f"a divisor of the {processes} processes")
    ordered = _by_process(devices) if slices > 1 else devices
    size = len(devices) // slices
    return [ordered[start : start + size] for start in range(0, len(devices), size)]


def _arranged(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the devices of a slice as [data, fsdp, tensor]."""
    if len({device.process_index for device in devices}) > 1:
        # Process by process, so that each has one run of rows and a tensor group lies within one
        # process, which rollouts need. `jax.make_mesh` follows a slice's wires instead: on v5e:4x4
        # a tensor group of 4 would be a row of chips of two hosts.
        return np.array(_by_process(devices)).reshape(shape)
    return jax.make_mesh(shape, MESH_AXES, devices=devices).devices


def _by_process(devices: Sequence[jax.Device]) -> list[jax.Device]:
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def partition_spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh | AbstractMesh,
    rules: Rules = RULES,
    name: str = "array",
) -> PartitionSpec:
    """Returns the placement of one array.

    A dimension that its mesh axes do not divide is replicated, which takes more memory and changes
    no number. So 2 key heads on ``tensor=4`` stay whole on every device.

    Args:
      axes: logical names of the dimensions; None for one that is never split.
      shape: of the array.
      mesh: of the devices.
      rules: logical axis to mesh axis.
      name: of the array, for errors.

    Raises:
      InputError: names the array if an axis is in no rule, a rule names no axis of the mesh, the
        axes do not match the shape, or two dimensions have the same mesh axis.
    """
    fits = len(axes) == len(shape)
    expect(fits, f"{name}: logical axes", tuple(axes), f"one for each of {tuple(shape)}")
    groups = [_mesh_axes(axis, mesh, rules, name) for axis in axes]
    used = [mesh_axis for group in groups for mesh_axis in group]
    # JAX refuses this too, but without the array's name.
    for mesh_axis in used:
        if used.count(mesh_axis) > 1:
            raise InputError(
                f"{name}: found two dimensions of {tuple(axes)} on mesh axis {mesh_axis}, expected "
                "rules with one"
            )
    return PartitionSpec(
        *(
            _entry(group) if size % _device_count(group, mesh) == 0 else None
            for size, group in zip(shape, groups, strict=True)
        )
    )


def _mesh_axes(axis: str | None, mesh: Mesh, rules: Rules, name: str) -> tuple[str, ...]:
    if axis is None:
        return ()
    expect(axis in rules, f"{name}: logical axis", axis, f"one of {', '.join(rules)}")
    rule = rules[axis]
    group = () if rule is None else (rule,) if isinstance(rule, str) else tuple(rule)
    if SLICE not in mesh.shape:
        group = tuple(mesh_axis for mesh_axis in group if mesh_axis != SLICE)
    for mesh_axis in group:
        expected = f"one of {', '.join(mesh.axis_names)}"
        expect(mesh_axis in mesh.shape, f"{name}: mesh axis of {axis}", mesh_axis, expected)
    return group


def _device_count(group: tuple[str, ...], mesh: Mesh) -> int:
    return math.prod(mesh.shape[mesh_axis] for mesh_axis in group)


def _entry(group: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return group if len(group) > 1 else group[0] if group else None


def tree_shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Returns the same tree with a ``NamedSharding`` for every array.

    For parameters, gradients and optimizer states: variables with ``logical_axes`` are placed by
    them, and every other array (a step counter) is replicated.
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
    """Puts parameters, or another tree with their logical axes, on a mesh, or moves them there."""
    return jax.tree.map(put_sharded, params, tree_shardings(params, mesh, rules))


def put_sharded(value: Any, sharding: NamedSharding) -> jax.Array:
    """Puts one array on devices by ``sharding``.

    If the mesh spans processes and ``value`` is on this host, every process must have the same
    whole value, and puts its shards of it.
    """
    if isinstance(value, jax.Array) and value.sharding.device_set == sharding.device_set:
        # Between the same devices a program moves the array. `jax.device_put` would read it into
        # the host's memory where the two shardings cut it differently.
        same = value.sharding.is_equivalent_to(sharding, value.ndim)
        return jax.device_put(value, sharding) if same else _mover(sharding)(value)
    on_host = not isinstance(value, jax.Array) or value.is_fully_addressable
    if sharding.is_fully_addressable or not on_host:
        return jax.device_put(value, sharding)
    # Each process reads the slices of its devices.
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


@functools.lru_cache
def _mover(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: x, out_shardings=sharding)


@contextlib.contextmanager
def traced_on(mesh: Mesh | None, rules: Rules = RULES) -> Iterator[None]:
    """Names the mesh and its table while a program is traced.

    Code that XLA cannot split well reads them by ``traced_spec`` and ``constrain``.
    """
    if mesh is None:
        yield
        return
    token = _traced_rules.set(rules)
    # Inside ``jax.shard_map`` the mesh is there already, and some of its axes are not automatic.
    context = jax.sharding.get_abstract_mesh()
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh if context.empty else context):
            yield
    finally:
        _traced_rules.reset(token)


def traced_spec(
    axes: Sequence[str | None], shape: Sequence[int], name: str
) -> PartitionSpec | None:
    """Returns ``partition_spec`` by the mesh and table of ``traced_on``, or None without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else partition_spec(axes, shape, mesh, _traced_rules.get(), name)


def constrain(array: jax.Array, axes: Sequence[str | None], name: str) -> jax.Array:
    """Constrains an array's placement inside a program; without ``traced_on`` returns it as is."""
    spec = traced_spec(axes, array.shape, name)
    return array if spec is None else jax.lax.with_sharding_constraint(array, spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Returns the sharding of a batch: rows by the rule of ``batch``, other dimensions whole."""
    return NamedSharding(mesh, PartitionSpec(_entry(_mesh_axes("batch", mesh, rules, "batch"))))


def batch_shards(mesh: Mesh, rules: Rules = RULES) -> int:
    """Returns the number of shards that ``batch_sharding`` splits rows into."""
    return _device_count(_mesh_axes("batch", mesh, rules, "batch"), mesh)


def batch_shardings(batch: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Returns ``batch_sharding`` for every array; one whose rows do not divide stays whole."""

    def choose(array):
        axes = ("batch",) + (None,) * (np.ndim(array) - 1) if np.ndim(array) else ()
        return NamedSharding(mesh, partition_spec(axes, np.shape(array), mesh, rules, "batch"))

    return jax.tree.map(choose, batch)


def shard_batch(batch: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Puts every array of a batch on the mesh by ``batch_shardings``."""
    return jax.tree.map(put_sharded, batch, batch_shardings(batch, mesh, rules))


def abstract(tree: Any, shardings: Any = None) -> Any:
    """Returns shapes and dtypes of a tree's arrays, with their placement by ``shardings``."""
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
