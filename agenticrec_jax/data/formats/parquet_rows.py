"""Rows of a Parquet file."""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import TableFile, scan_parquet
from agenticrec_jax.data.formats.rows import EXPECTED, RAW_KINDS, Block, Kind, spelled
from agenticrec_jax.data.formats.times import LATEST_TIME
from agenticrec_jax.errors import InputError

BLOCK_ROWS = 2**18
FEWEST_BYTES_OF_TIES = 16  # a float with two shortest spellings has at least as many digits
NESTED = "v"  # any name: polars writes only structs as JSON
_END_OF_9999 = 253_402_300_800  # unix seconds; polars cannot spell all later dates
_PER_SECOND = {"ms": 1e3, "us": 1e6, "ns": 1e9}


def parquet_blocks(file: TableFile, columns: Mapping[str, Kind]) -> Iterator[Block]:
    """Yields blocks of `BLOCK_ROWS` rows.

    Numbers are text without a point if they are whole, dates are unix seconds (UTC if they have no
    zone), and in columns of ``any`` nested values are JSON text. Dates from the year 5138 on, which
    `times.seconds` refuses, are text. In columns of ``raw_id`` a number that is not finite is null.

    Raises:
      InputError: a column is of another type than its kind, or a value of it cannot be read.
    """
    frame = scan_parquet(file)
    schema = frame.collect_schema()
    cells = [
        _cell(file, name, schema.get(name), kind).alias(name) for name, kind in columns.items()
    ]
    rows = frame.select(pl.len()).collect().item()
    for start in range(0, rows, BLOCK_ROWS):
        try:
            block = frame.slice(start, BLOCK_ROWS).select(cells).collect()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{file.path}: found rows that cannot be read ({reason})") from error
        yield Block(block, np.arange(start + 1, start + 1 + block.height))


def _cell(file: TableFile, name: str, dtype: pl.DataType | None, kind: Kind) -> pl.Expr:
    if dtype is None or dtype == pl.Null:
        return pl.lit(None, pl.List(pl.String) if kind == "list" and dtype else pl.String)
    column = pl.col(name)
    readable = _readable(dtype)
    if readable is None or not _fits(dtype, kind):
        expected = EXPECTED.get(kind, "text, numbers, dates or lists of text")
        raise InputError(f"{file.path}, column {name}: found type {dtype}, expected {expected}")
    if isinstance(dtype, pl.List | pl.Array | pl.Struct):
        if kind == "list":
            return column.cast(pl.List(pl.String))
        column = column.cast(readable)
        prefix = '{"' + NESTED + '":'
        text = pl.struct(column.alias(NESTED)).struct.json_encode()
        text = text.str.strip_prefix(prefix).str.strip_suffix("}")
        return pl.when(column.is_not_null()).then(text)
    if isinstance(dtype, pl.Datetime | pl.Date):
        units = column.to_physical().cast(pl.Float64)
        seconds = units * 86400 if dtype == pl.Date else units / _PER_SECOND[dtype.time_unit]
        spellable = pl.when(seconds.is_between(0, _END_OF_9999)).then(column)
        return (
            pl.when(seconds < LATEST_TIME)
            .then(seconds.cast(pl.String))
            .when(seconds < _END_OF_9999)
            .then(spellable.dt.to_string("iso:strict"))
            .when(seconds.is_not_null())
            .then(pl.lit("a date after the year 9999"))
        )
    if dtype.is_float():
        # Whole numbers of float32 have all of their digits, as the same ones of an integer column.
        exact = column.cast(pl.Float64).cast(pl.String)
        text = pl.when(column == column.floor()).then(exact).otherwise(column.cast(pl.String))
        text = text.str.strip_suffix(".0").map_batches(_as_in_json, return_dtype=pl.String)
        is_known = column.is_finite() if kind == "raw_id" else column.is_not_nan()
        return pl.when(is_known).then(text)
    text = column.cast(pl.String)
    if isinstance(dtype, pl.Decimal) and dtype.scale and kind == "raw_id":  # as those of JSON are
        return text.str.strip_chars_end("0").str.strip_suffix(".")
    return text


def _readable(dtype: pl.DataType, nested: bool = False) -> pl.DataType | None:
    """Returns the type with text for bytes in it; None for one that polars may not spell.

    Dates inside a list or a struct are such: polars panics at one that is too far.
    """
    if isinstance(dtype, pl.List | pl.Array):
        inner = _readable(dtype.inner, nested=True)
        return None if inner is None else pl.List(inner)
    if isinstance(dtype, pl.Struct):
        fields = {field.name: _readable(field.dtype, nested=True) for field in dtype.fields}
        return None if any(inner is None for inner in fields.values()) else pl.Struct(fields)
    if isinstance(dtype, pl.Object | pl.Duration):
        return None
    if nested and isinstance(dtype, pl.Date | pl.Datetime):
        return None
    return pl.String() if dtype == pl.Binary else dtype


def _as_in_json(texts: pl.Series) -> pl.Series:
    """Spells numbers as `spelled` does, where that can differ; few columns have any such."""
    differs = texts.str.contains("e") | (texts.str.len_bytes() >= FEWEST_BYTES_OF_TIES)
    rare = texts.filter(differs).unique().to_list()
    return texts.replace({text: spelled(float(text)) for text in rare})


def _fits(dtype: pl.DataType, kind: Kind) -> bool:
    """Whether a column's type is one that exports use for a kind."""
    if kind == "list" and isinstance(dtype, pl.List | pl.Array):
        return dtype.inner == pl.Null or _is_text(dtype.inner)
    if kind in ("number", "time"):
        return _is_text(dtype) or dtype.is_numeric() or isinstance(dtype, pl.Datetime | pl.Date)
    if kind in RAW_KINDS:
        return kind != "raw_id" or _is_text(dtype) or dtype.is_numeric()
    is_whole = dtype.is_integer() or (isinstance(dtype, pl.Decimal) and dtype.scale == 0)
    return _is_text(dtype) or (kind != "list" and is_whole)


def _is_text(dtype: pl.DataType) -> bool:
    return dtype in (pl.String, pl.Categorical, pl.Binary) or isinstance(dtype, pl.Enum)
