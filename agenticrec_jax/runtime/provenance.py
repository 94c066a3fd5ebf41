"""Provenance of a run folder: by which command, code, packages and devices its files were made.

`record_provenance` appends a line to ``provenance.jsonl`` for every command that writes to the
folder, so that a run that was resumed with another version says so.
"""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import agenticrec_jax
from agenticrec_jax import paths, strict_json
from agenticrec_jax.bundled import ROOT
from agenticrec_jax.runtime.devices import device_line

FILE_NAME = "provenance.jsonl"
_STARTED = datetime.now(UTC).isoformat(timespec="seconds")  # of this process


def provenance(*, devices: bool = True) -> dict:
    """Returns the facts about this process, ready for JSON.

    Args:
      devices: whether JAX is asked for its devices, which starts its backend.

    Returns:
      ``date`` (when the process started, UTC), ``command``, ``directory`` (the current one),
      ``version`` of this package, ``commit`` of its clone (None for none), ``changed`` (whether
      files of the clone differ from the commit), ``python``, ``platform``, ``devices`` (None if
      they are not asked for) and ``packages``, the version of each that is installed.
    """
    commit, changed = clone_commit(ROOT)
    installed = {package.name: package.version for package in metadata.distributions()}
    return {
        "date": _STARTED,
        "command": shlex.join(sys.orig_argv),
        "directory": os.getcwd(),
        "version": agenticrec_jax.__version__,
        "commit": commit,
        "changed": changed,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "devices": device_line().removeprefix("devices: ") if devices else None,
        "packages": dict(sorted(installed.items())),
    }


def clone_commit(root: Path) -> tuple[str | None, bool | None]:
    """Returns the commit that a clone is at, and whether a tracked file differs from it.

    (None, None) without git, and for a directory that is not the top of a clone: an installed
    package can lie inside the repository of something else.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    if not top or not commit or Path(top).resolve() != root.resolve():
        return None, None
    return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))


def record_provenance(directory: str | os.PathLike, *, devices: bool = True) -> None:
    """Appends the line of this process to ``provenance.jsonl`` of a directory that is there.

    It is appended once. Of several processes only process 0 writes.

    Args:
      directory: folder of a run.
      devices: whether JAX is asked for its devices; off for a program that computes without it.
    """
    if devices:
        import jax  # some programs compute nothing and start without it

        if jax.process_index():
            return
    path = paths.Path(directory) / FILE_NAME
    line = strict_json.dumps(provenance(devices=devices), ensure_ascii=False) + "\n"
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    if line not in written.splitlines(keepends=True):
        with paths.Appender(path) as file:
            file.write(line)


def _git(root: Path, *arguments: str) -> str | None:
    """Returns what a git command prints in a directory; None where it fails."""
    try:
        ended = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None
