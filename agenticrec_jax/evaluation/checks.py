"""Checks of `verification`: stated values beside recomputed ones, and fields of files."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from agenticrec_jax.errors import InputError, expect, shorten

TOLERANCE = 1e-9
_LARGEST = 1e300  # of a number of results; no metric is near it
_SHOWN = ("hr@1", "ndcg@10", "difference")  # numbers that a check's detail gives


class Check(NamedTuple):
    """One fact of a run.

    Attributes:
      name: the file and the fact.
      holds: whether it is as recomputed; None if it cannot be checked.
      detail: the numbers, or the first difference.
    """

    name: str
    holds: bool | None
    detail: str

    @property
    def verdict(self) -> str:
        """``holds``, ``differs`` or ``not checked``."""
        return {True: "holds", False: "differs", None: "not checked"}[self.holds]


def first_difference(stated: Mapping, recomputed: Mapping) -> str | None:
    """Returns the first recomputed value that is stated otherwise, in words; None for none.

    Numbers may differ by rounding.

    Example:
      >>> first_difference({"hr@1": 0.25, "n": 4, "name": "rta"}, {"hr@1": 0.5, "n": 4})
      'hr@1: found 0.25, recomputed 0.5'
    """
    for name, value in recomputed.items():
        if not _equal(stated.get(name), value):
            return f"{name}: found {shorten(stated.get(name))}, recomputed {shorten(value)}"
    return None


def _equal(found: Any, value: Any) -> bool:
    if isinstance(value, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(value)
        return same and all(map(_equal, found, value))
    if isinstance(value, float):
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        # An integer of JSON may be too large for a float.
        return is_number and abs(found) < _LARGEST and abs(found - value) <= TOLERANCE
    return type(found) is type(value) and found == value


def compared(name: str, stated: Mapping, recomputed: Mapping) -> Check:
    """Returns the check that stated values are the recomputed ones."""
    difference = first_difference(stated, recomputed)
    numbers = [f"{key} {value:.4f}" for key, value in recomputed.items() if key in _SHOWN]
    return Check(name, difference is None, difference or ", ".join(numbers) or "as recomputed")


def read_object(where: str | os.PathLike, text: bytes) -> dict:
    """Returns the object of a JSON text; InputError if it is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: found invalid JSON ({error}), expected an object") from None
    expect(isinstance(record, dict), str(where), record, "an object")
    return record


def field(where: str | os.PathLike, record: Any, name: str, kind: Any) -> Any:
    """Returns a field of a record; InputError if it is missing or of another type."""
    expect(isinstance(record, dict), str(where), record, f"an object with {name}")
    value = record.get(name)
    fits = isinstance(value, kind) and not isinstance(value, bool)
    named = getattr(kind, "__name__", "text or null")
    expect(fits, f"{where}, field {name}", value, f"a value of type {named}")
    return value
