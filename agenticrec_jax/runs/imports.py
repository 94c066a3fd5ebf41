"""Import of a user's function or class by its path, ``package.module:name``."""

import importlib
from collections.abc import Callable

from agenticrec_jax.errors import InputError


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
