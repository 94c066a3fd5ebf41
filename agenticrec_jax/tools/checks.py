"""Checks of tools, of the arguments of a call and of an observation's text.

Most functions return a description of the fault, or None. Those of `argument_fault` and
`unknown_tool` are read by the policy. They never repeat a name that the policy wrote, which might
spell a marker.
"""

import inspect
import math
import re
from collections.abc import Iterable
from typing import Any

from rapidfuzz import fuzz, process

from agenticrec_jax.errors import expect

MAX_CHARACTERS = 20_000  # of an observation; about a hundred times what a tool has to say
SIMILAR = 60  # rapidfuzz ratio (0..100) from which a known name is suggested for another

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def tool_fault(tool: Any) -> str | None:
    """Returns the reason why an object is no ``Tool``, or None.

    Args:
      tool: any object.

    Returns:
      the field and its value, and what was expected; it follows the object's name in a sentence.

    Example:
      >>> class Nameless:
      ...     name = ""
      >>> tool_fault(Nameless())
      "with name '', expected a str that is not empty"
    """
    for field, kind in (("name", str), ("description", str), ("parameters", dict)):
        value = getattr(tool, field, None)
        if not (value and isinstance(value, kind)):
            return f"with {field} {value!r}, expected a {kind.__name__} that is not empty"
    if not re.fullmatch(r"[\w.-]+", tool.name):  # a piece of JSON, of prompts and of file names
        return f"with name {tool.name!r}, expected letters, digits, '_', '.' or '-'"
    properties = tool.parameters.get("properties", {})
    if not (isinstance(properties, dict) and all(map(_is_typed, properties.values()))):
        return f"with properties {properties!r}, expected each of a type of {', '.join(_TYPES)}"
    required = tool.parameters.get("required", [])
    if not (isinstance(required, list) and all(name in list(properties) for name in required)):
        return f"with {required!r} required, expected a list of some of {list(properties)}"
    return _call_fault(tool, properties) or _call_fault(tool, required)


def _call_fault(tool: Any, arguments: Iterable[str]) -> str | None:
    try:
        inspect.signature(tool).bind(None, **dict.fromkeys(arguments))
    except TypeError as error:
        signature = ", ".join(["view", *arguments])
        return f"that cannot be called ({error}), expected __call__(self, {signature})"
    return None


def _is_typed(schema: Any) -> bool:
    """Whether a schema has types that a value can be checked against."""
    types = schema.get("type") if isinstance(schema, dict) else None
    types = [types] if isinstance(types, str) else types
    known = isinstance(types, list) and all(name in list(_TYPES) for name in types)
    return known and ("items" not in schema or _is_typed(schema["items"]))


def text_fault(text: Any) -> str | None:
    """Returns the reason why ``text`` cannot be an observation, or None.

    It must be a string of at most ``MAX_CHARACTERS`` that UTF-8 can encode.

    Example:
      >>> text_fault(7)
      'a int, expected a str'
    """
    if not isinstance(text, str):
        return f"a {type(text).__name__}, expected a str"
    if len(text) > MAX_CHARACTERS:
        return f"{len(text)} characters, expected at most {MAX_CHARACTERS}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, expected characters"
    return None


def argument_fault(schema: dict[str, Any], arguments: Any) -> str | None:
    """Returns the first fault of a call's arguments under an object schema, or None.

    Checks names, types, bounds of numbers (``minimum``, ``maximum``), and the number and types of
    the entries of arrays (``minItems``, ``maxItems``, ``items``).

    Args:
      schema: the schema of an object, such as ``object_schema`` makes.
      arguments: what the policy wrote, parsed from JSON.

    Example, a misspelled name and a value out of bounds:
      >>> schema = {"properties": {"count": {"type": "integer", "minimum": 1}}}
      >>> argument_fault(schema, {"cuont": 3})
      'unknown argument; close: count'
      >>> argument_fault(schema, {"count": 0})
      'argument count must be at least 1'
    """
    if not isinstance(arguments, dict):
        return "arguments must be an object"
    properties = schema.get("properties", {})
    for name in arguments:
        if name not in properties:
            return f"unknown argument; {suggestion(name, properties, label='known')}"
    for name in schema.get("required", ()):
        if name not in arguments:
            return f"argument {name} is missing"
    for name, value in arguments.items():
        fault = _value_fault(properties[name], value)
        if fault:
            return f"argument {name} {fault}"
    return None


def _value_fault(schema: dict[str, Any], value: Any) -> str | None:
    types = schema["type"]
    types = [types] if isinstance(types, str) else types
    if not any(_is_type(value, name) for name in types):
        return f"must be of type {' or '.join(types)}"
    if isinstance(value, list):
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", math.inf)
        if not least <= len(value) <= most:
            span = f"at least {least}" if most == math.inf else f"{least} to {most}"
            return f"must have {span} entries"
        faults = (_value_fault(schema["items"], entry) for entry in value if "items" in schema)
        return next((f"has an entry that {fault}" for fault in faults if fault), None)
    if isinstance(value, int | float):
        least = schema.get("minimum", -math.inf)
        most = schema.get("maximum", math.inf)
        # NaN is in no span; without bounds it is accepted like any other number.
        fits = least <= value <= most or least == -most == -math.inf
        return None if fits else f"must be {_span(least, most)}"
    return None


def _span(least: float, most: float) -> str:
    if most == math.inf:
        return f"at least {least}"
    return f"from {least} to {most}" if least > -math.inf else f"at most {most}"


def _is_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):  # which Python counts as an int
        return name == "boolean"
    return isinstance(value, _TYPES[name])


def unknown_tool(name: Any, known: Iterable[str]) -> str:
    """Returns the observation of a call to a tool that is none of ``known``."""
    return f"no tool of that name; {suggestion(name, known, label='tools')}"


def check_known(names: Iterable[str], known: Iterable[str], field: str) -> set[str]:
    """Returns the different ``names`` of tools.

    Args:
      names: that a person gave.
      known: names of the tools that there are.
      field: the setting or flag that gave them, for errors.

    Raises:
      InputError: names ``field`` and the first name that is not known.
    """
    known = list(known)
    names = list(names)
    for name in names:
        expect(name in known, field, name, f"names of tools: {', '.join(known) or 'there is none'}")
    return set(names)


def suggestion(name: Any, known: Iterable[str], label: str) -> str:
    """Returns the known name that ``name`` is similar to, or else all known names.

    Example:
      >>> suggestion("item_nam", ["item_name", "count"], label="known")
      'close: item_name'
      >>> suggestion("x", ["item_name", "count"], label="known")
      'known: item_name, count'
    """
    known = list(known)
    similar = process.extractOne(str(name), known, scorer=fuzz.ratio, score_cutoff=SIMILAR)
    return f"close: {similar[0]}" if similar else f"{label}: {', '.join(known) or 'none'}"
