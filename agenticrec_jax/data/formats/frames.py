"""Tables in memory: data frames of polars, pandas, Arrow and others, and mappings of columns."""

import itertools
import numbers
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import FRAME, TableFile, columns_text
from agenticrec_jax.errors import InputError, expect
from agenticrec_jax.paths import Path

_DATE_UNITS = ("D", "ms", "us", "ns")  # of numpy's dates that polars takes


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
        type that a table has, or columns of several lengths.

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
    # To ask a lazy frame for its columns resolves its whole query.
    if isinstance(source, Mapping | pl.LazyFrame):
        return True
    # The class of data frames has the attribute too, and is no frame.
    return hasattr(source, "columns") and not isinstance(source, type)


def _names(frame: Any) -> list[str]:
    if isinstance(frame, Mapping):
        return list(frame)
    if isinstance(frame, pl.LazyFrame):
        try:
            return frame.collect_schema().names()
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{FRAME}: found a lazy frame that cannot be read ({reason}), expected one whose "
                "query can be run"
            ) from error
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
    if isinstance(column, np.ma.MaskedArray):
        column = column.tolist()  # masked cells are None
    # Of a list numpy would make one type: NaN among texts would become the text "nan".
    values = column if isinstance(column, list | tuple) else np.asarray(column)
    is_column = isinstance(values, list | tuple) or values.ndim > 0
    expected = "a list or an array"
    expect(is_column, f"{FRAME}, column {name}", f"a {type(column).__name__}", expected)
    if not len(values):  # of no type that says anything
        return pl.Series(name, [], pl.String)
    try:
        if isinstance(values, list | tuple) or values.dtype == object:
            return _series_of_cells(name, [None if _is_absent(cell) else cell for cell in values])
        return _series_of_array(name, values)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{FRAME}, column {name}: found values of no one type ({reason}), expected text, "
            "numbers or dates"
        ) from error


def _series_of_cells(name: str, cells: Sequence[Any]) -> pl.Series:
    known = [cell for cell in cells if cell is not None]
    if not all(isinstance(cell, numbers.Real | np.number | np.datetime64) for cell in known):
        return pl.Series(name, cells)
    # polars takes the type of the first number for that of all; numpy finds one for 4 and 4.5.
    rows = itertools.count()
    places = [None if cell is None else next(rows) for cell in cells]
    return _series_of_array(name, np.asarray(known)).gather(pl.Series(places, dtype=pl.UInt32))


def _series_of_array(name: str, array: np.ndarray) -> pl.Series:
    # polars refuses dates in seconds or minutes, which pandas can have.
    if array.dtype.kind == "M" and np.datetime_data(array.dtype)[0] not in _DATE_UNITS:
        given, array = array, array.astype("datetime64[us]")
        same = (array.astype(given.dtype) == given) | np.isnat(given)
        if not same.all():  # NumPy lets it overflow
            raise ValueError("a date that microseconds cannot hold")
    return pl.Series(name, array)


def _is_absent(value: Any) -> bool:
    """Whether a cell is NaN, or pandas' NaT or NA, of which NA has no truth value."""
    is_nan = isinstance(value, float | Decimal) and value != value
    return is_nan or type(value).__name__ in ("NAType", "NaTType")
