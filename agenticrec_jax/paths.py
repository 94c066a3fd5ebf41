"""Paths that a person gives, on this machine or in a bucket, and the files made at them.

One type names a file everywhere: `etils.epath.Path`, which has the methods of `pathlib.Path`. The
address of a bucket, such as ``gs://bucket/run``, needs the extra ``gcs``. What differs between a
disk and a bucket is done here:

- to replace a file: `whole_file` and `write_whole`. On a disk it is written aside and renamed. In a
  bucket an object appears whole when its upload has ended.
- to append: `Appender`. An object cannot grow, so it is written again as a whole.
- to list: `glob`.
- to give a file to a library that reads disks only, such as a scan of Parquet: `local_file`.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import pathlib
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any, Self

from etils.epath import Path

from agenticrec_jax.errors import InputError, expect

BUCKET = "gs://"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # Path() makes one slash of the two
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/[^#*?\[\]\r\n]*)?")
_LIKE_BUCKETS = re.compile(r"/(gs|s3|az|hf)(/|$)")  # by which epath spells addresses inside
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_SECONDS = 10.0  # between two uploads of a file that is appended to


def as_path(path: str | os.PathLike, where: str = "path") -> Path:
    """Returns a path with ``~`` replaced by the home directory, or the address of a bucket.

    Args:
      where: the flag or setting that the error names.

    Raises:
      InputError: it is no path, is an address other than ``gs://bucket/..``, or one without the
        extra ``gcs``, names an unknown user's home, holds a NUL, or is not UTF-8, which the writers
        of Parquet and safetensors need.

    Example:
      >>> as_path("~/log") == Path.home() / "log", is_bucket(as_path("log"))
      (True, False)
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    expect(isinstance(text, str), where, path, "a path")
    if "\0" in text:
        raise InputError(f"{where}: found {text!r}, expected a path without NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that Python holds as halves of surrogate pairs
        raise InputError(f"{where}: found {text!r}, expected a path in UTF-8") from error
    if _SCHEME.match(text):
        return _bucket_path(text, where)
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise InputError(f"{where}: found {text!r}, expected a known home directory")
    place = os.path.abspath(expanded)
    if _LIKE_BUCKETS.match(place):
        raise InputError(f"{where}: found {place!r}, expected another directory or {BUCKET}bucket")
    return Path(expanded)


def _bucket_path(text: str, where: str) -> Path:
    if not _BUCKET.fullmatch(text):
        raise InputError(
            f"{where}: found the address {text!r}, expected a path on this machine, or "
            f"{BUCKET}bucket/path without any of #*?[]"
        )
    if not importlib.util.find_spec("gcsfs"):
        raise InputError(
            f"{where}: found the bucket {text!r}, expected the package gcsfs to be installed: "
            "pip install 'agenticrec-jax[gcs]'"
        )
    import fsspec.config

    # Another process may write the files that this one looks for.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    # epath prefers TensorFlow's file system where that is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    return Path(text)


def local_path(path: str | os.PathLike, where: str = "path") -> pathlib.Path:
    """Returns a path on this machine with ``~`` replaced by the home directory.

    Raises:
      InputError: as in `as_path`, and for the address of a bucket.
    """
    text = os.fspath(path)
    if _SCHEME.match(text):
        raise InputError(f"{where}: found the address {text!r}, expected a path on this machine")
    return pathlib.Path(as_path(text, where))


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is the address of a bucket."""
    return os.fspath(path).startswith(BUCKET)


def is_file(path: str | os.PathLike) -> bool:
    """Whether a file is there; False too for a name that no file can have, such as a long one."""
    return Path(path).is_file() if is_bucket(path) else os.path.isfile(path)


def is_there(path: str | os.PathLike) -> bool:
    """Whether anything has this name: a file, a directory, or a link that leads nowhere."""
    return Path(path).exists() if is_bucket(path) else os.path.lexists(path)


def require_file(path: str | os.PathLike, expected: str) -> None:
    """Raises InputError unless a file is there: ``path: REASON, expected EXPECTED``.

    The reason says what else is there, such as a directory or a pipe, or why that is not known.
    """
    if is_file(path):
        return
    reason = "no such file"
    if not is_bucket(path):
        try:
            mode = os.stat(path).st_mode
            reason = f"found {_KINDS.get(stat.S_IFMT(mode), 'a device')} in place of a file"
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:  # such as a link that leads to itself, or a NUL
            reason = f"cannot be read ({getattr(error, 'strerror', error)})"
    raise InputError(f"{path}: {reason}, expected {expected}")


def absolute(path: str | os.PathLike) -> Path:
    """Returns a path from the root of the disk; an address as it is."""
    return Path(path) if is_bucket(path) else Path(os.path.abspath(path))


def make_directory(path: str | os.PathLike, where: str = "") -> Path:
    """Makes a directory and those above it; returns its path.

    A bucket has no directories. There an empty file is written and deleted.

    Args:
      where: the flag that the error names; the path if it is empty.

    Raises:
      InputError: it cannot be made or written to, or a file is there.
    """
    directory = as_path(path, where or "path")
    if is_bucket(directory):
        reason = _why_not_written(directory / f".writable-{uuid.uuid4().hex}")
    else:
        try:
            os.makedirs(directory, exist_ok=True)
            reason = "" if os.access(directory, os.W_OK | os.X_OK) else "it cannot be written to"
        except OSError as error:
            reason = error.strerror
    if reason:
        raise InputError(
            f"{where or directory}: found {str(directory)!r}, expected a directory that can be "
            f"made and written ({reason})"
        )
    return directory


def _why_not_written(probe: Path) -> str:
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # of gcsfs, of Google's credentials or of the network
        return f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields the path of a file on this machine, which becomes ``path`` when the block has ended.

    It appears whole or not at all: a reader, or a killed process, sees the old file or the new one.
    """
    with tempfile.TemporaryDirectory() if is_bucket(path) else contextlib.nullcontext() as scratch:
        partial = f"{Path(path).name}.part"
        file = pathlib.Path(scratch or Path(path).parent, partial)
        yield file
        move(file, path)


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file as `whole_file` does; text in UTF-8."""
    with whole_file(path) as file:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def move(file: str | os.PathLike, path: str | os.PathLike) -> None:
    """Moves a file of this machine to ``path``, which is replaced as a whole."""
    if is_bucket(path):
        _bucket_files(path).put_file(os.fspath(file), os.fspath(path))
        os.remove(file)
    else:
        os.replace(file, path)


def upload(source: str | os.PathLike, directory: str | os.PathLike) -> None:
    """Copies all files below a directory of this machine into a directory of a bucket."""
    for file in pathlib.Path(source).rglob("*"):
        if file.is_file():
            address = os.fspath(Path(directory) / file.relative_to(source))
            _bucket_files(directory).put_file(os.fspath(file), address)


def local_file(path: str | os.PathLike) -> pathlib.Path:
    """Returns a file on this machine with the content of ``path``: itself, or a copy of an object.

    For libraries that map a file into memory or read it in a way of their own. The copy lies in
    the directory of temporary files (``TMPDIR``) until this process ends.
    """
    if not is_bucket(path):
        return pathlib.Path(path)
    files = _bucket_files(path)
    address = os.fspath(path)
    version = str((address, files.info(address).get("generation")))
    name = f"{hashlib.sha256(version.encode()).hexdigest()[:16]}-{Path(path).name}"
    copy = pathlib.Path(_scratch().name, name)
    if not copy.exists():
        partial = copy.with_name(f"{name}.{uuid.uuid4().hex}")  # another thread may copy it too
        files.get_file(address, os.fspath(partial))
        os.replace(partial, copy)
    return copy


def read_range(path: str | os.PathLike, start: int, end: int) -> bytes:
    """Returns the bytes of an object of a bucket from ``start`` to before ``end``."""
    return _bucket_files(path).cat_file(os.fspath(path), start=start, end=end)


def glob(directory: str | os.PathLike, pattern: str) -> list[Path]:
    """Returns the paths in a directory that match, sorted; ``**/`` before the pattern: also below.

    Only the pattern may hold ``*`` and brackets with a meaning. In a bucket ``**/`` gives files.
    """
    if not is_bucket(directory):
        return [Path(path) for path in sorted(pathlib.Path(directory).glob(pattern))]
    files = _bucket_files(directory)
    try:
        below = files.find if pattern.startswith("**/") else files.ls
        names = below(os.fspath(directory), detail=False)
    except FileNotFoundError:
        return []
    paths = (Path(f"{BUCKET}{name}") for name in names)
    return sorted(path for path in paths if path.match(pattern.removeprefix("**/")))


class Appender:
    """A text file that grows; use it as a context manager or call `close`.

    On a disk each text is in the file when `write` returns. A file in a bucket is uploaded as a
    whole, at most every 10 seconds, and by `flush` and `close`.

    Args:
      path: of the file, which is made by the first text.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._text: str | None = None  # content of an object, read before the first text
        self._is_uploaded = True
        self._uploaded_at = 0.0

    def write(self, text: str) -> None:
        """Appends text."""
        if not is_bucket(self._path):
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(text)
            return
        if self._text is None:
            self._text = self._path.read_text() if self._path.exists() else ""
        self._text += text
        self._is_uploaded = False
        if time.monotonic() - self._uploaded_at >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when all texts are in the file."""
        if not self._is_uploaded:
            write_whole(self._path, self._text)
            self._is_uploaded = True
            self._uploaded_at = time.monotonic()

    def close(self) -> None:
        """Writes the rest. Later texts are appended to what the file holds then."""
        self.flush()
        self._text = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="agenticrec-")  # deleted when the process ends


def _bucket_files(path: str | os.PathLike) -> Any:
    """Returns the file system of a bucket, an `fsspec.AbstractFileSystem`."""
    import fsspec.core

    return fsspec.core.url_to_fs(os.fspath(path))[0]
