"""Typed fields of a JSON object, such as ``config.json``: each is of its type or refused by name.

JSON has one kind of number, and writers differ: 1e6 may be a count and 10000 a base. A count is
read from any number without a fraction, never from text or from true.
"""

import math
from collections.abc import Mapping
from typing import Any

from agenticrec_jax.errors import expect

_COUNT_END = 2**31  # arrays count in int32


class Fields:
    """Reads the fields of a JSON object; null counts as missing.

    >>> fields = Fields({"layers": 4, "tied": None}, "config.json")
    >>> fields.count("layers"), fields.switch("tied"), fields.count("heads", default=8)
    (4, False, 8)

    Args:
      raw: the object.
      source: of it, for errors.
    """

    def __init__(self, raw: Mapping[str, Any], source: str):
        self._raw = raw
        self._source = source

    def value(self, name: str) -> Any:
        """Returns a field as it is, None if it is missing."""
        return self._raw.get(name)

    def where(self, name: str) -> str:
        """Returns the place of a field in errors."""
        return f"{self._source}: {name}"

    def need(self, name: str) -> Any:
        """Returns a field; InputError if it is missing."""
        value = self._raw.get(name)
        expect(value is not None, self.where(name), value, "a value")
        return value

    def count(self, name: str, *, default: int | None = None, most: int = _COUNT_END - 1) -> int:
        """Returns a whole number from 1 to ``most``; InputError for any other value.

        A missing field has the default; without a default it is refused too.
        """
        value = self.need(name) if default is None else self._raw.get(name)
        if value is None:
            return default
        whole = is_number(value) and value == int(value)
        expect(whole and 1 <= value <= most, self.where(name), value, f"1 to {most}")
        return int(value)

    def positive(self, name: str) -> float:
        """Returns a number above 0 that float32 holds; InputError otherwise."""
        value = self.need(name)
        fits = is_number(value) and 1e-37 < value < 1e38
        expect(fits, self.where(name), value, "a number above 0")
        return float(value)

    def switch(self, name: str, default: bool = False) -> bool:
        """Returns true or false, ``default`` if the field is missing; InputError otherwise."""
        value = self._raw.get(name)
        expect(value is None or isinstance(value, bool), self.where(name), value, "true or false")
        return default if value is None else value

    def text(self, name: str, default: str) -> str:
        """Returns a text, ``default`` if the field is missing; InputError otherwise."""
        value = self._raw.get(name)
        expect(value is None or isinstance(value, str), self.where(name), value, "text")
        return default if value is None else value

    def texts(self, name: str) -> list[str] | None:
        """Returns a list of texts, None if the field is missing; InputError otherwise."""
        value = self._raw.get(name)
        is_list = isinstance(value, list) and all(isinstance(word, str) for word in value)
        expect(value is None or is_list, self.where(name), value, "a list of names")
        return value


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)
