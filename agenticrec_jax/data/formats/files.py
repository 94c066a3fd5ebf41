"""Files of tables: their formats by suffix, the names of their columns, their bytes in pieces.

A table is CSV, JSON lines or lines of Python literals (each may be gzipped or a member of a zip
archive), Parquet, or a data frame in memory. Text is read and unzipped in pieces of some megabytes
that end with a whole record, the next piece on a thread while one is parsed, so memory does not
grow with the file.
"""

import csv
import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

import polars as pl

from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import Path, as_path, is_bucket, local_file, require_file

PIECE_BYTES = 16 * 2**20
LONGEST_RECORD = 4 * PIECE_BYTES  # more between two quotation marks is a mark that was not closed
HEADER_BYTES = 2**16  # of a file that are read for its header; more if that is longer
csv.field_size_limit(LONGEST_RECORD)  # a long cell is read by csv as it is by polars

_JSON = (".jsonl", ".ndjson", ".json")
_FORMATS = dict.fromkeys(_JSON, "json") | {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
FRAME = "data frame"  # stands in errors where a file's path does
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STARTS = {  # of what is no text in UTF-8; the longer ones stand first
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",  # of spreadsheets' "Unicode text"
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "a gzip file, whose name has to end in .gz",
    b"PK\x03\x04": "a zip archive",
    b"PAR1\x15": "a Parquet file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\xfd7zXZ\0": "an xz file",
}
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile)


@dataclass(frozen=True)
class TableFile:
    """A file and the format of its rows.

    Attributes:
      path: the file; ``.gz`` is unzipped.
      format: ``csv``, ``json`` (an object a line), ``literal`` (a Python literal a line, the loose
        JSON of the 2014 Amazon metadata) or ``parquet``.
      header: column names of a CSV file that has none in its first line.
      separator: between cells of a CSV file; with ``::`` there are no quotation marks.
      encoding: of a CSV file.
      member: the name of the file inside a zip archive.
      frame: the rows of a table in memory, read as those of Parquet are; no file is read then.
    """

    path: Path
    format: str
    header: tuple[str, ...] | None = None
    separator: str = ","
    encoding: str = "utf-8"
    member: str | None = None
    frame: pl.LazyFrame | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The path; for a member of an archive, the archive's path and the member's name."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def is_quoted(self) -> bool:
        """Whether quotation marks around a cell of a CSV file may hold separators and line ends."""
        return len(self.separator) == 1

    def place(self, row_number: int) -> str:
        """The position of a row in words: ``line 7``, or ``row 7`` of a Parquet file."""
        return f"{'row' if self.format == 'parquet' else 'line'} {row_number}"


def table_file(path: str | os.PathLike, content: str = "a table") -> TableFile:
    """Returns a file with the format of its suffix: .csv, .tsv, .json(l), .ndjson (.gz), .parquet.

    Args:
      path: of the file.
      content: what the error for a missing file says was expected.

    Raises:
      InputError: there is no such file, or the suffix is of no format.
    """
    path = as_path(path)
    require_file(path, content)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in _FORMATS or path.name.endswith(".parquet.gz"):
        raise InputError(
            f"{path}: unknown suffix, expected .csv, .tsv, .jsonl (or .gz) or .parquet"
        )
    return TableFile(path, _FORMATS[suffix], separator="\t" if suffix == ".tsv" else ",")


def column_names(file: TableFile) -> list[str] | None:
    """Returns the column names that a CSV or Parquet file declares; None for lines of objects.

    Raises:
      InputError: the file cannot be read, or has no header.
    """
    if file.format == "parquet":
        return scan_parquet(file).collect_schema().names()
    if file.format == "csv":
        return list(file.header) if file.header else _header_names(file)
    return None


def require_columns(file: TableFile, required: Sequence[str]) -> list[str] | None:
    """Returns `column_names` after a check that the required ones are among them.

    Raises:
      InputError: a CSV or Parquet file has no such column.
    """
    names = column_names(file)
    for name in required if names is not None else ():
        if name not in names:
            where = file.path if file.format == "parquet" else f"{file.path}, line 1"
            raise InputError(f"{where}: column {name} is missing, found {columns_text(names)}")
    return names


def columns_text(names: Sequence[str]) -> str:
    """Returns ``columns user_id, item_id`` for an error, cut as `shorten` cuts."""
    text = f"columns {', '.join(names)}"
    return text if len(text) <= 300 else text[:299] + "…"


def refuse_repeats(file: TableFile, names: Sequence[str], columns: Iterable[str]) -> None:
    """Raises InputError if one of ``columns`` is named twice in a header; other names may be."""
    for name in columns:
        if names.count(name) > 1:
            count = names.count(name)
            raise InputError(f"{file.path}, line 1: found column {name} {count} times, expected 1")


def _header_names(file: TableFile) -> list[str]:
    head = b""
    with _opened(file) as stream:
        while more := _read(file, stream, max(HEADER_BYTES, len(head))):
            head += more
            if record_bytes(head, file.separator) < len(head) or len(head) >= LONGEST_RECORD:
                break
    _check_start(file, head)
    head = head.removeprefix(_BYTE_ORDER_MARK)
    if not head.strip():
        raise InputError(f"{file.path}, line 1: found an empty file, expected a header line")
    head = head[: record_bytes(head, file.separator)].decode(file.encoding, "replace")
    if "\r" in head.rstrip("\r\n"):
        raise InputError(f"{file.path}, line 1: found a line end of CR alone, expected LF or CRLF")
    if not file.is_quoted:
        names = head.split(file.separator)
    else:
        names = next(csv.reader(io.StringIO(head, newline=""), delimiter=file.separator), [])
    if not names:
        raise InputError(f"{file.path}, line 1: found a blank line, expected a header line")
    return [name.strip() for name in names]


def scan_parquet(file: TableFile) -> pl.LazyFrame:
    """Opens a Parquet file without reading its rows; of a table in memory it returns the frame.

    Raises:
      InputError: it is no Parquet file.
    """
    if file.frame is not None:
        return file.frame
    # The path is no pattern: it may hold brackets and stars.
    frame = pl.scan_parquet(local_file(file.path), glob=False)
    try:
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file.path}: no valid Parquet file ({reason})") from error
    return frame


def read_pieces(file: TableFile) -> Iterator[tuple[int, bytes]]:
    """Yields (number of its first line, bytes) of consecutive pieces of whole records.

    A byte order mark is left out.

    Raises:
      InputError: the file cannot be read or unzipped to its end.
    """
    end = _record_end if file.format == "csv" and file.is_quoted else _newline_end
    with _opened(file) as stream, ThreadPoolExecutor(1) as ahead:
        line = 1
        rest = b""
        at_start = True
        reading = ahead.submit(_read, file, stream, PIECE_BYTES)
        while data := reading.result():
            reading = ahead.submit(_read, file, stream, PIECE_BYTES)
            rest += data
            if at_start:
                _check_start(file, rest)
                rest = rest.removeprefix(_BYTE_ORDER_MARK)
                at_start = False
            cut = end(rest) if len(rest) < LONGEST_RECORD else _newline_end(rest)
            if cut:
                piece = rest[:cut]
                rest = rest[cut:]
                yield line, piece
                line += piece.count(b"\n")
        if rest.strip():
            yield line, rest


def _check_start(file: TableFile, start: bytes) -> None:
    """Refuses what would be read as one bad row: another encoding, or one array of all objects."""
    for mark, content in _STARTS.items():
        if start.startswith(mark):
            raise InputError(f"{file.path}, line 1: found {content}, expected text in UTF-8")
    first = start.removeprefix(_BYTE_ORDER_MARK).lstrip()
    line = first.split(b"\n", 1)[0].strip()
    if file.format == "json" and (line == b"[" or line.startswith(b"[{")):
        raise InputError(
            f"{file.path}, line 1: found a JSON array, expected an object a line without brackets "
            "and commas around the objects (JSON lines)"
        )


def line_count(piece: bytes) -> int:
    """Returns the number of lines, the last of which need not end."""
    return piece.count(b"\n") + (not piece.endswith(b"\n"))


def _newline_end(piece: bytes) -> int:
    return piece.rfind(b"\n") + 1


def _record_end(piece: bytes) -> int:
    """Returns the end of the last whole CSV record: after a line end outside quotation marks."""
    end = _newline_end(piece)
    marks = piece.count(b'"', 0, end)
    while marks % 2 and end:
        before = piece.rfind(b"\n", 0, end - 1) + 1
        marks -= piece.count(b'"', before, end)
        end = before
    return end


def record_bytes(piece: bytes, separator: str = ",") -> int:
    """Returns the length of the first CSV record with its line end.

    Quotation marks around a cell may hold line ends; a mark inside a cell is a character.
    """
    stream = io.BytesIO(piece)
    try:
        lines = (line.decode("latin-1") for line in stream)
        next(csv.reader(lines, delimiter=separator[0]), None)
    except csv.Error:  # a cell beyond all bounds: its mark is not closed
        return len(piece)
    return stream.tell()


def _read(file: TableFile, stream: BinaryIO, size: int) -> bytes:
    try:
        return stream.read(size)
    except _UNREADABLE as error:
        raise InputError(f"{file.path}: cannot be read to its end ({error})") from error


def _opened(file: TableFile) -> BinaryIO:
    try:
        if file.path.suffix != ".gz" and not file.member:
            return file.path.open("rb")
        source = file.path.open("rb") if is_bucket(file.path) else file.path
        return zipfile.ZipFile(source).open(file.member) if file.member else gzip.open(source)
    except (*_UNREADABLE, KeyError) as error:
        raise InputError(f"{file.path}: cannot be read ({error})") from error


def read_bytes(path: Path) -> bytes:
    """Returns the file's bytes, unzipped if its name ends in .gz.

    Raises:
      InputError: the file cannot be read or is no valid gzip file.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except _UNREADABLE as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
