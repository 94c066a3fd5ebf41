"""TPU slices by the names that the dry run knows, such as ``v5e:4x4``, and what others call them.

Facts are those of Google's documentation: topologies and node labels of GKE
(https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus), accelerator types and runtime
versions of Cloud TPU (https://cloud.google.com/tpu/docs/runtimes).
"""

import math
import re
from dataclasses import dataclass

from agenticrec_jax.errors import expect

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # larger ones have multiples of 4
_LARGEST = 6144  # chips of the largest v5p slice, 16x16x24


@dataclass(frozen=True)
class _Kind:
    cloud: str  # prefix of Cloud TPU's accelerator type
    units: int  # that the type counts for a chip
    gke: str  # value of the node label
    runtime: str


_KINDS = {
    "v5e": _Kind("v5litepod", 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite"),
    "v5p": _Kind("v5p", 2, "tpu-v5p-slice", "v2-alpha-tpuv5"),
    "v6e": _Kind("v6e", 1, "tpu-v6e-slice", "v2-alpha-tpuv6e"),
}


@dataclass(frozen=True)
class TpuSlice:
    """A TPU slice.

    Attributes:
      kind: ``v5e``, ``v5p`` or ``v6e``.
      topology: chips along each axis, such as ``4x4``.

    Example:
      >>> tpu = tpu_slice("v5p:2x2x4")
      >>> tpu.chips, tpu.hosts, tpu.accelerator_type, tpu.gke_accelerator
      (16, 4, 'v5p-32', 'tpu-v5p-slice')
    """

    kind: str
    topology: str

    @property
    def chips(self) -> int:
        """Chips of the slice."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def chips_per_host(self) -> int:
        """Chips of a machine of GKE with four chips, or of the only one with fewer."""
        return min(self.chips, 4)

    @property
    def hosts(self) -> int:
        """Machines of the slice."""
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Name of the slice in Cloud TPU, which counts cores of a v5p."""
        kind = _KINDS[self.kind]
        return f"{kind.cloud}-{self.chips * kind.units}"

    @property
    def gke_accelerator(self) -> str:
        """Value of GKE's node label ``cloud.google.com/gke-tpu-accelerator``."""
        return _KINDS[self.kind].gke

    @property
    def runtime_version(self) -> str:
        """Software of Cloud TPU's machines."""
        return _KINDS[self.kind].runtime


def tpu_slice(name: str) -> TpuSlice:
    """Returns the slice of a name such as ``v5e:4x4``.

    Raises:
      InputError: there is no such slice.
    """
    kind, _, topology = name.partition(":")
    kinds = ", ".join(_KINDS)
    expect(kind in _KINDS, "flag --topology", name, f"a slice such as v5e:4x4 of {kinds}")
    if kind == "v5p":
        ok = topology in _SMALL_CUBES or _is_cube(topology)
        expected = f"v5p with {', '.join(_SMALL_CUBES)}, or three rising multiples of 4"
    else:
        ok = topology in _FLAT
        expected = f"{kind} with {', '.join(_FLAT)}"
    expect(ok, "flag --topology", name, expected)
    return TpuSlice(kind, topology)


def _is_cube(topology: str) -> bool:
    if not re.fullmatch(r"[1-9]\d?(x[1-9]\d{0,2}){2}", topology, re.ASCII):
        return False
    sizes = [int(size) for size in topology.split("x")]
    whole = all(size % 4 == 0 for size in sizes) and sizes == sorted(sizes)
    return whole and math.prod(sizes) <= _LARGEST
