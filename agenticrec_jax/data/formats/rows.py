"""Rows of a table as a reader yields them: blocks of columns, and the rows that do not parse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Int64

Kind = Literal["text", "number", "list", "any"]
LIST_SEPARATOR = "|"


@dataclass(frozen=True, eq=False)
class Block:
    """Rows in columns, and the number of each row's first line (or Parquet row), counted from 1.

    A column that is absent from the file is null throughout.
    """

    frame: pl.DataFrame
    row_numbers: Int64[np.ndarray, "rows"]


@dataclass(frozen=True)
class BrokenRow:
    """A row that does not parse.

    Attributes:
      row_number: the number of its first line.
      reason: one of a few, for counting.
      text: the row as it stands in the file.
      found: what an error about this one row says was found.
      expected: what such an error says was expected.
      column: the column of the faulty cell; None if the fault is of the whole row.
    """

    row_number: int
    reason: str
    text: str
    found: str
    expected: str
    column: str | None = None


def split_list(cell: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names in a cell of a list column; text is split at ``|``."""
    names = cell.split(LIST_SEPARATOR) if isinstance(cell, str) else cell or ()
    return tuple(name.strip() for name in names if name and name.strip())


def has_empty_row(frame: pl.DataFrame) -> bool:
    """Whether all cells of some row are null."""
    return frame.select(pl.all_horizontal(pl.all().is_null()).any()).item()
