"""Rows of a Parquet file."""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import TableFile, scan_parquet
from agenticrec_jax.data.formats.rows import LIST_SEPARATOR, Block, Kind
from agenticrec_jax.errors import InputError

BLOCK_ROWS = 2**18


def parquet_blocks(file: TableFile, columns: Mapping[str, Kind]) -> Iterator[Block]:
    """Yields blocks of `BLOCK_ROWS` rows.

    In columns of ``any`` lists are joined by ``|`` and dates become unix seconds.

    Raises:
      InputError: a column is of another type than its kind.
    """
    frame = scan_parquet(file)
    schema = frame.collect_schema()
    cells = [
        _cell(file, name, schema.get(name), kind).alias(name) for name, kind in columns.items()
    ]
    rows = frame.select(pl.len()).collect().item()
    for start in range(0, rows, BLOCK_ROWS):
        block = frame.slice(start, BLOCK_ROWS).select(cells).collect()
        yield Block(block, np.arange(start + 1, start + 1 + block.height))


def _cell(file: TableFile, name: str, dtype: pl.DataType | None, kind: Kind) -> pl.Expr:
    if dtype is None:
        return pl.lit(None, pl.String)
    if kind != "any":
        _check_type(file, name, dtype, kind)
        return pl.col(name) if dtype == pl.List(pl.String) else pl.col(name).cast(pl.String)
    if isinstance(dtype, pl.List):
        return pl.col(name).cast(pl.List(pl.String)).list.join(LIST_SEPARATOR)
    if isinstance(dtype, pl.Datetime | pl.Date):
        seconds = pl.col(name).cast(pl.Datetime("ms")).dt.epoch("ms") / 1000
        return seconds.cast(pl.String)
    return pl.col(name).cast(pl.String)


def _check_type(file: TableFile, name: str, dtype: pl.DataType, kind: Kind) -> None:
    fits = {
        "text": dtype in (pl.String, pl.Categorical) or dtype.is_integer(),
        "number": dtype == pl.String or dtype.is_numeric(),
        "list": dtype in (pl.String, pl.List(pl.String)),
    }[kind]
    if not fits and dtype != pl.Null:
        raise InputError(f"{file.path}, column {name}: found type {dtype}, expected {kind}")
