"""Starts several processes of simulated devices that train together, as on several hosts."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from agenticrec_jax.parallel import multihost

QUICK = "--xla_backend_optimization_level=0"  # halves the time of compilation, same rounding


def run_together(
    arguments: Sequence[str], processes: int = 2, devices: int = 4, timeout: float = 1200
) -> list[str]:
    """Runs ``python *arguments`` in several processes at once.

    Args:
      arguments: command line after ``python``.
      processes: number of processes.
      devices: simulated CPU devices of each process.
      timeout: seconds until each process has to end.

    Returns:
      The output of each process.

    Raises:
      AssertionError: a process failed.
    """
    with started_together(arguments, processes, devices) as children:
        outputs = [child.communicate(timeout=timeout)[0] for child in children]
    assert [child.returncode for child in children] == [0] * processes, "\n".join(outputs)
    return outputs


@contextlib.contextmanager
def started_together(
    arguments: Sequence[str], processes: int = 2, devices: int = 4
) -> Iterator[list[subprocess.Popen]]:
    """Yields processes as `run_together` starts them; those that run at the end are killed."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}",
        multihost.COORDINATOR: f"127.0.0.1:{_free_port()}",
        multihost.PROCESSES: str(processes),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    children = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | environment | {multihost.PROCESS: str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
