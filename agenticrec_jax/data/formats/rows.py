"""Rows of a table as a reader yields them: blocks of columns, and the rows that do not parse."""

import ast
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Int64

Kind = Literal["text", "id", "number", "time", "list", "any", "raw_id", "raw_time"]
RAW_KINDS = {"any", "raw_id", "raw_time"}  # whose cells the ingestion checks and counts
EXPECTED = {  # of a cell, for errors
    "text": "text",
    "id": "text or a whole number",
    "number": "a number",
    "time": "a number or a date",
    "list": "a list of text",
    "raw_id": "text or a finite number",
}
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
      actual: what an error about this one row says was found.
      expected: what such an error says was expected.
      column: the column of the faulty cell; None if the fault is of the whole row.
    """

    row_number: int
    reason: str
    text: str
    actual: str
    expected: str
    column: str | None = None


def split_list(cell: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names in a cell of a list column; text is a list in brackets or split at ``|``.

    Example:
      >>> split_list("pens | ink"), split_list("['a|b', 'c']")
      (('pens', 'ink'), ('a|b', 'c'))
    """
    value = parsed_list(cell) if isinstance(cell, str) else cell or ()
    names = value.split(LIST_SEPARATOR) if isinstance(value, str) else value
    return tuple(name.strip() for name in names if isinstance(name, str) and name.strip())


def parsed_list(text: str) -> list | str:
    """Returns the list that text holds as JSON or as Python writes it; any other text as it is."""
    if not text.lstrip().startswith("["):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    return text


def spelled(number: int | float) -> str:
    """Returns a number of JSON or Parquet as text, such that an id is the same in each format.

    A whole number has no point: programs that know no missing integer write 7 as 7.0. There is no
    exponent: polars reads the 1e-7 of JSON as 0.0000001. Of two shortest spellings that are equally
    close to the number, its reader of JSON takes the larger one, and so does this.

    Example:
      >>> spelled(7), spelled(7.0), spelled(1e3), spelled(2.5), spelled(1e-7)
      ('7', '7', '1000', '2.5', '0.0000001')
      >>> spelled(2.0**49 + 0.25)  # Python writes 562949953421312.2
      '562949953421312.3'
    """
    if not (isinstance(number, float) and math.isfinite(number)):
        return str(number)
    text = np.format_float_positional(number, trim="-")
    if number.is_integer():  # whose shortest spelling is the only one
        return text
    shortest = Decimal(text)
    larger = shortest + Decimal(1).scaleb(shortest.as_tuple().exponent).copy_sign(shortest)
    exact = Decimal(number)
    return format(larger, "f") if abs(larger - exact) == abs(shortest - exact) else text


def has_empty_row(frame: pl.DataFrame) -> bool:
    """Whether all cells of some row are null."""
    return frame.select(pl.all_horizontal(pl.all().is_null()).any()).item()
