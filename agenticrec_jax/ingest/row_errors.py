"""Bad rows: counted by file and reason, the first of each quoted with its place, none forgotten."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from agenticrec_jax.errors import InputError

QUOTED = 3
LONGEST_QUOTE = 80


@dataclass
class Fault:
    """One reason for which rows of a file were not taken.

    ``first`` holds the places (``line 7``) of the first rows and what was found there.
    """

    path: str
    reason: str
    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)

    def record(self) -> dict:
        """As the report has it."""
        first = [{"place": place, "found": found} for place, found in self.first]
        return {"file": self.path, "reason": self.reason, "count": self.count, "first": first}


class Faults:
    """Collects bad rows; ``strict`` stops at the first instead.

    ``places[i]`` is where row i stands, counted from 1, in units of ``unit`` ("line", or "row" of
    a Parquet file).
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self._faults: dict[tuple[str, str], Fault] = {}

    def add(
        self,
        path: str | Path,
        reason: str,
        places: Sequence[int],
        found: Callable[[int], object],
        unit: str = "line",
        count: int | None = None,
    ) -> None:
        """Counts rows of one reason; ``found(i)`` is what to quote of the i-th of them.

        Where ``places`` are only some of the rows, the first among them, ``count`` says how many
        there are.

        Raises:
          InputError: naming file, place and reason, if ``strict`` and there is a row.
        """
        if not len(places):
            return
        fault = self._faults.setdefault((str(path), reason), Fault(str(path), reason))
        fault.count += len(places) if count is None else count
        for index in range(min(len(places), QUOTED - len(fault.first))):
            fault.first.append((f"{unit} {int(places[index])}", quoted(found(index))))
        if self.strict:
            place, quote = fault.first[0]
            raise InputError(f"{path}, {place}: {reason} (found {quote}), expected no bad row")

    @property
    def total(self) -> int:
        """How many rows were not taken."""
        return sum(fault.count for fault in self._faults.values())

    def records(self) -> list[dict]:
        """Every reason with its count and first places, in the order in which they came up."""
        return [fault.record() for fault in self._faults.values()]


def quoted(value: object) -> str:
    """A value as a sentence quotes it: ``nothing`` if there is none, cut if it is long."""
    if value is None or value == "":
        return "nothing"
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…")


def first_reason(
    checks: Sequence[tuple[str, Bool[np.ndarray, "rows"]]], rows: int
) -> list[tuple[str, np.ndarray]]:
    """Rows by the first check that they fail, so that each row is counted once."""
    left = np.ones(rows, bool)
    found = []
    for reason, bad in checks:
        found.append((reason, np.flatnonzero(bad & left)))
        left &= ~bad
    return found
