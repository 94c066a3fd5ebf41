"""Lines of JSON objects or of Python literals."""

import ast
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from agenticrec_jax import strict_json
from agenticrec_jax.data.formats.files import TableFile, line_count, read_pieces
from agenticrec_jax.data.formats.rows import (
    EXPECTED,
    RAW_KINDS,
    Block,
    BrokenRow,
    Kind,
    has_empty_row,
    spelled,
    split_list,
)
from agenticrec_jax.errors import InputError
from agenticrec_jax.paths import Path

SEARCHED_LINES = 64  # pieces of at most so many lines are searched for broken lines one by one
INVALID_JSON = "invalid JSON"
NO_ID = "an id that is neither text nor a finite number"

_NUMBER = (str, int, float)
_TYPES = {"text": (str, int), "id": (str, int), "number": _NUMBER, "time": _NUMBER}
_TYPES |= {"list": (str, list), "raw_id": _NUMBER}
# Texts as which polars reads values that are no id.
_LIKE_NO_ID = r"^(?:true|false|[\[{])"
# Half of a pair of surrogates: not a character, so no UTF-8 holds it. polars reads it as NUL.
_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(_HIGH + b"(?!" + _LOW + b")|(?<!" + _HIGH + b")" + _LOW)


@dataclass(frozen=True)
class LineParser:
    """Reads the blocks of a file whose lines are JSON objects or Python dicts."""

    file: TableFile
    columns: Mapping[str, Kind]
    on_broken: Callable[[BrokenRow], None]

    @property
    def _schema(self) -> dict[str, pl.DataType]:
        return {
            name: pl.List(pl.String) if kind == "list" else pl.String
            for name, kind in self.columns.items()
        }

    def blocks(self) -> Iterator[Block]:
        """Yields a block for each piece of the file."""
        for first, piece in read_pieces(self.file):
            yield self._block(piece, first)

    def _block(self, piece: bytes, first: int) -> Block:
        # polars does not say which type a cell had in the file, so typed columns are read by json.
        by_polars = self.file.format == "json" and set(self.columns.values()) <= RAW_KINDS
        count = line_count(piece)
        if by_polars and (frame := self._whole(piece, count)) is not None:
            return Block(frame, np.arange(first, first + count))
        numbered = enumerate(io.BytesIO(piece), start=first)
        lines = ((number, line) for number, line in numbered if line.strip())
        if not by_polars:
            return self._records(lines)
        blocks = list(self._halves(list(lines))) or [self._records([])]
        row_numbers = np.concatenate([block.row_numbers for block in blocks])
        return Block(pl.concat([block.frame for block in blocks]), row_numbers)

    def _whole(self, piece: bytes, rows: int) -> pl.DataFrame | None:
        # polars decompresses bytes that begin like a compressed file, as the text "x^" does
        if _HALF.search(piece) or not piece.lstrip().startswith(b"{"):
            return None
        try:
            frame = pl.read_ndjson(io.BytesIO(piece), schema=self._schema, ignore_errors=True)
        except pl.exceptions.PolarsError:
            return None
        # polars makes empty rows of lines that are JSON but no objects
        if frame.height != rows or has_empty_row(frame):
            return None
        ids = [name for name, kind in self.columns.items() if kind == "raw_id"]
        return None if any(frame[name].str.contains(_LIKE_NO_ID).any() for name in ids) else frame

    def _halves(self, lines: list[tuple[int, bytes]]) -> Iterator[Block]:
        """Halves the lines until polars parses them or they are few enough to search."""
        if not lines:
            return
        frame = self._whole(b"".join(line for _, line in lines), len(lines))
        if frame is not None:
            yield Block(frame, np.array([number for number, _ in lines]))
        elif len(lines) > SEARCHED_LINES:
            middle = len(lines) // 2
            yield from self._halves(lines[:middle])
            yield from self._halves(lines[middle:])
        else:
            yield self._records(lines)

    def _records(self, lines: Iterable[tuple[int, bytes]]) -> Block:
        cells = {name: [] for name in self.columns}
        row_numbers = []
        for number, line in lines:
            record = self._record(number, line)
            if record is not None:
                row_numbers.append(number)
                for name, kind in self.columns.items():
                    cells[name].append(_cell(record.get(name), kind))
        frame = pl.DataFrame(cells, schema=self._schema)
        return Block(frame, np.array(row_numbers, np.int64))

    def _record(self, number: int, line: bytes) -> dict | None:
        """Returns the record of a line, or None after a report of what is wrong with it."""
        try:
            record = _json(line) if self.file.format == "json" else _literal(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            return self._report(number, line, f"{INVALID_JSON} ({error})", "a JSON object a line")
        if not isinstance(record, dict):
            return self._report(number, line, "no JSON object", "one a line")
        for name, kind in self.columns.items():
            if not _has_kind(record.get(name), kind):
                spell = json.dumps if self.file.format == "json" else repr
                cell = spell(record[name])[:60]
                reason = NO_ID if kind == "raw_id" else INVALID_JSON
                return self._report(number, line, cell, EXPECTED[kind], name, reason)
        return record

    def _report(
        self,
        number: int,
        line: bytes,
        found: str,
        expected: str,
        column: str | None = None,
        reason: str = INVALID_JSON,
    ) -> None:
        text = line.rstrip(b"\n").decode("utf-8", "replace")
        self.on_broken(BrokenRow(number, reason, text, found, expected, column))


def _json(line: bytes) -> object:
    # Of a key that is there twice the first counts, as for polars.
    return json.loads(line, object_pairs_hook=_first_of_keys)


def _first_of_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    first: dict[str, object] = {}
    for name, value in pairs:
        first.setdefault(name, value)
    return first


def _literal(line: bytes) -> object:
    return ast.literal_eval(line.decode().strip())


def _has_kind(value: object, kind: Kind) -> bool:
    if kind not in _TYPES or value is None:
        return True
    if isinstance(value, list) and not all(isinstance(each, str) for each in value):
        return False
    if kind in ("id", "raw_id"):  # which halves of surrogate pairs or infinities would share
        if isinstance(value, str) and strict_json.without_halves(value) != value:
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
    # in Python a boolean is an integer
    return isinstance(value, _TYPES[kind]) and not isinstance(value, bool)


def _cell(value: object, kind: Kind) -> str | list[str] | None:
    if kind == "list":
        return [strict_json.without_halves(name) for name in split_list(value)]
    if value is None:
        return None
    if isinstance(value, str):
        return strict_json.without_halves(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return spelled(value)
    try:
        return strict_json.dumps(value, ensure_ascii=False)
    except TypeError:  # of a Python literal, such as bytes or a set
        return repr(value)


def json_record(path: Path, number: int, line: str | bytes) -> dict:
    """Returns the JSON object in line ``number`` of a file.

    Raises:
      InputError: the line holds none; the error names the file and the line.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: found invalid JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}, line {number}: found no JSON object, expected one a line")
    return record
