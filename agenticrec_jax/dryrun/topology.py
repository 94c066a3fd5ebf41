"""TPU slices to compile for without having one, and the memory of a chip.

`jax.experimental.topologies` with the package libtpu knows every slice by its name, such as
``v5e:4x4``. Its devices take part in meshes and shardings like real ones; programs over them can
be compiled, never run.
"""

import functools
import os
import pathlib
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agenticrec_jax.dryrun import cost
from agenticrec_jax.errors import InputError

_APART = {  # libtpu asks what machine it is on, and wants to be the only one there
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_AVAILABLE = re.compile(r"exceeds available HBM \(([\d.]+)([KMGT])\)|of ([\d.]+)([KMGT]) hbm")
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def slice_devices(name: str) -> list[jax.Device]:
    """The chips of a slice, such as ``v5e:4x4`` or ``v5p:2x2x4``.

    Local devices are set aside (``jax_platforms`` becomes ``cpu`` if JAX has not started yet), so
    that a machine without a TPU does not look for one.

    Raises:
        InputError: libtpu is not installed, or knows no such slice.
    """
    try:
        metadata.version("libtpu")
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"topology {name}: found no package libtpu, expected it for compiling without a TPU "
            "(pip install 'agenticrec-jax[dryrun]')"
        ) from error
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    for variable, value in _APART.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        said = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise InputError(
            f"topology {name!r}: expected the name of a TPU slice such as v5e:4x4 ({said})"
        ) from error


def host_devices(name: str) -> list[jax.Device]:
    """The chips of one host of a slice, as a slice of their own.

    (XLA compiles for whole slices only, so they are not taken out of the large one.)
    """
    devices = slice_devices(name)
    if len({device.process_index for device in devices}) == 1:
        return devices
    own = np.array([d.coords for d in devices if d.process_index == devices[0].process_index])
    sizes = own.max(axis=0) - own.min(axis=0) + 1
    kind, whole = re.split("[:=_]", name, maxsplit=1)
    return slice_devices(f"{kind}:{'x'.join(map(str, sizes[: whole.count('x') + 1]))}")


def compile_for(device: jax.Device, lowered: jax.stages.Lowered) -> tuple[cost.Memory, str]:
    """The memory and the optimized text of a program compiled for devices such as ``device``.

    A TPU's compiler is asked to write the text itself: jaxlib's own reader of programs refuses some
    of v5p's and v6e's (0.10.2 with libtpu 0.0.52: a gather that the sparse cores do meanwhile).
    """
    if device.platform != "tpu":
        compiled = lowered.compile()
        return cost.memory(compiled), compiled.as_text()
    with tempfile.TemporaryDirectory() as directory:
        compiled = lowered.compile(compiler_options=_dumped_to(directory))
        return cost.memory(compiled), _dumped(directory, "after_optimizations")


def plan_for(
    device: jax.Device, lowered: jax.stages.Lowered, directory: str
) -> tuple[cost.Memory, str]:
    """What ``compile_for`` gives, as soon as a TPU's compiler has decided it.

    What remains is to write the machine's code, which takes most of the time and changes neither:
    its own bytes alone are missing (tens of MB; ``code`` is 0). It goes on in a thread that nothing
    can stop, writing to ``directory``: call this in a process that is ended soon.
    """
    if device.platform != "tpu":
        return compile_for(device, lowered)
    own = tempfile.mkdtemp(dir=directory)
    compiled = _in_thread(lambda: lowered.compile(compiler_options=_dumped_to(own)))
    while not compiled.done() and not _dumps(own, "after_optimizations_after_buffer_assignment"):
        time.sleep(0.02)
    if compiled.done():
        compiled.result()
    memory = planned_memory(_dumped(own, "after_optimizations-buffer-assignment"))
    return memory, _dumped(own, "after_optimizations")


def planned_memory(assignment: str) -> cost.Memory:
    """The memory of a program by XLA's text of its allocations in the chip's main memory.

    What lies elsewhere has a color. An argument that may hold an output is donated.
    """
    sizes = dict.fromkeys(("arguments", "outputs", "aliased", "temporaries"), 0)
    for size, told in _ALLOCATION.findall(assignment):
        given, out = " parameter " in f" {told}", "maybe-live-out" in told
        if "color " in told and "color 0," not in told:
            continue
        kinds = {"arguments": given, "outputs": out, "aliased": given and out}
        for kind in [kind for kind, meant in kinds.items() if meant] or ["temporaries"]:
            sizes[kind] += int(size)
    return cost.Memory(**sizes, code=0)


def _in_thread(work: Callable[[], Any]) -> Future:
    """The result of ``work``, for which the end of the process does not wait."""
    future: Future = Future()

    def run():
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _dumped_to(directory: str) -> dict:
    return {"xla_dump_to": directory, "xla_dump_hlo_as_text": True}


def _dumps(directory: str, name: str) -> list[pathlib.Path]:
    return list(pathlib.Path(directory).glob(f"*.{name}.txt"))


def _dumped(directory: str, name: str) -> str:
    [path] = _dumps(directory, name)
    return path.read_text(encoding="utf-8")


@functools.cache
def chip_memory(device: jax.Device) -> int | None:
    """Bytes of a device that programs can have; None if nobody says.

    Of a TPU it is what the compiler says is available, when it is asked for far too much (a v5e
    chip has 16 GB, v5p 95 GB, v6e 32 GB: https://docs.cloud.google.com/tpu/docs/v5e; a little is
    the runtime's own). Of a CPU it is the memory of the machine.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.platform != "tpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    whole = NamedSharding(Mesh(np.array([device]), ("all",)), PartitionSpec())
    huge = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=whole)
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return available_memory(str(error))
    return None


def available_memory(said: str) -> int | None:
    """The bytes available by the compiler's own words, where it ran out of memory; else None."""
    if not (found := _AVAILABLE.search(said)):
        return None
    number, unit = [part for part in found.groups() if part]
    return int(float(number) * _UNITS[unit])
