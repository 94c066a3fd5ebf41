"""Paths that a person gives: on this machine, with ``~`` for the home directory."""

import os
import re
from pathlib import Path

from agenticrec_jax.errors import InputError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # Path() makes one slash of the two


def local_path(path: str | os.PathLike, where: str = "path") -> Path:
    """Returns a path with ``~`` replaced by the home directory.

    Args:
      where: the flag or setting that the error names.

    Raises:
      InputError: the path is the address of a bucket such as ``gs://logs``, which is not supported
        (a directory ``gs:`` would be made), names an unknown user's home, holds a NUL, or is not
        UTF-8, which the writers of Parquet and safetensors need.

    Example:
      >>> local_path("~/log") == Path.home() / "log"
      True
    """
    text = os.fspath(path)
    if _SCHEME.match(text):
        raise InputError(
            f"{where}: found the address {text!r}, expected a path on this machine: buckets are "
            "not supported, so copy the files"
        )
    if "\0" in text:
        raise InputError(f"{where}: found {text!r}, expected a path without NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that Python holds as halves of surrogate pairs
        raise InputError(f"{where}: found {text!r}, expected a path in UTF-8") from error
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{where}: found {text!r}, expected a known home directory") from error


def is_file(path: str | os.PathLike) -> bool:
    """Whether a file is there; False too for a name that no file can have, such as a long one."""
    return os.path.isfile(path)


def make_directory(path: str | os.PathLike, where: str = "") -> Path:
    """Makes a directory and those above it; returns its path.

    Args:
      where: the flag that the error names; the path if it is empty.

    Raises:
      InputError: it cannot be made or written to, or a file is there.
    """
    directory = local_path(path, where or "path")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(directory, os.W_OK | os.X_OK) else "it cannot be written to"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(
            f"{where or directory}: found {str(directory)!r}, expected a directory that can be "
            f"made and written ({reason})"
        )
    return directory
