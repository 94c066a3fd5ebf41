"""Large tables read in blocks: CSV, JSON lines, lines of Python literals (gzipped or not), Parquet.

A block holds some thousands of rows as text and the line of each, so memory does not grow with the
file. A block that parses as a whole is parsed by polars; one that does not is taken apart until the
broken lines are found, which are counted as faults while the others are kept. The next piece of a
file is read and unzipped on a thread while one is parsed.
"""

import ast
import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
from jaxtyping import Int64

from agenticrec_jax.data.tables import lacks_cells, record_bytes
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.row_errors import Faults

PIECE_BYTES = 16 * 2**20
PARQUET_ROWS = 2**18
LONGEST_RECORD = 4 * PIECE_BYTES  # more between two quotation marks is a mark that was not closed
SEARCHED_LINES = 64  # pieces this small are searched for broken lines one by one
INVALID_JSON = "invalid JSON"
NOT_UTF8 = "bytes that are not UTF-8"
CELLS = "a row of another number of cells than the header"

_JSON = (".jsonl", ".ndjson", ".json")
_KINDS = dict.fromkeys(_JSON, "json") | {".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class TableFile:
    """A file and how its rows are written.

    Attributes:
      path: the file; ``.gz`` is unzipped.
      kind: ``csv``, ``json`` (an object a line), ``literal`` (a Python literal a line, the loose
        JSON of the 2014 Amazon metadata) or ``parquet``.
      header: column names of a CSV file that has none in its first line.
      separator: between cells of a CSV file; with ``::`` there are no quotation marks.
      encoding: of a CSV file.
      member: the name of the file inside a zip archive.
    """

    path: Path
    kind: str
    header: tuple[str, ...] | None = None
    separator: str = ","
    encoding: str = "utf-8"
    member: str | None = None

    @property
    def name(self) -> str:
        """The path, for a member that of the archive before it."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def unit(self) -> str:
        """What rows are counted in."""
        return "row" if self.kind == "parquet" else "line"


@dataclass(frozen=True, eq=False)
class Block:
    """Rows as text columns, and where each stands in the file, in its units, counted from 1.

    A column that is absent from the file is null throughout.
    """

    frame: pl.DataFrame
    places: Int64[np.ndarray, "rows"]


def table_file(path: str | Path) -> TableFile:
    """A file whose suffix says how it is written: .csv, .jsonl, .ndjson, .json (.gz), .parquet.

    Raises:
      InputError: if there is no such file or the suffix says nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a table")
    kind = _KINDS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
    if kind is None:
        raise InputError(f"{path}: unknown suffix, expected .csv, .jsonl (or .gz) or .parquet")
    return TableFile(path, kind)


def read_blocks(file: TableFile, columns: Sequence[str], faults: Faults) -> Iterator[Block]:
    """The file's rows in blocks of text columns; broken rows go to ``faults``.

    Nested JSON (lists, objects) is JSON text in the cell. Blank lines are no rows.

    Raises:
      InputError: if the file cannot be read or unzipped to its end, has no header, or a CSV or
        Parquet file lacks all of ``columns``; or at the first broken row if ``faults`` is strict.
    """
    if file.kind == "parquet":
        return _parquet_blocks(file, columns)
    if file.kind == "csv":
        return _csv_blocks(file, columns, faults)
    return _line_blocks(file, columns, faults)


def column_names(file: TableFile) -> list[str] | None:
    """The column names that a CSV or Parquet file declares; None for lines of objects."""
    if file.kind == "parquet":
        return _scan(file).collect_schema().names()
    if file.kind == "csv":
        return list(file.header) if file.header else _first_row(file)
    return None


def _line_blocks(file: TableFile, columns: Sequence[str], faults: Faults) -> Iterator[Block]:
    parse = _Json(file, columns, faults) if file.kind == "json" else _Literal(file, columns, faults)
    for first, piece in _pieces(file, _newline_end):
        frame, places = parse.piece(piece, first)
        yield Block(frame, places)


class _Json:
    """Parses pieces of JSON lines, whole where that works and in halves where it does not."""

    def __init__(self, file: TableFile, columns: Sequence[str], faults: Faults):
        self.file, self.columns, self.faults = file, columns, faults
        self.schema = dict.fromkeys(columns, pl.String)

    def piece(self, piece: bytes, first: int) -> tuple[pl.DataFrame, np.ndarray]:
        count = piece.count(b"\n") + (not piece.endswith(b"\n"))
        frame = self._whole(piece, count)
        if frame is not None:
            return frame, np.arange(first, first + count)
        lines = [(first + i, line) for i, line in enumerate(piece.split(b"\n")) if line.strip()]
        found = list(self._halves(lines))
        frames = [frame for frame, _ in found] or [pl.DataFrame(schema=self.schema)]
        places = [places for _, places in found] or [np.zeros(0, np.int64)]
        return pl.concat(frames), np.concatenate(places)

    def _whole(self, piece: bytes, rows: int) -> pl.DataFrame | None:
        try:
            frame = pl.read_ndjson(io.BytesIO(piece), schema=self.schema, ignore_errors=True)
        except pl.exceptions.PolarsError:
            return None
        # polars makes empty rows of lines that are JSON but no objects
        return frame if frame.height == rows and not _has_empty_row(frame) else None

    def _halves(self, lines: list[tuple[int, bytes]]) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
        if not lines:
            return
        frame = self._whole(b"\n".join(line for _, line in lines), len(lines))
        if frame is not None:
            yield frame, np.array([number for number, _ in lines])
        elif len(lines) > SEARCHED_LINES:
            middle = len(lines) // 2
            yield from self._halves(lines[:middle])
            yield from self._halves(lines[middle:])
        else:
            yield _records(self.file, self.columns, self.faults, lines, json.loads)


class _Literal:
    """Parses pieces of Python literals, a dict a line, one by one."""

    def __init__(self, file: TableFile, columns: Sequence[str], faults: Faults):
        self.file, self.columns, self.faults = file, columns, faults

    def piece(self, piece: bytes, first: int) -> tuple[pl.DataFrame, np.ndarray]:
        lines = [(first + i, line) for i, line in enumerate(piece.split(b"\n")) if line.strip()]
        return _records(self.file, self.columns, self.faults, lines, _literal)


def _literal(line: bytes) -> object:
    return ast.literal_eval(line.decode().strip())


def _records(
    file: TableFile,
    columns: Sequence[str],
    faults: Faults,
    lines: list[tuple[int, bytes]],
    parse: Callable[[bytes], object],
) -> tuple[pl.DataFrame, np.ndarray]:
    rows, places, broken = [], [], []
    for number, line in lines:
        try:
            record = parse(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            record = None
        if isinstance(record, dict):
            rows.append([_cell(record.get(name)) for name in columns])
            places.append(number)
        else:
            broken.append((number, line))
    faults.add(
        file.name,
        INVALID_JSON,
        [number for number, _ in broken],
        lambda i: broken[i][1].decode("utf-8", "replace"),
    )
    schema = dict.fromkeys(columns, pl.String)
    return pl.DataFrame(rows, schema=schema, orient="row"), np.array(places, np.int64)


def _cell(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _csv_blocks(file: TableFile, columns: Sequence[str], faults: Faults) -> Iterator[Block]:
    names = column_names(file)
    wanted = [name for name in columns if name in names]
    if not wanted:
        expected, found = " or ".join(columns), ", ".join(names)
        raise InputError(f"{file.path}, line 1: found columns {found}, expected {expected}")
    absent = [pl.lit(None, pl.String).alias(name) for name in columns if name not in names]
    end = _newline_end if _unquoted(file) else _record_end
    skipped = file.header is not None
    for first, piece in _pieces(file, end):
        if not skipped:
            head = record_bytes(piece)
            piece, first, skipped = piece[head:], first + piece.count(b"\n", 0, head), True
        frame, places = _csv_piece(file, names, piece, first, faults)
        yield Block(frame.select(wanted).with_columns(absent).select(columns), places)


def _unquoted(file: TableFile) -> bool:
    return len(file.separator) > 1


def _csv_piece(file: TableFile, names: list[str], piece: bytes, first: int, faults: Faults):
    if file.encoding != "utf-8":
        piece = piece.decode(file.encoding).encode()
    count = piece.count(b"\n") + (not piece.endswith(b"\n"))
    separator, quote = (",", '"')
    if _unquoted(file):
        piece = piece.replace(file.separator.encode(), b"\t")
        separator, quote = "\t", None
    try:
        frame = pl.read_csv(
            io.BytesIO(separator.join(names).encode() + b"\n" + piece),
            infer_schema=False,
            separator=separator,
            quote_char=quote,
        )
        frame.columns = names
        whole = frame.height == count and not _has_empty_row(frame)
        if whole and not lacks_cells(frame, piece, separator):
            return frame, np.arange(first, first + count)
    except pl.exceptions.PolarsError:
        pass
    return _csv_records(file, names, piece, first, faults, separator, quote)


def _has_empty_row(frame: pl.DataFrame) -> bool:
    return frame.select(pl.all_horizontal(pl.all().is_null()).any()).item()


def _csv_records(file, names, piece: bytes, first: int, faults: Faults, separator, quote):
    text = io.StringIO(piece.decode("utf-8", "surrogateescape"), newline="")
    quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    reader = csv.reader(text, delimiter=separator, quoting=quoting)
    rows, places, start = [], [], 0
    bad: dict[str, list] = {CELLS: [], NOT_UTF8: []}
    while (cells := _next_record(file, reader, first)) is not None:
        number, start = first + start, reader.line_num
        if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
            bad[NOT_UTF8].append((number, separator.join(cells)))
        elif cells and len(cells) != len(names):
            bad[CELLS].append((number, separator.join(cells)))
        elif cells:
            rows.append([cell if cell else None for cell in cells])
            places.append(number)
    for reason, found in bad.items():
        text = [cells.encode("utf-8", "replace").decode() for _, cells in found]
        faults.add(file.name, reason, [number for number, _ in found], text.__getitem__)
    schema = dict.fromkeys(names, pl.String)
    return pl.DataFrame(rows, schema=schema, orient="row"), np.array(places, np.int64)


def _next_record(file: TableFile, reader, first: int) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        line = first + reader.line_num - 1
        raise InputError(f"{file.path}, line {line}: found no valid CSV ({error})") from error


def _first_row(file: TableFile) -> list[str]:
    with _opened(file) as stream:
        head = stream.read(2**16)
    head = head[: record_bytes(head)].decode(file.encoding, "replace")
    row = next(csv.reader(io.StringIO(head, newline="")), [])
    if not row:
        raise InputError(f"{file.path}, line 1: found an empty file, expected a header line")
    return [name.strip().removeprefix("\ufeff") for name in row]


def _newline_end(piece: bytes) -> int:
    return piece.rfind(b"\n") + 1


def _record_end(piece: bytes) -> int:
    """Where the last whole CSV record ends: after a line end outside quotation marks."""
    end = _newline_end(piece)
    marks = piece.count(b'"', 0, end)
    while marks % 2 and end:
        before = piece.rfind(b"\n", 0, end - 1) + 1
        marks -= piece.count(b'"', before, end)
        end = before
    return end


def _pieces(file: TableFile, end: Callable[[bytes], int]) -> Iterator[tuple[int, bytes]]:
    """(line of its first byte, bytes) of consecutive pieces that end where ``end`` says."""
    with _opened(file) as stream, ThreadPoolExecutor(1) as ahead:
        line, rest = 1, b""
        reading = ahead.submit(_read, file, stream)
        while True:
            data = reading.result()
            if not data:
                break
            reading = ahead.submit(_read, file, stream)
            rest += data
            cut = end(rest) if len(rest) < LONGEST_RECORD else _newline_end(rest)
            piece, rest = rest[:cut], rest[cut:]
            if piece:
                yield line, piece
                line += piece.count(b"\n")
        if rest.strip():
            yield line, rest


def _read(file: TableFile, stream: BinaryIO) -> bytes:
    try:
        return stream.read(PIECE_BYTES)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{file.path}: cannot be read to its end ({error})") from error


def _opened(file: TableFile) -> BinaryIO:
    try:
        if file.member:
            return zipfile.ZipFile(file.path).open(file.member)
        return gzip.open(file.path) if file.path.suffix == ".gz" else open(file.path, "rb")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{file.path}: cannot be read ({error})") from error


def _scan(file: TableFile) -> pl.LazyFrame:
    frame = pl.scan_parquet(file.path)
    try:
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file.path}: no valid Parquet file ({reason})") from error
    return frame


def _parquet_blocks(file: TableFile, columns: Sequence[str]) -> Iterator[Block]:
    frame = _scan(file)
    schema = frame.collect_schema()
    if not set(columns) & set(schema):
        expected, found = " or ".join(columns), ", ".join(schema)
        raise InputError(f"{file.path}: found columns {found}, expected {expected}")
    cells = [_parquet_cell(name, schema.get(name)).alias(name) for name in columns]
    rows = frame.select(pl.len()).collect().item()
    for start in range(0, rows, PARQUET_ROWS):
        block = frame.slice(start, PARQUET_ROWS).select(cells).collect()
        yield Block(block, np.arange(start + 1, start + 1 + block.height))


def _parquet_cell(name: str, dtype: pl.DataType | None) -> pl.Expr:
    if dtype is None:
        return pl.lit(None, pl.String)
    if isinstance(dtype, pl.List):
        return pl.col(name).cast(pl.List(pl.String)).list.join("|")
    if isinstance(dtype, pl.Datetime | pl.Date):
        seconds = pl.col(name).cast(pl.Datetime("ms")).dt.epoch("ms") / 1000
        return seconds.cast(pl.String)
    return pl.col(name).cast(pl.String)
