"""Tables of text for a run: validated columns, and the file's line for each row.

Cells stay text until a column's meaning is known, so that an id keeps its leading zeros. A table
that does not parse is refused at its first broken row.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int64

from agenticrec_jax.data.formats.blocks import read_blocks
from agenticrec_jax.data.formats.files import TableFile, require_columns, table_file
from agenticrec_jax.data.formats.frames import frame_file, is_frame
from agenticrec_jax.data.formats.rows import BrokenRow, Kind, split_list
from agenticrec_jax.data.formats.times import seconds
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path

LARGEST = float(np.finfo(np.float32).max)  # columns are stored as float32


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text (lists for list columns) and each row's line (or Parquet row) in the file."""

    file: TableFile
    frame: pl.DataFrame
    row_numbers: Int64[np.ndarray, "rows"]

    @property
    def path(self) -> Path:
        return self.file.path

    def place(self, row: int) -> str:
        """The position of a row in words, ``line 7`` or ``row 7`` of a Parquet file."""
        return self.file.place(int(self.row_numbers[row]))

    def error(self, row: int, column: str, found: str, expected: str) -> InputError:
        """Returns the error that names file, line, column, what was found and what was expected."""
        where = f"{self.path}, {self.place(row)}, column {column}"
        return InputError(f"{where}: found {found}, expected {expected}")

    def text(self, column: str, expected: str) -> list[str]:
        """Returns a required text column of one line, without blanks around the text.

        Raises:
          InputError: at the first row where the cell is absent or blank, or has several lines, as
            rows between two stray quotation marks of a CSV file do.
        """
        cells = self.frame[column].str.strip_chars()
        bad = (cells.is_null() | (cells == "")).to_numpy() | spans_lines(cells)
        self._refuse(bad, column, lambda row: _quoted(cells[row]), f"{expected} in one line")
        return cells.to_list()

    def optional_text(self, column: str) -> list[str | None]:
        """Returns a text column; absent, null and blank cells are None."""
        if column not in self.frame.columns:
            return [None] * self.frame.height
        return [cell if cell and cell.strip() else None for cell in self.frame[column]]

    def optional_lists(self, column: str) -> list[tuple[str, ...]]:
        """Returns a column of text lists; text is split at ``|``; absent cells are empty."""
        if column not in self.frame.columns:
            return [()] * self.frame.height
        return [split_list(cell) for cell in self.frame[column].to_list()]

    def numbers(self, column: str, expected: str, required: bool) -> Float[np.ndarray, "rows"]:
        """Returns a column of float64 numbers of at most 3e38, NaN where a cell is absent.

        Raises:
          InputError: at the first cell that is no finite number, or absent though required.
        """
        if column not in self.frame.columns:
            return np.full(self.frame.height, np.nan)
        cells = self.frame[column].str.strip_chars()
        values = cells.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
        absent = (cells.is_null() | (cells == "")).to_numpy()
        bad = ~(np.abs(values) <= LARGEST) & (required | ~absent)
        self._refuse(bad, column, lambda row: _quoted(cells[row]), expected)
        return values

    def times(self, column: str, expected: str) -> Float[np.ndarray, "rows"]:
        """Returns a column of `times.seconds`.

        Raises:
          InputError: at the first cell that is absent, or neither a finite number nor a date.
        """
        cells = self.frame[column]
        values = seconds(cells).fill_null(np.nan).to_numpy()
        self._refuse(~np.isfinite(values), column, lambda row: _quoted(cells[row]), expected)
        return values

    def refuse(
        self, bad: Bool[np.ndarray, "rows"], column: str, found: Sequence, expected: str
    ) -> None:
        """Raises InputError at the first bad row, quoting ``found`` there."""
        self._refuse(bad, column, lambda row: _quoted(found[row]), expected)

    def _refuse(
        self,
        bad: Bool[np.ndarray, "rows"],
        column: str,
        found: Callable[[int], str],
        expected: str,
    ) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            raise self.error(row, column, found(row), expected)


def read_table(
    source: str | os.PathLike | Any,
    required: Sequence[str],
    kinds: Mapping[str, Kind],
    argument: str = "table",
) -> Table:
    """Reads the columns of ``kinds`` that a table has.

    Args:
      source: a file, whose format follows the suffix: .csv, .tsv, .jsonl, .ndjson or .json (each
        also .gz), or .parquet; or a data frame, see `formats.frames.frame_file`.
      required: names of the columns that it must have.
      kinds: of the columns, by name.
      argument: of the caller, whose value is ``source``, for an error.

    Raises:
      InputError: neither a path nor a data frame, missing or unreadable file, unknown suffix, a
        required column missing, broken CSV or JSON, or a JSON cell or Parquet column of the wrong
        type.
    """
    if is_frame(source):
        file = frame_file(source, kinds, required)
    else:
        is_path = isinstance(source, str | os.PathLike)
        expect(is_path, argument, source, "the path of a table, or a data frame")
        file = table_file(source, f"a table of {', '.join(required)}")
    names = require_columns(file, required)
    columns = {name: kind for name, kind in kinds.items() if names is None or name in names}

    def refuse(row: BrokenRow) -> NoReturn:
        column = f", column {row.column}" if row.column else ""
        where = f"{file.path}, {file.place(row.row_number)}{column}"
        raise InputError(f"{where}: found {row.actual}, expected {row.expected}")

    blocks = list(read_blocks(file, columns, refuse, strict_quotes=True))
    if file.format == "json" and not any(block.frame.height for block in blocks):
        raise InputError(f"{file.path}, line 1: found an empty file, expected a JSON object a line")
    if not blocks:
        empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        return Table(file, empty, np.zeros(0, np.int64))
    row_numbers = np.concatenate([block.row_numbers for block in blocks])
    return Table(file, pl.concat([block.frame for block in blocks]), row_numbers)


def spans_lines(cells: pl.Series) -> Bool[np.ndarray, "rows"]:
    """Returns a mask of the cells with a line end in them."""
    return cells.str.contains(r"[\r\n]").fill_null(False).to_numpy()


def _quoted(value: object) -> str:
    return "nothing" if value is None or value == "" else repr(value)
