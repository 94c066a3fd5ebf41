"""Phases of a run: wall seconds, CPU seconds and peak memory of each."""

import contextlib
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator

from agenticrec_jax import strict_json
from agenticrec_jax.paths import Appender, Path, write_whole
from agenticrec_jax.runtime.json_lines import read_json_lines

_records: list[dict] = []
_records_file: Path | None = None


@contextlib.contextmanager
def phase(name: str, quiet: bool = False) -> Iterator[dict]:
    """Measures a phase of a program and prints its start and its end.

    Args:
      name: of the phase.
      quiet: whether nothing is printed.

    Yields:
      The record ``{"name", "wall_s", "cpu_s", "peak_mb"}``. It is filled when the block ends, also
      by an exception: wall seconds, CPU seconds of this process and of its ended children, and the
      most memory resident at once (MiB) during the phase, phases inside included.
    """
    record = {"name": name, "wall_s": 0.0, "cpu_s": 0.0, "peak_mb": 0.0}
    memory = _PeakMemory()
    wall = time.perf_counter()
    cpu = _cpu_seconds()
    if not quiet:
        print(f"== {name}", flush=True)
    try:
        yield record
    finally:
        record["wall_s"] = round(time.perf_counter() - wall, 3)
        record["cpu_s"] = round(_cpu_seconds() - cpu, 3)
        record["peak_mb"] = round(memory.stop(), 1)
        _append(record)
        if not quiet:
            print(
                f"== {name}: {record['wall_s']:.1f} s, CPU {record['cpu_s']:.1f} s, "
                f"peak {record['peak_mb']:.0f} MB",
                flush=True,
            )


def phase_records() -> list[dict]:
    """Returns copies of the phases that have ended in this run, in the order of their ends."""
    return [dict(record) for record in _records]


def resume_phases(path: str | os.PathLike) -> None:
    """Takes over the phases in a file of JSON lines, and appends to it those that end from now on.

    A run that was stopped and is resumed in another process so has the phases of both.

    Raises:
      InputError: a line of the file is no phase.
    """
    global _records_file
    _records_file = Path(path)
    _records[:0] = read_json_lines(_records_file, "a phase with a name", {"name": str})
    text = "".join(strict_json.dumps(record) + "\n" for record in _records)
    write_whole(_records_file, text)


def _append(record: dict) -> None:
    _records.append(record)
    if _records_file:
        with Appender(_records_file) as file:
            file.write(strict_json.dumps(record) + "\n")


class _PeakMemory:
    """The most memory resident since the object was made, in MiB.

    The kernel keeps the highest of the process so far. If that rose meanwhile it is exact;
    otherwise it is the highest of samples 20 times a second.
    """

    # The kernel's mark could be reset for each phase. But then nobody outside could read the peak
    # of the whole run.

    def __init__(self):
        self._highest_before = _memory_mb("VmHWM")
        self._sampled = _memory_mb("VmRSS")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stopped.wait(0.05):
            self._sampled = max(self._sampled, _memory_mb("VmRSS"))

    def stop(self) -> float:
        self._stopped.set()
        self._thread.join()
        highest = _memory_mb("VmHWM")
        if highest > self._highest_before:
            return highest
        return max(self._sampled, _memory_mb("VmRSS"))


def _memory_mb(field: str) -> float:
    """Returns ``VmRSS`` or ``VmHWM`` of this process; without /proc its peak so far for either."""
    with contextlib.suppress(OSError):
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _cpu_seconds() -> float:
    process = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process.ru_utime + process.ru_stime + children.ru_utime + children.ru_stime
