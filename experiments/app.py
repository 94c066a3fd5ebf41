"""What every program of ``experiments`` shares: start, bad input, compilation cache and phases.

A program ends with ``if __name__ == "__main__": app.run(main)``. Bad input, an ``InputError`` or a
flag that does not parse, ends it with one sentence on stderr and exit status 2.
"""

import contextlib
import importlib
import json
import os
import pathlib
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app as absl_app
from absl import flags, logging
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from agenticrec_jax.errors import InputError, Terminated

ROOT = pathlib.Path(__file__).resolve().parent.parent
BAD_INPUT = 2
INTERRUPTED = 130

_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "~/.cache/agenticrec_jax/xla",
    "Directory for compiled programs, so that a second run starts faster; empty for none.",
)


def run(main: Callable[[Sequence[str]], object]) -> NoReturn:
    """Parses the flags, calls ``main(argv)`` and exits: 0, or 2 with one sentence for bad input.

    A run that SIGTERM has ended in order (``Terminated``) says where it stands and exits with 0.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument {argv[1]!r}: settings are given as --flags.")
            use_compilation_cache(_COMPILATION_CACHE.value)
            logging.set_verbosity(logging.WARNING)  # orbax tells every step of every save
            main(argv)
        except InputError as error:
            _end(str(error))
        except Terminated as ended:
            print(ended, flush=True)
        except KeyboardInterrupt:
            _end("interrupted.", INTERRUPTED)

    absl_app.run(guarded, flags_parser=_parse_flags)
    sys.exit(0)


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in ``directory`` between runs; an empty string keeps none.

    Raises:
      InputError: the directory cannot be made.
    """
    if not directory:
        return
    path = pathlib.Path(directory).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"flag --compilation_cache: found {directory!r}, expected a directory that can be "
            f"made and written ({error.strerror})."
        ) from error
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        _check_config_files()
        return rest
    except SystemExit:  # --help and its kin have printed their text
        sys.exit(0)
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError) as error:
        _end(_flag_sentence(error))


def _check_config_files() -> None:
    """A config file that is missing is reported at once, not where it is first read."""
    for name in list(flags.FLAGS):
        try:
            filename = config_flags.get_config_filename(flags.FLAGS[name])
        except (TypeError, flags.Error):  # no config flag, or not given
            continue
        if filename and not os.path.isfile(filename.split(":", 1)[0]):
            raise InputError(
                f"flag --{name}: found no file {filename!r}, expected a Python file with "
                "get_config()."
            )


def _flag_sentence(error: Exception) -> str:
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, KeyError):
        return "flag --config: no setting " + " ".join(str(error.args[0]).split())
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback" in text:  # ml_collections puts a whole traceback into the message
        lines = [lines[0], lines[-1]]
    sentence = re.sub(r"\s+", " ", " ".join(lines))
    return sentence if "flag" in sentence.lower() else f"flag error: {sentence}"


def _end(sentence: str, status: int = BAD_INPUT) -> NoReturn:
    sys.stdout.flush()
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(status)


def resolve(path: str) -> pathlib.Path:
    """A path as given, or, where that does not exist, below the repository's root."""
    given = pathlib.Path(path)
    return given if given.is_absolute() or given.exists() else ROOT / given


def imported(path: str, key: str, kind: str) -> Callable:
    """What is called at ``package.module:name``, a ``kind`` such as a function.

    Raises:
      InputError: there is none; the sentence begins with ``key``, the setting that names it.
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise InputError(f"{key}: found {path!r}, expected package.module:{kind}")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever a module of the user's does
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{key}: found {path!r}, expected a module that can be imported ({reason})"
        ) from error
    if not callable(found):
        raise InputError(f"{key}: found no {kind} {name} in {module}, expected {path}")
    return found


def print_wide(table: Table) -> None:
    """Prints a table as wide as the terminal, or where there is none wide enough for a log."""
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def some_of(flag: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that a list flag was given; InputError unless they are different known ones."""
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(
            f"flag --{flag}: found {','.join(names)!r}, expected some of {', '.join(known)}, "
            "separated by commas"
        )
    return list(names)


_records: list[dict] = []
_records_file: pathlib.Path | None = None


@contextlib.contextmanager
def phase(name: str, quiet: bool = False) -> Iterator[dict]:
    """Measures a phase of a program and says when it starts and ends.

    Yields the record ``{"name", "wall_s", "cpu_s", "peak_mb"}`` which is filled when the block
    ends, also by an exception: wall seconds, CPU seconds of this process and of its ended
    children, and the most memory resident at once (MiB) during the phase, phases inside included.
    """
    record = {"name": name, "wall_s": 0.0, "cpu_s": 0.0, "peak_mb": 0.0}
    memory = _PeakMemory()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    if not quiet:
        print(f"== {name}", flush=True)
    try:
        yield record
    finally:
        record["wall_s"] = round(time.perf_counter() - wall, 3)
        record["cpu_s"] = round(_cpu_seconds() - cpu, 3)
        record["peak_mb"] = round(memory.stop(), 1)
        _keep(record)
        if not quiet:
            print(
                f"== {name}: {record['wall_s']:.1f} s, CPU {record['cpu_s']:.1f} s, "
                f"peak {record['peak_mb']:.0f} MB",
                flush=True,
            )


def phase_records() -> list[dict]:
    """The phases that have ended in this run, in the order of their ends."""
    return [dict(record) for record in _records]


def keep_phases(path: str | os.PathLike) -> None:
    """Counts the phases that ``path`` holds as this run's, and writes there those that end.

    So a run that was stopped and goes on in another process has all its phases.
    """
    global _records_file
    _records_file = pathlib.Path(path)
    if _records_file.exists():
        lines = _records_file.read_text(encoding="utf-8").splitlines(keepends=True)
        _records[:0] = [json.loads(line) for line in lines if line.endswith("\n")]
    _records_file.write_text("".join(f"{json.dumps(r)}\n" for r in _records), encoding="utf-8")


def _keep(record: dict) -> None:
    _records.append(record)
    if _records_file:
        with open(_records_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class _PeakMemory:
    """The most memory resident since it was made, in MiB.

    Exact where that is the highest of the process so far, which the kernel keeps; otherwise the
    highest of samples 20 times a second. (The kernel's mark could be reset for each phase, but then
    nobody outside could read the peak of the whole run.)
    """

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
    """``VmRSS`` or ``VmHWM`` of this process; without /proc its peak so far for either."""
    with contextlib.suppress(OSError):
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _cpu_seconds() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
