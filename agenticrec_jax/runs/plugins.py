"""Tools of one's own beside the agent's: ``config.tools.extra`` names their classes.

``--config.tools.extra=my_tools:CountBrands,my_tools:Other`` adds two. Parameters of a class are
filled by name from what the agent's own tools are made of (``GIVEN``).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from agenticrec_jax.errors import InputError
from agenticrec_jax.runs.imports import imported
from agenticrec_jax.tools.base import Tool, Toolbox
from agenticrec_jax.tools.checks import tool_fault

KEY = "config.tools.extra"
GIVEN = ("artifacts", "items", "options", "profiles")  # as the arguments of tools.registry


def makers(config: ConfigDict) -> list[tuple[str, Callable[..., Tool]]]:
    """The classes that the config names, each with its import path.

    Raises:
      InputError: a path leads to no class, or to one that needs what is not given.
    """
    paths = config.tools.get("extra", "")
    return [(path.strip(), _maker(path.strip())) for path in paths.split(",")] if paths else []


def added(box: Toolbox, config: ConfigDict, given: Mapping[str, Any]) -> Toolbox:
    """``box`` with the config's tools, made of what is ``given`` by the names of ``GIVEN``.

    Raises:
      InputError: what is made is no tool, or its name is another tool's.
    """
    for path, make in makers(config):
        tool = make(**{name: given[name] for name in _wanted(make)})
        if fault := tool_fault(tool):
            raise InputError(f"{KEY}: found {path} {fault}")
        if tool.name in box.names:
            known = ", ".join(box.names)
            raise InputError(
                f"{KEY}: found {path} with name {tool.name!r}, expected none of {known}"
            )
        box = box.with_tools([tool])
    return box


def _maker(path: str) -> Callable[..., Tool]:
    found = imported(path, KEY, "class")
    try:
        inspect.signature(found).bind(**dict.fromkeys(_wanted(found)))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{KEY}: found {path} that cannot be made ({error}), expected a class with parameters "
            f"among {', '.join(GIVEN)}"
        ) from error
    return found


def _wanted(make: Callable) -> list[str]:
    """Those of ``GIVEN`` that are parameters of ``make``."""
    return [name for name in GIVEN if name in inspect.signature(make).parameters]
