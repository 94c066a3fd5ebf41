"""TPU slices and GPUs to compile for without having one, and the memory of a chip.

`jax.experimental.topologies` with the package libtpu knows every slice by its name, such as
``v5e:4x4``; `gpus` has those of GPUs, such as ``h100:8``. Their devices work in meshes and
shardings like real ones. Programs over them can be compiled but not run.
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
from agenticrec_jax.dryrun.gpus import gpu_devices, gpu_memory, is_gpu
from agenticrec_jax.errors import InputError

_ENVIRONMENT = {  # otherwise libtpu looks for the machine's TPU, and for other users of it
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_AVAILABLE = re.compile(r"exceeds available HBM \(([\d.]+)([KMGT])\)|of ([\d.]+)([KMGT]) hbm")
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)
# Dumps that the compiler writes after the two that hold the plan and the text.
_LATER_DUMPS = {"tpu": "*.after_optimizations_after_buffer_assignment.txt", "gpu": "*.ll"}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def slice_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """Returns the chips of a slice, such as ``v5e:4x4`` or ``v5p:2x2x4``, or of several such.

    The GPUs of a machine, such as ``h100:8``, are a slice too. ``jax_platforms`` becomes ``cpu`` if
    JAX has not started yet, so that a machine without a TPU does not look for one.

    Raises:
      InputError: libtpu (for GPUs JAX's CUDA plugin) is not installed, or knows no such slice.
    """
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    if is_gpu(name):
        return gpu_devices(name, slices)
    try:
        metadata.version("libtpu")
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"topology {name}: found no package libtpu, expected it for compiling without a TPU "
            "(pip install 'agenticrec-jax[dryrun]')"
        ) from error
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        return list(topology.devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise InputError(
            f"topology: found {name!r}, expected a TPU slice such as v5e:4x4 or GPUs such as "
            f"h100:8 ({reason})"
        ) from error


def host_devices(name: str) -> list[jax.Device]:
    """Returns the chips of one host of a slice, as a slice by themselves.

    One host of ``v5e:4x4`` is ``v5e:2x2``. (XLA compiles for whole slices only, so some devices of
    the large slice would not do.)
    """
    devices = slice_devices(name)
    if len({device.process_index for device in devices}) == 1:
        return devices
    host = devices[0].process_index
    coords = np.array([device.coords for device in devices if device.process_index == host])
    sizes = coords.max(axis=0) - coords.min(axis=0) + 1
    kind, whole = re.split("[:=_]", name, maxsplit=1)
    return slice_devices(f"{kind}:{'x'.join(map(str, sizes[: whole.count('x') + 1]))}")


def compile_for(device: jax.Device, lowered: jax.stages.Lowered) -> tuple[cost.Memory, str]:
    """Compiles a program for devices like ``device``; returns its memory and optimized text."""
    if device.platform != "tpu":
        compiled = lowered.compile()
        return cost.memory(compiled), compiled.as_text()
    # The TPU's compiler dumps the text itself. jaxlib's parser of programs refuses some of v5p's
    # and v6e's (0.10.2 with libtpu 0.0.52: an asynchronous gather on the sparse cores).
    with tempfile.TemporaryDirectory() as directory:
        compiled = lowered.compile(compiler_options=_dumped_to(directory))
        return cost.memory(compiled), _dumped(directory, "after_optimizations")


def plan_for(
    device: jax.Device, lowered: jax.stages.Lowered, directory: str
) -> tuple[cost.Memory, str]:
    """Returns the result of ``compile_for`` as soon as a TPU's or GPU's compiler has planned it.

    The compiler then generates machine code, which takes most of the time and changes neither
    memory nor text, except for its own bytes (tens of MB): ``code`` is 0 here. It continues in a
    thread that cannot be stopped and writes to ``directory``. So call this in a process that ends
    soon.
    """
    if device.platform not in _LATER_DUMPS:
        return compile_for(device, lowered)
    dumps = tempfile.mkdtemp(dir=directory)
    compiled = _in_thread(lambda: lowered.compile(compiler_options=_dumped_to(dumps)))
    later = _LATER_DUMPS[device.platform]
    while not compiled.done() and not any(pathlib.Path(dumps).glob(later)):
        time.sleep(0.02)
    if compiled.done():
        compiled.result()  # raises the compiler's error, such as too little memory
    memory = planned_memory(_dumped(dumps, "after_optimizations-buffer-assignment"))
    return memory, _dumped(dumps, "after_optimizations")


def planned_memory(assignment: str) -> cost.Memory:
    """Returns the memory of a program by XLA's text of its buffer assignment."""
    sizes = dict.fromkeys(("arguments", "outputs", "aliased", "temporaries"), 0)
    for size, description in _ALLOCATION.findall(assignment):
        # A color other than 0 is another memory than the chip's main memory.
        if "color " in description and "color 0," not in description:
            continue
        is_argument = " parameter " in f" {description}"
        is_output = "maybe-live-out" in description
        if is_argument:
            sizes["arguments"] += int(size)
        if is_output:
            sizes["outputs"] += int(size)
        if is_argument and is_output:  # donated
            sizes["aliased"] += int(size)
        if not is_argument and not is_output:
            sizes["temporaries"] += int(size)
    return cost.Memory(**sizes, code=0)


def _in_thread(work: Callable[[], Any]) -> Future:
    """Runs ``work`` in a thread that the end of the process does not wait for."""
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


def _dumped(directory: str, name: str) -> str:
    # A GPU's are named ``module_0001.jit_f.sm_9.0_gpu_after_optimizations.txt``.
    [path] = [
        path
        for path in pathlib.Path(directory).iterdir()
        if path.name.endswith((f".{name}.txt", f"_gpu_{name}.txt"))
    ]
    return path.read_text(encoding="utf-8")


@functools.cache
def chip_memory(device: jax.Device) -> int | None:
    """Returns the bytes of a device that programs can use, None if they are not known.

    Of a TPU they are the bytes that the compiler names as available when a program needs far too
    many. A v5e chip has 16 GB, v5p 95 GB and v6e 32 GB, of which the runtime takes a little
    (https://docs.cloud.google.com/tpu/docs/v5e). Of a CPU they are the memory of the machine, of a
    GPU the part that JAX takes.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.platform != "tpu":
        return gpu_memory(device)
    whole = NamedSharding(Mesh(np.array([device]), ("all",)), PartitionSpec())
    huge = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=whole)
    try:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return available_memory(str(error))
    return None


def available_memory(message: str) -> int | None:
    """Returns the available bytes that the compiler's out-of-memory message names, else None."""
    if not (match := _AVAILABLE.search(message)):
        return None
    number, unit = [group for group in match.groups() if group]
    return int(float(number) * _UNITS[unit])
