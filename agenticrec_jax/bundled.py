"""Locates files that ship with the package: configurations, embedded logs, the tiny policy."""

import os
from pathlib import Path

from agenticrec_jax import paths

_PACKAGE = Path(__file__).resolve().parent
# In a clone ``experiments`` and ``tools_data`` lie beside the package, in a wheel inside it.
ROOT = _PACKAGE if (_PACKAGE / "tools_data").is_dir() else _PACKAGE.parent


def resolve(path: str | os.PathLike) -> paths.Path:
    """Returns a path as given if it is absolute or exists, else the bundled file of that name.

    ``~`` is the home directory. Bundled files are named as in a clone: ``tools_data/tiny_policy``.

    Raises:
      InputError: see `paths.as_path`.
    """
    given = paths.as_path(path)
    return given if given.is_absolute() or given.exists() else paths.Path(ROOT / given)
