"""State of the machine and of the installation, for ``agenticrec doctor``."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax
from packaging.requirements import Requirement

import agenticrec_jax
from agenticrec_jax.bundled import ROOT
from agenticrec_jax.paths import as_path, is_bucket
from agenticrec_jax.runtime.devices import device_line

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
GIB = 2**30
_EXTRAS = Path(__file__).parents[1] / "extras.json"


def report(cache: str, *, devices: bool = True) -> Iterator[str]:
    """Yields a line for each fact: versions, devices, memory, compilation cache, extras.

    Args:
      cache: value of ``--compilation_cache``.
      devices: whether JAX is started and asked for its devices.

    Raises:
      RuntimeError: JAX finds no device of the platform that it was asked for.
    """
    yield f"agenticrec-jax {agenticrec_jax.__version__} in {ROOT}"
    yield f"python {platform.python_version()} in {sys.prefix}, {platform.platform(terse=True)}"
    yield "versions:"
    for name in PACKAGES:
        yield f"  {name} {metadata.version(name)}"
    yield f"host: {os.cpu_count()} CPU cores, {_host_memory()}"
    yield cache_line(cache)
    yield "extras:"
    for name, extra in json.loads(_EXTRAS.read_text(encoding="utf-8")).items():
        yield from (f"  {line}" for line in extra_lines(name, extra["for"], extra["requires"]))
    if not devices:
        return
    yield device_line()
    for device in jax.local_devices():
        yield f"  {device}: {_device_memory(device)}"


def extra_lines(name: str, purpose: str, requires: list[str]) -> list[str]:
    """Returns whether an extra is installed, or what it lacks and the command that brings it.

    The command has a line of its own, to be copied.

    Args:
      name: of the extra.
      purpose: a word on what it is for.
      requires: requirements as in ``setup.py``, such as ``jax[tpu]>=0.10``.
    """
    lacking = [lack for requirement in requires for lack in missing(requirement)]
    if not lacking:
        return [f"{name} (for {purpose}): installed"]
    return [f"{name} (for {purpose}): missing {', '.join(lacking)}", f"  {install_command(name)}"]


def install_command(extra: str) -> str:
    """Returns the command that installs an extra: from the clone, or from where the wheel came."""
    if (ROOT / "setup.py").is_file():
        return f'pip install -e "{ROOT}[{extra}]"'
    return f'pip install "agenticrec-jax[{extra}]"'


def missing(requirement: str) -> list[str]:
    """Returns the distributions that a requirement lacks, those of its extras included.

    A distribution of a version that does not fit is named with the versions that do.

    >>> missing("numpy>=1"), missing("numpy>=99"), missing("not-there-at-all>=2")
    ([], ['numpy>=99'], ['not-there-at-all'])
    """
    wanted = Requirement(requirement)
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return [wanted.name]
    if not wanted.specifier.contains(version, prereleases=True):
        return [f"{wanted.name}{wanted.specifier}"]
    lacking = []
    for extra in wanted.extras:
        for line in metadata.requires(wanted.name) or ():
            marker = Requirement(line).marker
            # The requirements of the extra alone: the others came with the distribution.
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                lacking += missing(line)
    return lacking


def cache_line(directory: str) -> str:
    """Returns the state of the directory of compiled programs.

    Raises:
      InputError: see `paths.as_path`.
    """
    if not directory:
        return "compilation cache: none"
    path = as_path(directory, "flag --compilation_cache")
    if is_bucket(path):
        return f"compilation cache: {path}, a bucket"
    if not path.is_dir():
        return f"compilation cache: {path}, not there yet"
    if not os.access(path, os.W_OK):
        return f"compilation cache: {path}, which cannot be written; choose --compilation_cache"
    sizes = [os.path.getsize(file) for file in path.iterdir() if file.is_file()]
    return f"compilation cache: {path}, {len(sizes)} files, {sum(sizes) / GIB:.2f} GiB"


def _host_memory() -> str:
    page = os.sysconf("SC_PAGE_SIZE")
    total = f"{os.sysconf('SC_PHYS_PAGES') * page / GIB:.1f} GiB of memory"
    meminfo = Path("/proc/meminfo")  # of Linux
    for line in meminfo.read_text().splitlines() if meminfo.exists() else ():
        if line.startswith("MemAvailable:"):
            return f"{total}, {int(line.split()[1]) * 1024 / GIB:.1f} GiB available"
    return total


def _device_memory(device: jax.Device) -> str:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return "memory of the host"
    used = stats.get("bytes_in_use", 0)
    return f"{stats['bytes_limit'] / GIB:.1f} GiB of memory, {used / GIB:.1f} GiB in use"
