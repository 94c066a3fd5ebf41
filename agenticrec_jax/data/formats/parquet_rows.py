"""Rows of a Parquet file."""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import TableFile, scan_parquet
from agenticrec_jax.data.formats.rows import Block, Kind, spelled
from agenticrec_jax.data.formats.times import LATEST_TIME
from agenticrec_jax.errors import InputError

BLOCK_ROWS = 2**18
FEWEST_BYTES_OF_TIES = 16  # a float with two shortest spellings has at least as many digits
NESTED = "v"  # any name: polars writes only structs as JSON


def parquet_blocks(file: TableFile, columns: Mapping[str, Kind]) -> Iterator[Block]:
    """Yields blocks of `BLOCK_ROWS` rows.

    Numbers are text without a point if they are whole, dates are unix seconds (UTC if they have no
    zone), and in columns of ``any`` nested values are JSON text. Dates from the year 5138 on, which
    `times.seconds` refuses, are text.

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
    if kind != "any" and not _fits(dtype, kind):
        raise InputError(f"{file.path}, column {name}: found type {dtype}, expected {kind}")
    if isinstance(dtype, pl.List | pl.Array | pl.Struct):
        if kind == "list":
            return column.cast(pl.List(pl.String))
        prefix = '{"' + NESTED + '":'
        text = pl.struct(column.alias(NESTED)).struct.json_encode()
        text = text.str.strip_prefix(prefix).str.strip_suffix("}")
        return pl.when(column.is_not_null()).then(text)
    if isinstance(dtype, pl.Datetime | pl.Date):
        seconds = column.dt.epoch("us") / 1_000_000
        text = column.dt.to_string("iso:strict")
        return pl.when(seconds < LATEST_TIME).then(seconds.cast(pl.String)).otherwise(text)
    if dtype.is_float():
        # Whole numbers of float32 have all of their digits, as the same ones of an integer column.
        exact = column.cast(pl.Float64).cast(pl.String)
        text = pl.when(column == column.floor()).then(exact).otherwise(column.cast(pl.String))
        text = text.str.strip_suffix(".0").map_batches(_as_in_json, return_dtype=pl.String)
        return pl.when(column.is_not_nan()).then(text)
    return column.cast(pl.String)


def _as_in_json(texts: pl.Series) -> pl.Series:
    """Spells numbers as `spelled` does, where that can differ; few columns have any such."""
    differs = texts.str.contains("e") | (texts.str.len_bytes() >= FEWEST_BYTES_OF_TIES)
    rare = texts.filter(differs).unique().to_list()
    return texts.replace({text: spelled(float(text)) for text in rare})


def _fits(dtype: pl.DataType, kind: Kind) -> bool:
    """Whether a column's type is one that exports use for a kind."""
    is_text = dtype in (pl.String, pl.Categorical, pl.Binary) or isinstance(dtype, pl.Enum)
    if kind == "list" and isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        return inner in (pl.String, pl.Categorical, pl.Null) or isinstance(inner, pl.Enum)
    if kind == "number":
        return is_text or dtype.is_numeric() or isinstance(dtype, pl.Datetime | pl.Date)
    is_whole = dtype.is_integer() or (isinstance(dtype, pl.Decimal) and dtype.scale == 0)
    return is_text or (kind == "text" and is_whole)
