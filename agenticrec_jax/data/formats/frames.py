"""Tables in memory: data frames of polars, pandas, Arrow and others, and mappings of columns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import FRAME, TableFile, columns_text
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path


def frame_file(frame: Any, columns: Iterable[str], required: Sequence[str] = ()) -> TableFile:
    """Returns a data frame as a table that is read as a Parquet file is.

    Args:
      frame: of polars (lazy too); any that exports Arrow's C stream, as those of pandas with
        pyarrow, pyarrow, DuckDB and cuDF do; or one with columns by name, as pandas without
        pyarrow or a dict of lists.
      columns: to read, of those that the frame has.
      required: names of columns that it must have.

    Raises:
      InputError: it is nothing of that kind, lacks a required column, or has one of values of no
        type that a table has.

    Example:
      >>> file = frame_file({"user_id": ["ann"], "age": [3]}, ["user_id", "item_id"])
      >>> file.frame.collect().rows()
      [('ann',)]
    """
    names = _names(frame)
    for name in required:
        if name not in names:
            raise InputError(f"{FRAME}: column {name} is missing, found {columns_text(names)}")
    wanted = [name for name in columns if name in names]
    lazy = frame if isinstance(frame, pl.LazyFrame) else _polars(frame, wanted).lazy()
    return TableFile(Path(FRAME), "parquet", frame=lazy.select(wanted))


def is_frame(source: Any) -> bool:
    """Whether an argument that names a table is the table itself, not the path of a file."""
    # A lazy frame would work out its columns to be asked for them.
    return isinstance(source, Mapping | pl.LazyFrame) or hasattr(source, "columns")


def _names(frame: Any) -> list[str]:
    if isinstance(frame, Mapping):
        return list(frame)
    if isinstance(frame, pl.LazyFrame):
        return frame.collect_schema().names()
    # In pyarrow ``columns`` are the data.
    return [str(name) for name in getattr(frame, "column_names", frame.columns)]


def _polars(frame: Any, columns: Sequence[str]) -> pl.DataFrame:
    if isinstance(frame, pl.DataFrame):
        return frame
    try:
        if hasattr(frame, "__arrow_c_stream__"):
            return pl.from_dataframe(frame)
    # pandas exports Arrow by pyarrow only, which it does not need itself. A column that Arrow
    # cannot hold may be one that is not read.
    except (ImportError, TypeError, ValueError):
        pass
    series = [_series(name, frame[name]) for name in columns]
    lengths = {each.name: len(each) for each in series}
    expect(len(set(lengths.values())) <= 1, f"{FRAME}, lengths of columns", lengths, "equal ones")
    return pl.DataFrame(series)


def _series(name: str, column: Any) -> pl.Series:
    # Of a list numpy would make one type: NaN among texts would become the text "nan".
    values = column if isinstance(column, list | tuple) else np.asarray(column)
    if not len(values):  # of no type that says anything
        return pl.Series(name, [], pl.String)
    if isinstance(values, list | tuple) or values.dtype == object:
        values = [None if _is_absent(value) else value for value in values]
    try:
        return pl.Series(name, values)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{FRAME}, column {name}: found values of no one type ({reason}), expected text, "
            "numbers or dates"
        ) from error


def _is_absent(value: Any) -> bool:
    """Whether a cell is NaN, or pandas' NaT or NA, of which NA has no truth value."""
    is_nan = isinstance(value, float) and value != value
    return is_nan or type(value).__name__ in ("NAType", "NaTType")
