"""Locates files that ship with the package: configurations, embedded logs, the tiny policy."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etils import epath

_PACKAGE = Path(__file__).resolve().parent
# In a clone ``experiments`` and ``tools_data`` lie beside the package, in a wheel inside it.
ROOT = _PACKAGE if (_PACKAGE / "tools_data").is_dir() else _PACKAGE.parent


def resolve(path: str | os.PathLike) -> "epath.Path":
    """Returns a path as given if it is absolute or exists, else the bundled file of that name.

    ``~`` is the home directory. Bundled files are named as in a clone: ``tools_data/tiny_policy``.

    Raises:
      InputError: see `paths.as_path`.
    """
    from agenticrec_jax.paths import as_path  # `agenticrec --help` starts without etils

    given = as_path(path)
    return given if given.is_absolute() or given.exists() else as_path(ROOT / given)
