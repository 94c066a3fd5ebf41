"""Tables of text from CSV, JSON lines (or .gz of either) or Parquet; each row knows its place.

Cells stay text until a column's meaning is known, so that an id keeps its leading zeros. Parsing is
vectorized; the exact line of a faulty row is looked up only when there is a fault to report.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from agenticrec_jax.errors import InputError

LIST_SEPARATOR = "|"
_JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_KINDS = {"text": (str, int), "number": (str, int, float), "list": (str, list)}


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text (lists for list columns), and where each row stands in the file.

    ``place(row)`` is that place in words, "line 7" or, for Parquet, "row 7", counted from 1.
    """

    path: Path
    frame: pl.DataFrame
    place: Callable[[int], str]

    def fault(self, row: int, column: str, found: str, expected: str) -> InputError:
        """The error that names file, line, column, what was found and what was expected."""
        where = f"{self.path}, {self.place(row)}, column {column}"
        return InputError(f"{where}: found {found}, expected {expected}")

    def text(self, column: str, expected: str) -> list[str]:
        """A required text column.

        Raises:
          InputError: at the first row where the cell is absent or blank.
        """
        cells = self.frame[column]
        missing = (cells.is_null() | (cells.str.strip_chars() == "")).to_numpy()
        self._refuse(missing, column, lambda row: "nothing", expected)
        return cells.to_list()

    def optional_text(self, column: str) -> list[str | None]:
        """A text column; absent, null and blank cells are None."""
        if column not in self.frame.columns:
            return [None] * self.frame.height
        return [cell if cell and cell.strip() else None for cell in self.frame[column]]

    def optional_lists(self, column: str) -> list[tuple[str, ...]]:
        """A column of text lists; text is split at ``|``; absent cells are empty."""
        if column not in self.frame.columns:
            return [()] * self.frame.height
        return [_split(cell) for cell in self.frame[column].to_list()]

    def numbers(self, column: str, expected: str, required: bool) -> Float[np.ndarray, "rows"]:
        """A column of finite float64 numbers, NaN where an optional cell is absent.

        Raises:
          InputError: at the first cell that is no finite number, or absent though required.
        """
        if column not in self.frame.columns:
            return np.full(self.frame.height, np.nan)
        cells = self.frame[column].str.strip_chars()
        values = cells.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
        absent = (cells.is_null() | (cells == "")).to_numpy()
        bad = ~np.isfinite(values) & (required | ~absent)
        self._refuse(bad, column, lambda row: _quoted(cells[row]), expected)
        return values

    def refuse(
        self, bad: Bool[np.ndarray, "rows"], column: str, found: Sequence, expected: str
    ) -> None:
        """Raises InputError at the first bad row, quoting ``found`` there."""
        self._refuse(bad, column, lambda row: _quoted(found[row]), expected)

    def _refuse(self, bad, column, found, expected) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            raise self.fault(row, column, found(row), expected)


def read_table(path: str | Path, required: Sequence[str], kinds: dict[str, str]) -> Table:
    """Reads the columns of ``kinds`` ("text", "number" or "list") that the file has.

    The format follows the suffix: .csv, .jsonl or .ndjson (each also .gz), or .parquet.

    Raises:
      InputError: missing or unreadable file, unknown suffix, a required column missing, broken
        CSV or JSON, or a JSON cell of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a table of {', '.join(required)}")
    if path.name.endswith((".csv", ".csv.gz")):
        table = _read_csv(path)
    elif path.name.endswith(_JSON_SUFFIXES):
        table = _read_jsonl(path, required, kinds)
    elif path.name.endswith(".parquet"):
        table = _read_parquet(path, kinds)
    else:
        raise InputError(f"{path}: unknown suffix, expected .csv, .jsonl (.gz) or .parquet")
    _check_columns(table, required)
    return table


def read_bytes(path: Path) -> bytes:
    """The file's bytes, unzipped if its name ends in .gz.

    Raises:
      InputError: if the file cannot be read or is no valid gzip file.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _check_columns(table: Table, required: Sequence[str]) -> None:
    missing = [name for name in required if name not in table.frame.columns]
    if missing:
        found = ", ".join(table.frame.columns) or "none"
        raise InputError(
            f"{table.path}, line 1: column {missing[0]} is missing, found columns {found}"
        )


def _quoted(value) -> str:
    return "nothing" if value is None or value == "" else repr(value)


def _split(cell) -> tuple[str, ...]:
    parts = cell.split(LIST_SEPARATOR) if isinstance(cell, str) else cell or ()
    return tuple(part.strip() for part in parts if part and part.strip())


def _read_csv(path: Path) -> Table:
    data = _strip_mark(read_bytes(path))
    if not data.strip():
        raise InputError(f"{path}, line 1: found an empty file, expected a header line")
    head = record_bytes(data)
    if data.count(b'"', 0, head) % 2:  # polars would take all rows for a part of the header
        found = "found a quotation mark that none closes"
        raise InputError(f"{path}, line 1: {found}, expected names of columns")
    try:
        frame = pl.read_csv(data, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise _csv_fault(path, data, str(error).splitlines()[0]) from error
    if frame.select(pl.all_horizontal(pl.all().is_null()).any()).item():
        lines = _csv_lines(path, data)
        lacking = any(cells and len(cells) != frame.width for _, cells in lines)
        kept = [row for row, (_, cells) in enumerate(lines) if cells]
    else:
        lacking, kept = lacks_cells(frame, data[head:]), range(frame.height)
    if lacking:
        raise _csv_fault(path, data, "rows of fewer cells than the header")
    return Table(path, frame[kept], lambda row: f"line {_csv_lines(path, data)[kept[row]][0]}")


def lacks_cells(frame: pl.DataFrame, rows: bytes, separator: str = ",") -> bool:
    """Whether polars filled up a row of too few cells in the text columns that it read.

    Args:
      rows: what it read, without a header, of which no line is blank.
    """
    if not frame[:, -1].null_count():  # the cells that it puts in are null and last
        return False
    quoted = pl.all().str.count_matches(separator, literal=True).sum()
    between = rows.count(separator.encode()) - frame.select(quoted).sum_horizontal().item()
    return between < frame.height * (frame.width - 1)


def record_bytes(piece: bytes) -> int:
    """The length of the first record with its line end.

    Quotation marks around a cell may hold line ends; a mark inside a cell is a character.
    """
    stream = io.BytesIO(piece)
    try:
        next(csv.reader(line.decode("latin-1") for line in stream), None)
    except csv.Error:  # a cell beyond all bounds: its mark is not closed
        return len(piece)
    return stream.tell()


def _strip_mark(data: bytes) -> bytes:
    return data.removeprefix(b"\xef\xbb\xbf")


def _csv_lines(path: Path, data: bytes) -> list[tuple[int, list[str]]]:
    """(first line, cells) of every record after the header; a record may span several lines."""
    reader = csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""))
    records, line = [], 1
    try:
        for cells in reader:
            records.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        found = f"found no valid CSV ({error})"
        raise InputError(f"{path}, line {line}: {found}, expected a row of cells") from error
    return records[1:]


def _csv_fault(path: Path, data: bytes, reason: str) -> InputError:
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return InputError(
                f"{path}, line {number}: found bytes that are not UTF-8, expected text"
            )
    width = len(next(csv.reader(io.StringIO(data.decode("utf-8"), newline=""))))
    for number, cells in _csv_lines(path, data):
        if cells and len(cells) != width:
            found = f"found {len(cells)} cells, expected {width} as in the header"
            return InputError(f"{path}, line {number}: {found}")
    return InputError(f"{path}: found no valid CSV ({reason}), expected a header and its rows")


def _read_jsonl(path: Path, required: Sequence[str], kinds: dict[str, str]) -> Table:
    columns: dict[str, list] = {name: [] for name in kinds}
    lines: list[int] = []
    present: set[str] = set()
    for number, line in enumerate(_strip_mark(read_bytes(path)).splitlines(), start=1):
        if not line.strip():
            continue
        record = json_record(path, number, line)
        lines.append(number)
        present.update(record.keys() & kinds.keys())
        for name, cells in columns.items():
            cells.append(_json_cell(path, number, name, kinds[name], record.get(name)))
    if not lines:
        raise InputError(f"{path}, line 1: found an empty file, expected a JSON object a line")
    present.update(required)
    frame = pl.DataFrame(
        {name: _series(cells, kinds[name]) for name, cells in columns.items() if name in present}
    )
    return Table(path, frame, lambda row: f"line {lines[row]}")


def json_record(path: Path, number: int, line: str | bytes) -> dict:
    """The JSON object in line ``number`` of a file; InputError naming the line if it is none."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: found invalid JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}, line {number}: found no JSON object, expected one a line")
    return record


def _json_cell(path: Path, number: int, name: str, kind: str, value):
    wrong = value is not None and not isinstance(value, _KINDS[kind])
    if isinstance(value, list):
        wrong = wrong or not all(isinstance(part, str) for part in value)
    if wrong or isinstance(value, bool):
        expected = {"text": "text", "number": "a number", "list": "a list of text"}[kind]
        where = f"{path}, line {number}, column {name}"
        raise InputError(f"{where}: found {json.dumps(value)[:60]}, expected {expected}")
    return value if kind == "list" or value is None else str(value)


def _series(cells: list, kind: str) -> pl.Series:
    if kind == "list":
        return pl.Series([list(_split(cell)) for cell in cells], dtype=pl.List(pl.String))
    return pl.Series(cells, dtype=pl.String)


def _read_parquet(path: Path, kinds: dict[str, str]) -> Table:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: no valid Parquet file ({reason})") from error
    frame = frame.select([name for name in kinds if name in frame.columns])
    columns = [_parquet_column(path, frame[name], kinds[name]) for name in frame.columns]
    return Table(path, pl.DataFrame(columns), lambda row: f"row {row + 1}")


def _parquet_column(path: Path, column: pl.Series, kind: str) -> pl.Series:
    dtype = column.dtype
    fits = {
        "text": dtype in (pl.String, pl.Categorical) or dtype.is_integer(),
        "number": dtype == pl.String or dtype.is_numeric(),
        "list": dtype in (pl.String, pl.List(pl.String)),
    }[kind]
    if not fits and dtype != pl.Null:
        raise InputError(f"{path}, column {column.name}: found type {dtype}, expected {kind}")
    return column if dtype == pl.List(pl.String) else column.cast(pl.String)
