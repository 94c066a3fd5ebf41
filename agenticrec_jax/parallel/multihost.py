"""Several processes: start-up, who writes, global arrays, and values that every host must see.

Every function also works in a single process, so callers need no special case.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array

from agenticrec_jax.errors import InputError
from agenticrec_jax.parallel.mesh import (
    MESH_AXES,
    RULES,
    Rules,
    batch_sharding,
    shard_batch,
    tree_shardings,
)

COORDINATOR = "AGENTICREC_COORDINATOR"
PROCESSES = "AGENTICREC_PROCESSES"
PROCESS = "AGENTICREC_PROCESS"


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the other processes; call before any other use of JAX.

    Arguments left None are read from the environment (``AGENTICREC_COORDINATOR``,
    ``AGENTICREC_PROCESSES``, ``AGENTICREC_PROCESS``). With neither, this is a single process.
    ``coordinator="auto"`` lets JAX find the cluster (TPU pods, Slurm). CPU processes talk by gloo.

    Args:
        coordinator: ``host:port`` of process 0.
        processes: how many there are.
        process: which this is, from 0.

    Raises:
        InputError: if only some of the three are given, ``process`` is out of range, or there is no
            cluster to find.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    processes = _number(processes, PROCESSES)
    process = _number(process, PROCESS)
    if coordinator is None and processes is None and process is None:
        return
    if coordinator == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                "found no cluster that JAX knows, expected a TPU pod or Slurm, or "
                f"{COORDINATOR}, {PROCESSES} and {PROCESS} in the environment"
            ) from error
        return
    if coordinator is None or processes is None or process is None:
        raise InputError(
            f"several processes need coordinator, processes and process together (or {COORDINATOR},"
            f" {PROCESSES}, {PROCESS}); found {coordinator}, {processes}, {process}"
        )
    if not 0 <= process < processes:
        raise InputError(f"process {process} is not one of {processes}, counted from 0")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process)


def _number(value: int | None, variable: str) -> int | None:
    if value is not None:
        return value
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise InputError(f"environment variable {variable} is {text!r}; expected a number")
    return int(text)


def is_main() -> bool:
    """Whether this is process 0: the one that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here; ``name`` must be the same on all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_on_main(check: Callable[[], Any]) -> None:
    """Runs ``check`` on process 0; if it raises InputError, every process raises the same one.

    So bad input ends all processes with one sentence, instead of one with it and the others
    waiting for ever.
    """
    message = ""
    if is_main():
        try:
            check()
        except InputError as error:
            message = str(error)
    message = allgather(message)[0]
    if message:
        raise InputError(message)


@contextlib.contextmanager
def main_writes(name: str) -> Iterator[bool]:
    """Yields whether this process writes, and holds the others until it has.

    The others also wait if the writer fails, so that its error is the one that is seen.
    """
    try:
        yield is_main()
    finally:
        barrier(name)


def allgather(value: Any) -> list[Any]:
    """Every process's ``value`` (anything JSON can hold), in process order, on all of them."""
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(data), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:n].tobytes().decode())
        for row, n in zip(rows, lengths.reshape(-1), strict=True)
    ]


def check_same(value: Any, what: str) -> None:
    """Refuses to go on if the processes differ in ``value`` (a config, a hash of the data).

    Raises:
        InputError: names ``what`` and the values found, on every process.
    """
    values = allgather(value)
    if any(other != values[0] for other in values):
        raise InputError(f"{what} differs between processes: {values}; expected the same on all")


def process_rows(total: int, mesh: Mesh, rules: Rules = RULES) -> slice:
    """Which rows of a global batch of ``total`` this process must supply.

    Raises:
        InputError: if the rows do not divide over the mesh, or are not one run of rows.
    """
    sharding = batch_sharding(mesh, rules)
    parts = sharding.num_devices // _replicas(mesh, sharding)
    if total % parts:
        raise InputError(f"a batch of {total} rows does not divide over {parts} parts of the mesh")
    spans = sorted(
        {index[0].indices(total)[:2] for index in _local_indices(sharding, total).values()}
    )
    if any(a[1] != b[0] for a, b in zip(spans, spans[1:], strict=False)):
        raise InputError(f"process {jax.process_index()} holds rows {spans}, not one run of rows")
    return slice(spans[0][0], spans[-1][1])


def _local_indices(sharding, total: int):
    return sharding.addressable_devices_indices_map((total,))


def _replicas(mesh: Mesh, sharding) -> int:
    spec = sharding.spec[0] or ()
    split = (spec,) if isinstance(spec, str) else spec
    return int(np.prod([size for axis, size in mesh.shape.items() if axis not in split]))


def global_batch(local: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Arrays over all processes from each one's own rows (those of ``process_rows``).

    On a mesh of one process, ``shard_batch``.
    """
    if not mesh.is_multi_process:
        return shard_batch(local, mesh, rules)
    sharding = batch_sharding(mesh, rules)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), local
    )


def nonempty_local_items(items: Sequence) -> list:
    """This process's part of what all of them hold: every n-th item.

    Raises:
        InputError: if there are fewer items than processes.
    """
    processes = jax.process_count()
    if len(items) < processes:
        raise InputError(
            f"found {len(items)} prompts in a step, expected at least one for each of the "
            f"{processes} processes"
        )
    return local_items(items)


def local_items(items: Sequence) -> list:
    """Every n-th item for n processes, of which this one may have none."""
    return list(items[jax.process_index() :: jax.process_count()])


def interleaved(parts: Sequence[Sequence]) -> list:
    """The items of which ``local_items`` gave each process its part, in the order they had."""
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def row_shards(mesh: Mesh | None, rules: Rules = RULES) -> int:
    """Into how many parts the rows of this process are split.

    Raises:
        InputError: if a process holds rows of another too, and so could not roll out its own.
    """
    if mesh is None:
        return 1
    sharding = batch_sharding(mesh, rules)
    parts = sharding.num_devices // _replicas(mesh, sharding)
    rows = process_rows(parts, mesh, rules)
    own = rows.stop - rows.start
    processes = len({device.process_index for device in mesh.devices.flat})
    if own * processes != parts:
        raise InputError(
            f"mesh {dict(mesh.shape)}: {parts} parts of the batch do not divide over {processes} "
            "processes; expected data x fsdp to be a multiple of the processes"
        )
    return own


def local_mesh(mesh: Mesh | None) -> Mesh | None:
    """The mesh of this process's own devices in ``mesh``, for its rollouts: data x 1 x tensor.

    A mesh of one process is its own local mesh.
    """
    if mesh is None or not mesh.is_multi_process:
        return mesh
    return _mesh(_devices_by_process(mesh)[jax.process_index()], MESH_AXES)


def local_params(params: Any, rules: Rules = RULES) -> Any:
    """Parameters that are spread over processes, whole on the devices of each (``local_mesh``).

    They move between devices only (every process must call this): each array is resharded by
    ``rules`` over the local meshes of the processes side by side; the parts that lie here make the
    array on the local mesh, without a copy. Parameters that are here already stay as they are.
    """
    leaf = jax.tree.leaves(params)[0]
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return params
    devices = _devices_by_process(leaf.sharding.mesh)
    side_by_side = _mesh(devices, ("process", *MESH_AXES))
    own = _mesh(devices[jax.process_index()], MESH_AXES)

    def localise(array: Array, sharding: NamedSharding) -> Array:
        parts = [shard.data for shard in jax.device_put(array, sharding).addressable_shards]
        here = NamedSharding(own, sharding.spec)
        return jax.make_array_from_single_device_arrays(array.shape, here, parts)

    return jax.tree.map(localise, params, tree_shardings(params, side_by_side, rules))


def _mesh(devices: np.ndarray, axes: tuple[str, ...]) -> Mesh:
    return Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))


def _devices_by_process(mesh: Mesh) -> np.ndarray:
    """The devices of a mesh as [processes, data, 1, tensor]."""
    rows = mesh.devices.reshape(-1, mesh.shape["tensor"])
    owners = [{device.process_index for device in row} for row in rows]
    if any(len(owner) > 1 for owner in owners):
        raise InputError(
            f"mesh {dict(mesh.shape)}: tensor={mesh.shape['tensor']} spans processes; "
            "expected every tensor group within one"
        )
    first = [owner.pop() for owner in owners]
    by_process = [rows[[p == q for q in first]] for p in sorted(set(first))]
    return np.stack(by_process)[:, :, None, :]


def to_host(array: Array) -> np.ndarray:
    """The whole of an array on every host, gathered first if it is spread over processes.

    An array keeps what was read of it for as long as it lives. So what is read is a copy: what was
    gathered, or of an array of this process one device's part at a time.
    """
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    parts = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    if len(parts) == 1:
        return np.asarray(jnp.copy(parts[0].data))
    whole = np.empty(array.shape, array.dtype)
    for part in parts:
        whole[part.index] = jnp.copy(part.data)
    return whole


def local_rows(array: Array) -> np.ndarray:
    """This process's rows of an array whose rows alone are split, as ``global_batch`` has them."""
    if array.is_fully_addressable:
        return np.asarray(array)
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
