"""Fields of the room's dataclasses and arguments: of their type and in their range, or refused.

A number of numpy counts as Python's own, and true and false count as no number.
"""

from numbers import Integral, Real
from typing import Any

from agenticrec_jax.errors import expect

LARGEST_COUNT = 2**31 - 1  # arrays count in int32
LARGEST_SEED = 2**63 - 1
WIDEST = 2**16  # width of a layer
MOST_LAYERS = 64  # layers of a network, or steps
_LARGEST = 1e38  # of float32, rounded down


def whole(name: str, value: Any, *, least: int = 1, most: int = LARGEST_COUNT) -> int:
    """Returns a whole number from ``least`` to ``most``; InputError for any other value.

    Args:
      name: of the field, for the error.
      value: of the field.
      least: smallest value.
      most: largest value.

    Example:
      >>> whole("batch_size", 128)
      128
    """
    fits = isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most
    expect(fits, name, value, f"a whole number from {least} to {most}")
    return int(value)


def number(name: str, value: Any, *, above: float | None = None, below: float = _LARGEST) -> float:
    """Returns a number of at least 0 and under ``below``; InputError for any other value.

    Args:
      name: of the field, for the error.
      value: of the field.
      above: a bound that the number exceeds, in place of at least 0.
      below: the bound that it stays under.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    fits = is_number and (value >= 0 if above is None else value > above) and value < below
    low = "of at least 0" if above is None else f"above {above:g}"
    expect(fits, name, value, f"a number {low}, below {below:g}")
    return float(value)


def switch(name: str, value: Any) -> bool:
    """Returns True or False; InputError for any other value."""
    expect(isinstance(value, bool), name, value, "True or False")
    return value


def set_fields(instance: Any, **values: Any) -> None:
    """Sets fields of a frozen dataclass to their checked values, from its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
