"""Peak rates of chips, and the least time that they allow for an amount of work (a roofline)."""

from dataclasses import dataclass

from agenticrec_jax.dryrun.cost import Cost, Traffic


@dataclass(frozen=True)
class Chip:
    """Peak rates of a chip.

    Attributes:
      flops: bfloat16 operations a second, a multiplication and an addition counted as two.
      memory: bytes a second that it reads or writes in its main memory.
      links: bytes a second that it sends to chips of its slice, over all links together.
      network: bytes a second that it sends to other slices, its part of the host's.
    """

    flops: float
    memory: float
    links: float
    network: float


# By `jax.Device.device_kind`. Sources: docs.cloud.google.com/tpu/docs/ v5e, v5p and v6e (of
# bidirectional links half is counted), and NVIDIA's data sheets of H100 SXM and H200 SXM (dense
# bfloat16; NVLink one way; a network adapter of 400 Gbit/s for each GPU).
CHIPS = {
    "TPU v5 lite": Chip(flops=197e12, memory=819e9, links=200e9, network=3.125e9),
    "TPU v5": Chip(flops=459e12, memory=2765e9, links=600e9, network=6.25e9),
    "TPU v6 lite": Chip(flops=918e12, memory=1640e9, links=400e9, network=12.5e9),
    "NVIDIA H100 80GB HBM3": Chip(flops=989e12, memory=3350e9, links=450e9, network=50e9),
    "NVIDIA H200": Chip(flops=989e12, memory=4800e9, links=450e9, network=50e9),
}


def least_seconds(work: Cost, device_kind: str) -> float | None:
    """Returns the time of one run of a program if its slowest resource runs at its peak.

    Products, memory, links and network may all work at once, so the time is at least that of each.
    Latencies, kernels of unknown work and products in a wider type than bfloat16 make it longer.

    Args:
      work: of one chip.
      device_kind: of the chip, as in `jax.Device.device_kind`.

    Returns:
      seconds; None for a kind that is not in `CHIPS`.
    """
    if (chip := CHIPS.get(device_kind)) is None:
        return None
    crossing = _sent(work.between_slices)
    return max(
        work.flops / chip.flops,
        work.bytes / chip.memory,
        (_sent(work.collectives) - crossing) / chip.links,
        crossing / chip.network,
    )


def _sent(collectives: dict[str, Traffic]) -> float:
    return sum(traffic.bytes for traffic in collectives.values())
