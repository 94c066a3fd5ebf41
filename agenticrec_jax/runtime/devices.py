"""The devices that a program runs on, in words."""

from collections import Counter


def device_line() -> str:
    """Returns the number and the kind of JAX's devices, over all processes.

    It starts JAX's backend, so several processes have to be joined before.
    """
    import jax  # some programs compute nothing and start without it

    kinds = Counter(device.device_kind for device in jax.devices())
    devices = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    processes = jax.process_count()
    others = f", {processes} processes" if processes > 1 else ""
    return f"devices: {devices} ({jax.default_backend()}{others})"
