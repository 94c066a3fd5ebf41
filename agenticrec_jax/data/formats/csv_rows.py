"""Records of a CSV file."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import (
    LONGEST_RECORD,
    TableFile,
    line_count,
    read_pieces,
    record_bytes,
)
from agenticrec_jax.data.formats.rows import Block, BrokenRow, has_empty_row
from agenticrec_jax.errors import InputError

NOT_UTF8 = "bytes that are not UTF-8"
_LONE_CR = re.compile(rb"\r(?!\n)")
CELLS = "a row of another number of cells than the header"


@dataclass(frozen=True)
class CsvParser:
    """Reads the blocks of a CSV file, a piece at a time.

    Attributes:
      names: the columns of the file, in its order.
      strict_quotes: see `read_blocks`.
    """

    file: TableFile
    names: Sequence[str]
    on_broken: Callable[[BrokenRow], None]
    strict_quotes: bool = False

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
                head = record_bytes(piece)
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
        if _LONE_CR.search(piece):  # polars takes it for a character, also outside quotation marks
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
        text = io.StringIO(piece.decode("utf-8", "surrogateescape"), newline="\n")
        lines = []  # of the record that is being read

        def recorded() -> Iterator[str]:
            for line in text:
                lines.append(line)
                yield line

        csv.field_size_limit(LONGEST_RECORD)  # a long cell is read here as it is by polars
        reader = csv.reader(
            recorded(),
            delimiter=self._separator,
            quoting=csv.QUOTE_MINIMAL if self.file.is_quoted else csv.QUOTE_NONE,
            strict=self.strict_quotes,
        )
        number = first
        while True:
            lines.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise self._malformed(number, str(error)) from error
            if cells is None:
                return
            record = "".join(lines)
            if self.strict_quotes and record.count('"') % 2:
                raise self._malformed(number, "a quotation mark that none closes")
            yield number, cells
            number += record.count("\n")

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
