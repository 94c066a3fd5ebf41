"""NVIDIA GPUs to compile for without having one, such as the eight of a machine: ``h100:8``.

JAX's CUDA plugin compiles for GPUs that are described to it. It and cuDNN have to be installed. No
driver is needed.
"""

import functools
import os
import re
from dataclasses import dataclass
from importlib import metadata

import jax
from jax.experimental import topologies

from agenticrec_jax.errors import InputError

MOST = 8  # GPUs of a machine
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
_NAME = re.compile(r"([a-z]+\d+):([1-9]\d*)")
# JAX takes this part of a GPU's memory unless it is told another.
_FRACTION = 0.75
_FRACTION_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@dataclass(frozen=True)
class Gpu:
    """A GPU of the Hopper generation.

    Attributes:
      kind: its `jax.Device.device_kind`.
      memory: its bytes.
      bandwidth: bytes a second that it reads or writes in its memory.
    """

    kind: str
    memory: int
    bandwidth: int


# The SXM versions, with the memory that a program sees. H100 by XLA's own description
# (xla/backends/gpu/target_config/specs/h100_sxm.txtpb), H200 a little below its 141 GB (151.4e9).
GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", memory=84_942_979_072, bandwidth=3_352_320_000_000),
    "h200": Gpu("NVIDIA H200", memory=150_000_000_000, bandwidth=4_800_000_000_000),
}
# XLA's form of what it has to know of a GPU (stream_executor.GpuTargetConfigProto).
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{kind}"
"""


def is_gpu(name: str) -> bool:
    """Whether a topology's name begins as that of GPUs does."""
    return name.partition(":")[0] in GPUS


def gpu_devices(name: str, machines: int = 1) -> list[jax.Device]:
    """Returns the GPUs of a machine such as ``h100:8``, or of several such, each a process.

    Raises:
      InputError: a machine has other numbers of them, or JAX's CUDA plugin is not installed.
    """
    match = _NAME.fullmatch(name)
    if not match or int(match[2]) > MOST:
        raise InputError(f"topology: found {name!r}, expected 1 to {MOST} GPUs such as h100:8")
    if not any(map(_is_installed, _PLUGINS)):
        raise InputError(
            f"topology {name}: found no package {_PLUGINS[0]}, expected it for compiling without a "
            "GPU (pip install 'agenticrec-jax[cuda]')"
        )
    return list(_devices(GPUS[match[1]], f"1x{machines}x{match[2]}"))


def gpu_memory(device: jax.Device) -> int | None:
    """Returns the bytes of a GPU that programs can use, None if they are not known."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # it is not there
        memory = {gpu.kind: gpu.memory for gpu in GPUS.values()}.get(device.device_kind)
        fractions = (os.environ.get(variable) for variable in _FRACTION_VARIABLES)
        return memory and int(memory * float(next(filter(None, fractions), _FRACTION)))


@functools.cache  # another description of the same GPUs has other devices
def _devices(gpu: Gpu, topology: str) -> tuple[jax.Device, ...]:
    target = _TARGET.format(kind=gpu.kind, memory=gpu.memory, bandwidth=gpu.bandwidth)
    described = topologies.get_topology_desc(
        platform="cuda", target_config=target, topology=topology
    )
    return tuple(described.devices)


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
