"""Several processes: start-up, the process that writes, global arrays, values for every host.

Every function also works in a single process, so callers need no special case.

A job of 2 processes with 4 devices each has 8 devices in one mesh. A batch of 8 rows on data=8 is
split 4 and 4: each process supplies ``process_rows``, ``global_batch`` joins them to one array, and
``local_rows`` returns them.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.parallel.mesh import (
    MESH_AXES,
    RULES,
    Rules,
    auto_mesh,
    batch_sharding,
    batch_shards,
    shard_batch,
    tree_shardings,
)

COORDINATOR = "AGENTICREC_COORDINATOR"
PROCESSES = "AGENTICREC_PROCESSES"
PROCESS = "AGENTICREC_PROCESS"


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the other processes; call it before any other use of JAX.

    Arguments that are None are read from the environment (``AGENTICREC_COORDINATOR``,
    ``AGENTICREC_PROCESSES``, ``AGENTICREC_PROCESS``). Without both, this is a single process.

    Args:
      coordinator: ``host:port`` of process 0, or ``"auto"``: JAX finds the cluster by itself (TPU
        slices of Cloud TPU and GKE, Slurm).
      processes: their number.
      process: number of this process, from 0.

    Raises:
      InputError: only some of the three are given, ``process`` is out of range, or JAX finds no
        cluster.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    processes = _number(processes, PROCESSES)
    process = _number(process, PROCESS)
    if coordinator is None and processes is None and process is None:
        return
    if coordinator == "auto":
        _configure()
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise InputError(
                "coordinator: found no cluster that JAX knows, expected a TPU pod or Slurm, or "
                f"{COORDINATOR}, {PROCESSES} and {PROCESS} in the environment"
            ) from error
        return
    if coordinator is None or processes is None or process is None:
        raise InputError(
            f"coordinator, processes and process (or {COORDINATOR}, {PROCESSES}, {PROCESS}): found "
            f"{coordinator}, {processes}, {process}, expected all three or none"
        )
    expect(0 <= process < processes, "process", process, f"0 to {processes - 1}")
    _configure()
    jax.distributed.initialize(coordinator, processes, process)


def _configure() -> None:
    """Sets options that JAX reads once, before it looks for processes and devices."""
    # The other implementation of CPU collectives, mpi, does not work with simulated devices.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own service swallows SIGTERM: a process would not end while it loads or compiles. A
    # stage receives it by `runtime.termination`; elsewhere it ends the process at once.
    jax.config.update("jax_enable_preemption_service", False)


def _number(value: int | None, variable: str) -> int | None:
    if value is not None:
        return value
    text = os.environ.get(variable)
    if text is None:
        return None
    expect(text.isdecimal(), f"environment variable {variable}", text, "a number")
    return int(text)


def is_main() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called this; ``name`` must be the same on all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_on_main(check: Callable[[], Any]) -> None:
    """Runs ``check`` on process 0.

    Raises:
      InputError: ``check`` raised it. Every process raises it with the same sentence: otherwise
        process 0 would end and the others would wait for it forever.
    """
    message = ""
    if is_main():
        try:
            check()
        except InputError as error:
            message = str(error)
    # An empty message tells the others that the check passed.
    message = allgather(message)[0]
    if message:
        raise InputError(message)


@contextlib.contextmanager
def main_writes(name: str) -> Iterator[bool]:
    """Yields whether this process writes, and lets all processes wait until it has written.

    They wait after a failed write too, so that the writer's error is the one that is reported.
    """
    try:
        yield is_main()
    finally:
        barrier(name)


def allgather(value: Any) -> list[Any]:
    """Returns the ``value`` of every process, in process order, on all of them.

    Args:
      value: anything that JSON can express.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]  # as it would come from another process
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    # Arrays of one shape are gathered, so the lengths come first and the texts are padded.
    lengths = multihost_utils.process_allgather(np.array(len(data), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:n].tobytes().decode())
        for row, n in zip(rows, lengths.reshape(-1), strict=True)
    ]


def check_same(value: Any, what: str) -> None:
    """Checks that all processes have the same ``value``, such as a config or a hash of the data.

    Raises:
      InputError: names ``what`` and the values, on every process.
    """
    values = allgather(value)
    same = all(other == values[0] for other in values)
    expect(same, f"{what} of each process", values, "the same on all")


def process_rows(total: int, mesh: Mesh, rules: Rules = RULES) -> slice:
    """Returns the rows of a global batch of ``total`` rows that this process must supply.

    Raises:
      InputError: the rows do not divide over the mesh, or are not one run of rows.
    """
    sharding = batch_sharding(mesh, rules)
    shards = batch_shards(mesh, rules)
    expect(
        total % shards == 0,
        "rows of a batch",
        total,
        f"a multiple of slices x data x fsdp, {shards}",
    )
    spans = sorted(
        {index[0].indices(total)[:2] for index in _local_indices(sharding, total).values()}
    )
    one_run = all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    expect(one_run, f"rows of process {jax.process_index()}", spans, "one run of rows")
    return slice(spans[0][0], spans[-1][1])


def _local_indices(sharding, total: int):
    return sharding.addressable_devices_indices_map((total,))


def global_batch(local: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Joins the rows that each process supplies (``process_rows``) to arrays over all of them.

    On a mesh of one process this is ``shard_batch``.
    """
    if not mesh.is_multi_process:
        return shard_batch(local, mesh, rules)
    sharding = batch_sharding(mesh, rules)
    # No row moves: each process's rows become the shards of its devices.
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), local
    )


def nonempty_local_items(items: Sequence) -> list:
    """Returns ``local_items``, of which every process must have at least one.

    Raises:
      InputError: there are fewer items than processes.
    """
    processes = jax.process_count()
    expected = f"one or more for each of {processes} processes"
    expect(len(items) >= processes, "prompts in a step", len(items), expected)
    return local_items(items)


def local_items(items: Sequence) -> list:
    """Returns this process's items of a list that all processes have: every n-th for n processes.

    Of (a, b, c) process 0 of 2 has (a, c) and process 1 has (b).
    """
    return list(items[jax.process_index() :: jax.process_count()])


def interleaved(shares: Sequence[Sequence]) -> list:
    """Returns the list of which ``local_items`` gave each process its share.

    Of (a, c) and (b) the list is (a, b, c).
    """
    longest = max(map(len, shares))
    return [share[i] for i in range(longest) for share in shares if i < len(share)]


def row_shards(mesh: Mesh | None, rules: Rules = RULES) -> int:
    """Returns the number of shards that the rows of this process are split into.

    Raises:
      InputError: a process has rows of another too, and so could not roll out its own.
    """
    if mesh is None:
        return 1
    shards = batch_shards(mesh, rules)
    rows = process_rows(shards, mesh, rules)
    local_shards = rows.stop - rows.start
    processes = len({device.process_index for device in mesh.devices.flat})
    fits = local_shards * processes == shards
    expected = f"a multiple of the {processes} processes"
    expect(fits, f"mesh {dict(mesh.shape)}: slices x data x fsdp", shards, expected)
    return local_shards


def local_mesh(mesh: Mesh | None) -> Mesh | None:
    """Returns the mesh of this process's devices in ``mesh``, for its rollouts: data x 1 x tensor.

    A mesh of one process is its local mesh.
    """
    if mesh is None or not mesh.is_multi_process:
        return mesh
    return auto_mesh(_devices_by_process(mesh)[jax.process_index()], MESH_AXES)


def local_params(params: Any, rules: Rules = RULES) -> Any:
    """Returns parameters that are spread over processes whole on the devices of each process.

    They move between devices only, and every process must call this. Each array is resharded by
    ``rules`` over the local meshes of the processes side by side. Its shards on this process make
    the array on the local mesh, without a copy. Parameters of this process are returned as is.
    """
    # All parameters are placed alike, so that one leaf tells where they are.
    leaf = jax.tree.leaves(params)[0]
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return params
    devices = _devices_by_process(leaf.sharding.mesh)
    side_by_side = auto_mesh(devices, ("process", *MESH_AXES))
    mesh = auto_mesh(devices[jax.process_index()], MESH_AXES)

    def localize(array: Array, sharding: NamedSharding) -> Array:
        shards = [shard.data for shard in jax.device_put(array, sharding).addressable_shards]
        local = NamedSharding(mesh, sharding.spec)
        return jax.make_array_from_single_device_arrays(array.shape, local, shards)

    return jax.tree.map(localize, params, tree_shardings(params, side_by_side, rules))


def _devices_by_process(mesh: Mesh) -> np.ndarray:
    """Returns the devices of a mesh as [processes, data, 1, tensor]."""
    tensor = mesh.shape["tensor"]
    rows = mesh.devices.reshape(-1, tensor)  # a tensor group each
    owners = [{device.process_index for device in row} for row in rows]
    within = all(len(owner) == 1 for owner in owners)
    expected = "tensor groups that lie within a process"
    expect(within, f"mesh {dict(mesh.shape)}: tensor", tensor, expected)
    owner = np.array([processes.pop() for processes in owners])
    return np.stack([rows[owner == p] for p in sorted(set(owner))])[:, :, None, :]


def to_host(array: Array) -> np.ndarray:
    """Returns the whole of an array on every host, gathered first if processes share it."""
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    # An array caches the numbers that were read of it for as long as it lives. Reading a copy, one
    # shard at a time, leaves no second set of all parameters on the host.
    if len(shards) == 1:
        return np.asarray(jnp.copy(shards[0].data))
    whole = np.empty(array.shape, array.dtype)
    for shard in shards:
        whole[shard.index] = jnp.copy(shard.data)
    return whole


def local_rows(array: Array) -> np.ndarray:
    """Returns this process's rows of an array of which only the rows are split."""
    if array.is_fully_addressable:
        return np.asarray(array)
    # By their first row: devices that differ in `tensor` only have copies of the same rows.
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
