"""Validation of configurations: every key, type and range, refused by its name.

`pydantic <https://docs.pydantic.dev>`_ checks types and ranges. This module makes its dataclasses
frozen and strict (no ``"3"`` for 3), and turns its report into one `InputError`.
"""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.dataclasses import is_pydantic_dataclass

from agenticrec_jax.errors import InputError, expect, shorten

Config = TypeVar("Config")
_TINY = float(np.finfo(np.float32).tiny)
_HUGE = float(np.finfo(np.float32).max)
_RULES = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def configuration(cls: type[Config]) -> type[Config]:
    """Makes a class a frozen dataclass whose constructor checks every field.

    The constructor takes keywords only. It raises `InputError` with the name of the class and of
    the field: ``GrpoConfig.steps: found 0, expected greater than or equal to 1``.
    """
    checked = pydantic_dataclass(frozen=True, kw_only=True, config=_RULES)(cls)
    construct = checked.__init__

    @functools.wraps(construct)
    def init(self, *args: Any, **values: Any) -> None:
        try:
            _expect_representable(values)
            construct(self, *args, **values)
        except InputError as error:
            raise InputError(_prefixed(error, cls.__name__)) from None
        except pydantic.ValidationError as error:
            raise InputError(_sentence(error, cls.__name__)) from None

    checked.__init__ = init
    return checked


def parse(
    cls: type[Config],
    values: Mapping[str, Any],
    key: str = "config",
    default: Config | None = None,
) -> Config:
    """Returns a dataclass made from nested mappings, checked with the types of its fields.

    Args:
      cls: the class of the whole tree, a `configuration`; plain dataclasses may lie inside.
      values: fields by name.
      key: name of the root in errors.
      default: values of the fields that are missing; None for the class's own.

    Raises:
      InputError: names the key of the first fault, such as ``config.rta.steps``, the value found
        and what was expected.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{key}: found {shorten(values)}, expected settings by name")
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    for name in values:
        if name not in types:
            close = difflib.get_close_matches(str(name), types, n=1) or types
            raise InputError(
                f"{key}.{name}: found a setting that does not exist, expected {', '.join(close)}"
            )
    base = cls() if default is None else default
    fields = {name: getattr(base, name) for name in types}
    for name, value in values.items():
        if dataclasses.is_dataclass(types[name]) and not isinstance(value, types[name]):
            value = parse(types[name], value, f"{key}.{name}", fields[name])
        fields[name] = value
    try:
        _expect_representable(fields)
        if is_pydantic_dataclass(cls):
            instance = cls.__new__(cls)
            cls.__init__.__wrapped__(
                instance, **fields
            )  # the errors of `configuration` lack the key
            return instance
        # The constructor of a plain dataclass does not check types.
        checked = {name: _check_type(types[name], value, name) for name, value in fields.items()}
        return cls(**checked)
    except pydantic.ValidationError as error:
        raise InputError(_sentence(error, key)) from None
    except InputError as error:
        raise InputError(_prefixed(error, key)) from None


def _expect_representable(fields: Mapping[str, Any]) -> None:
    """Checks that arrays can hold every number and that files can hold every text.

    Arrays have int32 and float32. A rate of 1e-300 would be 0 there, a size of 2 ** 31 negative.
    """
    for name, value in fields.items():
        for element in value if isinstance(value, tuple | list) else (value,):
            if isinstance(element, str):
                surrogates = re.search("[\ud800-\udfff]", element)
                expected = "text without NUL that UTF-8 can encode"
                expect(not surrogates and "\0" not in element, name, element, expected)
            elif isinstance(element, int):
                expect(abs(element) < 2**31, name, element, "a number between -2 ** 31 and 2 ** 31")
            elif isinstance(element, float) and math.isfinite(element):
                representable = element == 0 or _TINY <= abs(element) <= _HUGE
                expect(
                    representable,
                    name,
                    element,
                    f"a number that is 0, or {_TINY:.1e} to {_HUGE:.1e}",
                )


def _check_type(expected: Any, value: Any, name: str) -> Any:
    adapter = pydantic.TypeAdapter(expected, config=_RULES)
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        raise InputError(_sentence(error, name)) from None


def _sentence(error: pydantic.ValidationError, key: str) -> str:
    fault = error.errors()[0]
    # Deeper names in the path are those of a union's members or of places in a tuple.
    names = [name for name in fault["loc"][:1] if isinstance(name, str)]
    where = ".".join([key, *names])
    if fault["type"] == "value_error":  # an InputError of the class's own checks
        return _prefixed(fault["ctx"]["error"], where)
    if fault["type"] == "unexpected_keyword_argument":
        return f"{where}: found a setting that does not exist"
    expected = fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{where}: found {shorten(fault['input'])}, expected {expected}"


def _prefixed(error: Exception, key: str) -> str:
    """Returns the sentence of an error under a key, which names its field if the sentence does."""
    name, colon, rest = str(error).partition(": ")
    # A class names itself before the field, which the key already says.
    name = name.split(".", 1)[1] if name[:1].isupper() and "." in name else name
    names_field = colon and all(word.isidentifier() for word in name.split("."))
    return f"{key}.{name}: {rest}" if names_field else f"{key}: {error}"
