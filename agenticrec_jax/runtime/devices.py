"""The devices that a program runs on and the versions that drive them, in words."""

import platform
from collections import Counter
from importlib import metadata

VERSIONS = ("jax", "jaxlib", "flax", "libtpu", "jax-cuda12-plugin")


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


def version_line() -> str:
    """Returns the versions of Python and of the packages in ``VERSIONS`` that are installed."""
    versions = [f"python {platform.python_version()}"]
    for package in VERSIONS:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            pass
    return "versions: " + ", ".join(versions)
