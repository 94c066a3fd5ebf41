"""Records of a CSV file."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import (
    TableFile,
    line_count,
    read_pieces,
    record_bytes,
)
from agenticrec_jax.data.formats.rows import Block, BrokenRow, has_empty_row
from agenticrec_jax.data.formats.times import seconds
from agenticrec_jax.errors import InputError

NOT_UTF8 = "bytes that are not UTF-8"
_LONE_CR = re.compile(rb"\r(?!\n)")
CELLS = "a row of another number of cells than the header"
MARK = "a quotation mark at the start of a cell that no mark at the end of a cell closes"
ROWS = "a cell in quotation marks that holds other rows"


class _Lines:
    """Lines of a text, which can be read again: ``next`` is the index of the next one."""

    def __init__(self, text: str):
        self.lines = list(io.StringIO(text, newline="\n"))
        self.next = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.next == len(self.lines):
            raise StopIteration
        self.next += 1
        return self.lines[self.next - 1]


@dataclass(frozen=True)
class CsvParser:
    """Reads the blocks of a CSV file, a piece at a time.

    Attributes:
      names: the columns of the file, in its order.
      strict_quotes: see `read_blocks`.
      time: index of a column of times.
    """

    file: TableFile
    names: Sequence[str]
    on_broken: Callable[[BrokenRow], None]
    strict_quotes: bool = False
    time: int | None = None

    @property
    def _columns(self) -> list[str]:
        # not by their names, which may hold separators and quotation marks or be the same
        return [f"c{index}" for index in range(len(self.names))]

    @property
    def _separator(self) -> str:
        return self.file.separator if self.file.is_quoted else "\t"

    def blocks(self, columns: Iterable[str]) -> Iterator[Block]:
        """Yields the named columns, each at most once in the header; nulls for an absent one."""
        cells = [
            pl.col(f"c{self.names.index(name)}").alias(name)
            if name in self.names
            else pl.lit(None, pl.String).alias(name)
            for name in columns
        ]
        in_header = self.file.header is None
        for first, piece in read_pieces(self.file):
            if in_header:
                head = record_bytes(piece, self.file.separator)
                self._check_header(piece[:head])
                first += piece.count(b"\n", 0, head)
                piece = piece[head:]
                in_header = False
            block = self.by_piece(piece, first)
            yield Block(block.frame.select(cells), block.row_numbers)

    def _check_header(self, head: bytes) -> None:
        if not self.strict_quotes:
            return
        where = f"{self.file.path}, line 1"
        if head.count(b'"') % 2:
            raise InputError(
                f"{where}: found a quotation mark that none closes, expected names of columns"
            )
        try:
            head.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: found {NOT_UTF8}, expected names of columns") from error

    def by_piece(self, piece: bytes, first: int) -> Block:
        """Returns a piece's rows in columns c0, c1, ... of text; ``first`` is its first line."""
        if self.file.encoding != "utf-8":
            piece = piece.decode(self.file.encoding).encode()
        if not self.file.is_quoted:
            piece = piece.replace(self.file.separator.encode(), b"\t")
        # polars takes a CR for a character, also outside quotation marks, and drops an empty cell
        # at the end of a file without a last line end
        if _LONE_CR.search(piece) or piece.endswith(self._separator.encode()):
            return self.by_record(piece, first)
        count = line_count(piece)
        header = self._separator.join(self._columns).encode()
        try:
            frame = pl.read_csv(
                io.BytesIO(header + b"\n" + piece),
                infer_schema=False,
                separator=self._separator,
                quote_char='"' if self.file.is_quoted else None,
            )
        except pl.exceptions.PolarsError:
            return self.by_record(piece, first)
        whole = frame.height == count and not has_empty_row(frame)
        if whole and not _lacks_cells(frame, piece, self._separator):
            return Block(frame, np.arange(first, first + count))
        return self.by_record(piece, first)

    def by_record(self, piece: bytes, first: int) -> Block:
        """Returns the same one record at a time: of any piece, but many times slower."""
        rows = []
        row_numbers = []
        for number, cells in self._records(piece, first):
            text = self._separator.join(cells)
            if not _is_utf8(text):
                text = text.encode("utf-8", "replace").decode()
                self.on_broken(BrokenRow(number, NOT_UTF8, text, NOT_UTF8, "text"))
            elif cells and len(cells) != len(self.names):
                expected = f"{len(self.names)} as in the header"
                self.on_broken(BrokenRow(number, CELLS, text, f"{len(cells)} cells", expected))
            elif cells:
                rows.append([cell if cell else None for cell in cells])
                row_numbers.append(number)
        schema = dict.fromkeys(self._columns, pl.String)
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        return Block(frame, np.array(row_numbers, np.int64))

    def _records(self, piece: bytes, first: int) -> Iterator[tuple[int, list[str]]]:
        """Yields (number of its first line, cells) of each record; blank lines have no cells."""
        text = _Lines(piece.decode("utf-8", "surrogateescape"))
        reader = self._reader(text, strict=self.strict_quotes)
        closing = None  # index of the line with the mark at the end of a cell that holds rows
        while True:
            start = text.next
            number = first + start
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise self._malformed(number, str(error)) from error
            if cells is None:
                return
            lines = text.lines[start : text.next]
            if self.strict_quotes and "".join(lines).count('"') % 2:
                raise self._malformed(number, "a quotation mark that none closes")
            fault = self._fault(lines, cells) if len(lines) > 1 else None
            fault = ROWS if start == closing else fault
            if fault and self.strict_quotes:
                raise self._malformed(number, fault)
            if fault:
                line = lines[0].rstrip("\r\n").encode("utf-8", "replace").decode()
                self.on_broken(BrokenRow(number, fault, line, fault, "a row of cells"))
                if fault == ROWS and len(lines) > 1:
                    closing = text.next - 1
                text.next = start + 1  # the others may be rows
            else:
                yield number, cells

    def _reader(self, lines: Iterable[str], strict: bool) -> Iterator[list[str]]:
        quoting = csv.QUOTE_MINIMAL if self.file.is_quoted else csv.QUOTE_NONE
        return csv.reader(lines, delimiter=self._separator, quoting=quoting, strict=strict)

    def _fault(self, lines: Sequence[str], cells: list[str]) -> str | None:
        """Returns the fault of a record of several lines, which may be rows with stray marks."""
        try:
            next(self._reader(lines, strict=True))
        except csv.Error:
            return MARK
        holds_rows = any(self._holds_rows(cells, index) for index in range(len(cells)))
        return ROWS if holds_rows else None

    def _holds_rows(self, cells: list[str], index: int) -> bool:
        """Whether the lines of a cell are rows: whole ones, or with the cells beside it.

        The second cell of the record ``a,"pen,5⏎b,ink",7`` ends one row and begins another. Text
        that is meant to have several lines has no time where the column of times is.
        """
        if self.time is None or "\n" not in cells[index]:
            return False
        first, *between, last = map(self._split, cells[index].split("\n"))
        ends = [self._is_row(cells[:index] + first), self._is_row(last + cells[index + 1 :])]
        is_whole = len(cells) == len(self.names)
        return any(map(self._is_row, between)) or (all(ends) if is_whole else any(ends))

    def _split(self, line: str) -> list[str]:
        try:
            return next(self._reader([line], strict=False), [""])
        except csv.Error:  # a line end of CR alone, which a cell in marks may hold
            return [line]

    def _is_row(self, cells: list[str]) -> bool:
        if len(cells) != len(self.names):
            return False
        return seconds(pl.Series([cells[self.time]]))[0] is not None

    def _malformed(self, number: int, reason: str) -> InputError:
        where = f"{self.file.path}, line {number}"
        return InputError(f"{where}: found no valid CSV ({reason}), expected a row of cells")


def _is_utf8(text: str) -> bool:
    """Whether text that was decoded with surrogates for bad bytes has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lacks_cells(frame: pl.DataFrame, rows: bytes, separator: str) -> bool:
    """Whether polars filled up a row that has too few cells.

    It counts separators: those in the file, less those inside cells, stand between cells. Of three
    columns, ``1,"x,y",`` has 3 - 1 = 2, as a row must have, and ``2,z`` has 1.

    Args:
      frame: the text columns that polars read.
      rows: the bytes that it read, without a header and without a blank line.
    """
    if not frame[:, -1].null_count():  # the cells that it puts in are null and last
        return False
    quoted = pl.all().str.count_matches(separator, literal=True).sum()
    between = rows.count(separator.encode()) - frame.select(quoted).sum_horizontal().item()
    return between < frame.height * (frame.width - 1)
