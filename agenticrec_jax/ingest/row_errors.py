"""Bad rows of raw tables: counted by file and reason, the first of each reason quoted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Int64

from agenticrec_jax.data.formats.blocks import read_blocks
from agenticrec_jax.data.formats.files import TableFile
from agenticrec_jax.data.formats.rows import Block, BrokenRow, Kind
from agenticrec_jax.errors import InputError

QUOTED = 3
LONGEST_QUOTE = 80


@dataclass
class RowErrorCount:
    """The bad rows of one file and one reason.

    Attributes:
      first: of the first rows, the position (``line 7``) and what was found there.
    """

    file_name: str
    reason: str
    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)

    def record(self) -> dict:
        """Returns the entry of the data report."""
        first = [{"place": place, "found": quote} for place, quote in self.first]
        return {"file": self.file_name, "reason": self.reason, "count": self.count, "first": first}


class RowErrors:
    """Counts bad rows.

    Args:
      strict: whether the first bad row raises an error instead.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self._counts: dict[tuple[str, str], RowErrorCount] = {}

    def add(
        self,
        file: TableFile,
        reason: str,
        row_numbers: Sequence[int],
        found: Callable[[int], object],
        count: int | None = None,
    ) -> None:
        """Counts rows of one reason.

        Args:
          row_numbers: their lines (or Parquet rows), counted from 1.
          found: from the index of a row in ``row_numbers`` to the value to quote.
          count: the number of rows, if ``row_numbers`` names only the first ones.

        Raises:
          InputError: ``strict`` is set and there is a row; the error names file, line and reason.
        """
        if not len(row_numbers):
            return
        counted = self._counts.setdefault((file.name, reason), RowErrorCount(file.name, reason))
        counted.count += len(row_numbers) if count is None else count
        for index in range(min(len(row_numbers), QUOTED - len(counted.first))):
            counted.first.append((file.place(int(row_numbers[index])), quoted(found(index))))
        if self.strict:
            place, quote = counted.first[0]
            raise InputError(f"{file.name}, {place}: {reason} (found {quote}), expected no bad row")

    def read_blocks(
        self,
        file: TableFile,
        columns: Sequence[str],
        kinds: Mapping[str, Kind] = MappingProxyType({}),
    ) -> Iterator[Block]:
        """Reads blocks of text columns and counts the rows that do not parse.

        Nested JSON (lists, objects) is JSON text in the cell. See `data.formats.blocks`.

        Args:
          kinds: of some of the columns; the others are of ``any``.

        Raises:
          InputError: the file cannot be read to its end or has none of ``columns``.
        """

        def count(row: BrokenRow) -> None:
            self.add(file, row.reason, [row.row_number], lambda _: row.text)

        return read_blocks(file, dict.fromkeys(columns, "any") | dict(kinds), count)

    @property
    def total(self) -> int:
        """The number of bad rows."""
        return sum(counted.count for counted in self._counts.values())

    def first(self) -> str:
        """Returns the first reason with its first row in brackets, or nothing, for an error."""
        for counted in self._counts.values():
            place, quote = counted.first[0]
            return f" ({place}: {counted.reason}, {quote})"
        return ""

    def records(self) -> list[dict]:
        """Returns each reason with its count and first rows, in the order of occurrence."""
        return [counted.record() for counted in self._counts.values()]


def quoted(value: object) -> str:
    """Returns a value as errors quote it: ``nothing`` for an empty one, cut if it is long."""
    if value is None or value == "":
        return "nothing"
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…")


def first_reason(
    checks: Sequence[tuple[str, Bool[np.ndarray, "rows"]]], rows: int
) -> list[tuple[str, Int64[np.ndarray, "bad"]]]:
    """Returns, for each check, the rows that fail it and no earlier one.

    So a row is counted once. With checks a = [1, 0, 1] and b = [1, 1, 0], rows 0 and 2 fail a and
    row 1 fails b.
    """
    unchecked = np.ones(rows, bool)
    failed = []
    for reason, bad in checks:
        failed.append((reason, np.flatnonzero(bad & unchecked)))
        unchecked &= ~bad
    return failed
