"""Start of a program: flags, compilation cache, and one sentence for bad input.

A program ends with ``if __name__ == "__main__": app.run(main)``. Bad input, an ``InputError`` or a
flag that does not parse, ends it with one sentence on stderr and exit status 2. A run that SIGTERM
has stopped ends with status 75, by which a launcher knows to start it again.
"""

import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from absl import app as absl_app
from absl import flags, logging
from ml_collections import config_flags

from agenticrec_jax.cli.configs import complete
from agenticrec_jax.cli.help import help_text, requested_help
from agenticrec_jax.errors import InputError, Terminated
from agenticrec_jax.paths import as_path, local_path, make_directory
from agenticrec_jax.runtime.devices import device_line, version_line

BAD_INPUT = 2
TOO_LARGE = 3  # a dry run's programs do not fit
TERMINATED = 75  # EX_TEMPFAIL of sysexits.h: the same command, later, goes on
INTERRUPTED = 130

# Flags that name a file or a directory, here or in a bucket: ``~`` in them is the home.
PATH_FLAGS = (
    *("workdir", "output", "interactions", "items", "prepared", "policy", "downloads", "users"),
    *("json", "parquet", "api_key_file"),
)
LOCAL_FLAGS = ("wheel", "directory", "trajectories")  # that name one on this machine

_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "~/.cache/agenticrec_jax/xla",
    "Directory for compiled programs, so that a second run starts faster; empty for none.",
)


def run(
    main: Callable[[Sequence[str]], object], arguments: Sequence[str] = (), *, rest: bool = False
) -> NoReturn:
    """Parses the flags, calls ``main(argv)`` and exits: 0, or 2 with one sentence for bad input.

    A run that SIGTERM has ended in order (``Terminated``) says where it stands and exits with 75.

    Args:
      main: of the program; ``argv[1:]`` are its arguments.
      arguments: names of the arguments beside flags, all of which have to be given.
      rest: whether more may follow them, such as the flags of another program after ``--``.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1 + len(arguments) and not rest:
                raise InputError(
                    f"unexpected argument {argv[1 + len(arguments)]!r}: settings are given as "
                    "--flags."
                )
            for name in arguments[len(argv) - 1 :]:
                raise InputError(f"argument {name}: found nothing, expected it beside the flags.")
            use_compilation_cache(_COMPILATION_CACHE.value)
            logging.set_verbosity(logging.WARNING)  # orbax tells every step of every save
            main(argv)
            print(end="", flush=True)  # what cannot be written is said here
        except InputError as error:
            _end(str(error))
        except OSError as error:  # a file in the place of a directory, no space, no permission
            if error.strerror is None:
                raise
            # Writing, such as to a pipe that is closed or a full disk, names no file.
            place = "a file or the output" if error.filename is None else error.filename
            _end(f"{place}: cannot be read or written ({error.strerror}).")
        except Terminated as ended:
            print(ended, flush=True)
            sys.exit(TERMINATED)
        except KeyboardInterrupt:
            _end("interrupted.", INTERRUPTED)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not closed; a title may be of any script
            stream.reconfigure(errors="backslashreplace")
    absl_app.run(guarded, flags_parser=_parse_flags)
    sys.exit(0)


def print_devices(mesh: Mapping[str, int] | None = None) -> None:
    """Prints the devices that JAX computes on, and with a mesh it and versions; process 0 for all.

    Several processes have to be joined before, since this starts JAX's backend.

    Args:
      mesh: devices along each of its axes; None in a program without one.
    """
    import jax

    if jax.process_index() == 0:
        print(device_line(), flush=True)
        if mesh is not None:
            axes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
            print(f"mesh: {axes}", version_line(), sep="\n", flush=True)


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in ``directory`` between runs; an empty string keeps none.

    Raises:
      InputError: the directory cannot be made, though the flag names it. Without its default
        directory, as in a container, a run is only slower and says so.
    """
    if not directory:
        return
    try:
        path = make_directory(directory, "flag --compilation_cache")
    except InputError as error:
        if _COMPILATION_CACHE.present or directory != _COMPILATION_CACHE.default:
            raise
        print(f"no cache of compiled programs ({error})", file=sys.stderr, flush=True)
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        if requested := requested_help(argv):
            print(help_text(argv, full=requested == "helpfull"))
            raise SystemExit
        rest = flags.FLAGS(complete(list(argv)))
        _check_config_files()
        _expand_paths()
        return rest
    except SystemExit:  # --help, or absl's --helpxml and the like, has printed its text
        sys.exit(0)
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError) as error:
        _end(_flag_sentence(error))


def _expand_paths() -> None:
    for name in PATH_FLAGS + LOCAL_FLAGS:
        # A name can be a path in one program and a number in another, as ``--users`` is.
        flag = flags.FLAGS[name] if name in flags.FLAGS else None
        if flag is not None and isinstance(flag.value, str) and flag.value:
            read = local_path if name in LOCAL_FLAGS else as_path
            flag.value = str(read(flag.value, f"flag --{name}"))


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
    try:
        print(end="", flush=True)
    except OSError:  # nobody reads it, or its disk is full: Python's own flush would fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(status)


def some_of(flag: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that a list flag was given; InputError unless they are different known ones."""
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise InputError(
            f"flag --{flag}: found {','.join(names)!r}, expected some of {', '.join(known)}, "
            "separated by commas"
        )
    return list(names)


def whole_numbers(flag: str, texts: Sequence[str]) -> list[int]:
    """The numbers that a list flag was given; InputError unless they are different whole ones."""
    whole = all(text.isascii() and text.isdigit() for text in texts)
    if not (texts and whole and len(set(texts)) == len(texts)):
        raise InputError(
            f"flag --{flag}: found {','.join(texts)!r}, expected different whole numbers "
            "separated by commas"
        )
    return [int(text) for text in texts]
