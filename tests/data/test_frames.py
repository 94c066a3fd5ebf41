"""Logs from data frames: the same events as from a file, whatever library made the frame."""

import builtins
import datetime
import doctest
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest

from agenticrec_jax.data.formats import frames
from agenticrec_jax.data.interactions import read_items, read_log
from agenticrec_jax.testing.errors import assert_names, refused

COLUMNS = {
    "user_id": ["ann", "bob", "ann", "007"],
    "item_id": [12, 5, 5, 12],
    "timestamp": [30, 10, 20, 40],
    "rating": [4.5, None, 1.0, 2.0],
    "note": [{"not": "read"}] * 4,
}


class Arrow:
    """A frame of a library of which nothing is known but that it exports Arrow's stream."""

    def __init__(self, columns):
        self._frame = pl.DataFrame(columns)
        self.columns = self._frame.columns

    def __arrow_c_stream__(self, requested_schema=None):
        return self._frame.__arrow_c_stream__(requested_schema)


KINDS = {
    "polars": pl.DataFrame,
    "lazy": pl.LazyFrame,
    "pandas": pd.DataFrame,
    "arrow": Arrow,
    "dict": dict,
    "arrays": lambda columns: {name: np.array(values) for name, values in columns.items()},
}


@pytest.fixture
def without_pyarrow(monkeypatch):
    """As on a machine where pandas alone is installed, even if pyarrow is here."""
    imported = builtins.__import__

    def refusing(name, *arguments, **options):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_the_log_of_its_columns(kind, without_pyarrow):
    log = read_log(KINDS[kind](COLUMNS))
    assert log.user_ids == ("ann", "bob", "007")
    assert log.items.item_id == log.items.title == ("12", "5")
    assert log.time.tolist() == [10, 20, 30, 40]
    assert log.user.tolist() == [1, 0, 0, 2] and log.item.tolist() == [1, 1, 0, 0]
    assert math.isnan(log.rating[0]) and log.rating[1:].tolist() == [1.0, 4.5, 2.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalog_is_a_frame_too(kind, without_pyarrow):
    items = {"item_id": ["5", "7", "12"], "title": ["Pen", None, "Ink"], "price": [1.5, 2.0, None]}
    log = read_log(KINDS[kind](COLUMNS), KINDS[kind](items))
    assert log.items.title == ("Pen", "7", "Ink") and log.items.price[0] == 1.5
    assert log.item.tolist() == [0, 0, 2, 2]
    sentence = refused(
        read_log, KINDS[kind](COLUMNS), KINDS[kind]({"item_id": ["5"], "title": ["Pen"]})
    )
    assert_names(sentence, "data frame, row 1, column item_id", "12")


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_dates_of_a_frame_are_instants(zone, without_pyarrow):
    days = pd.to_datetime(["2024-03-31 00:00:00.0", "2024-04-01 12:00:00.5"]).tz_localize(zone)
    columns = {"user_id": ["a", "a"], "item_id": ["x", "y"]}
    expected = [int(day.timestamp()) for day in days.tz_localize(None).tz_localize(zone or "UTC")]
    for frame in (
        pd.DataFrame(columns | {"timestamp": days}),
        pl.DataFrame(columns | {"timestamp": pl.Series(days.to_pydatetime().tolist())}),
        columns | {"timestamp": days.to_numpy()},
    ):
        assert read_log(frame).time.tolist() == expected
    day = [datetime.date(1970, 1, 2)] * 2
    assert read_log(columns | {"timestamp": day}).time.tolist() == [86400, 86400]


@pytest.mark.parametrize("kind", ["polars", "pandas", "dict"])
def test_faults_of_a_frame_name_row_and_column(kind):
    def changed(**columns):
        return KINDS[kind](COLUMNS | columns)

    names = ("data frame", "row 2", "column timestamp")
    assert_names(refused(read_log, changed(timestamp=[1, -2, 3, 4])), *names)
    assert_names(refused(read_log, changed(timestamp=["1", "soon", "3", "4"])), *names, "soon")
    assert_names(refused(read_log, changed(user_id=["a", None, "b", "c"])), "row 2", "user_id")
    assert_names(refused(read_log, changed(item_id=[1.5, 2, 3, 4])), "column item_id")
    lacks = KINDS[kind]({name: COLUMNS[name] for name in ("user_id", "item_id")})
    assert_names(refused(read_log, lacks), "data frame", "timestamp", "user_id, item_id")
    empty = KINDS[kind]({name: [] for name in ("user_id", "item_id", "timestamp")})
    assert_names(refused(read_log, empty), "data frame", "no interactions")


@pytest.mark.parametrize("absent", [None, math.nan, pd.NA, pd.NaT])
def test_an_absent_cell_among_texts_is_none(absent, without_pyarrow):
    users = ["a", absent, "b", "c"]
    for column in (
        users,
        pd.Series(users, dtype=object),
        pd.array(["a", None, "b", "c"], "string"),
    ):
        assert_names(refused(read_log, COLUMNS | {"user_id": column}), "row 2", "user_id")
    catalog = {"item_id": ["5", "7", "12"], "title": ["Pen", absent, "Ink"]}
    assert read_items(catalog).title == ("Pen", "7", "Ink")


def test_lists_of_a_dict_are_cells_of_any_lengths(without_pyarrow):
    cells = [["Office"], ["Office", "Pens"]]
    for column in (cells, pd.Series([np.array(cell) for cell in cells])):
        items = read_items({"item_id": ["5", "7"], "title": ["Pen", "Ink"], "categories": column})
        assert [list(names) for names in items.categories] == cells


def test_columns_of_values_of_several_types_are_refused():
    for values in ([{"a"}, 1, "x", object()], ["5", 5, "7", "7"]):
        mixed = COLUMNS | {"item_id": values}
        assert_names(refused(read_log, mixed), "data frame", "item_id")


@pytest.mark.parametrize("times", [[1, 2.5, 3, 4], [1.5, None, 3, 4], np.arange(4).tolist()])
def test_a_list_of_numbers_is_what_numpy_makes_of_it(times):
    times = [time if time is None else time + 1_600_000_000 for time in times]
    if None in times:
        assert_names(refused(read_log, COLUMNS | {"timestamp": times}), "row 2", "timestamp")
    else:
        assert read_log(COLUMNS | {"timestamp": times}).time.tolist() == list(map(int, times))


@pytest.mark.parametrize("unit", ["D", "h", "m", "s", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", [list, np.asarray, pd.Series])
def test_dates_of_every_resolution_of_numpy_are_read(unit, kind, without_pyarrow):
    days = ("2020-09-13", "2020-09-14", "2020-09-15", "2020-09-13")
    dates = kind([np.datetime64(day, unit) for day in days])
    log = read_log(COLUMNS | {"timestamp": dates})
    assert log.time.tolist() == sorted(1599955200 + 86400 * n for n in (0, 1, 2, 0))


@pytest.mark.parametrize("column", ["abc", 5, {"0": "a"}])
def test_a_column_that_is_none_is_refused(column):
    assert_names(refused(read_log, COLUMNS | {"user_id": column}), "data frame", "column user_id")


def test_masked_cells_are_absent():
    times = np.ma.array([10, 20], mask=[True, False])
    columns = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": times}
    assert_names(refused(read_log, columns), "row 1", "timestamp")
    columns["timestamp"] = np.ma.array([10, 20], mask=False)
    assert read_log(columns).time.tolist() == [10, 20]


@pytest.mark.parametrize("unit", ["s", "m", "h"])
def test_a_date_that_overflows_is_refused(unit):
    times = np.array([2**62, 1], f"M8[{unit}]")
    columns = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": times}
    assert_names(refused(read_log, columns), "column timestamp", "microseconds")


def test_a_decimal_that_is_no_number_is_absent():
    times = [Decimal("1.5"), Decimal("NaN")]
    columns = {"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": times}
    assert_names(refused(read_log, columns), "row 2", "timestamp")


def test_a_lazy_frame_that_cannot_be_read_is_refused(tmp_path):
    absent = pl.scan_parquet(tmp_path / "absent.parquet")
    assert_names(refused(read_log, absent), "data frame", "lazy frame", "absent.parquet")
    wrong = pl.LazyFrame({"user_id": ["a"]}).select("nothing")
    assert_names(refused(read_log, wrong), "data frame", "lazy frame", "nothing")


def test_columns_of_several_lengths_are_refused():
    shorter = COLUMNS | {"item_id": ["5", "7"]}
    assert_names(refused(read_log, shorter), "data frame", "lengths of columns", "'item_id': 2")


def test_a_column_that_arrow_cannot_hold_is_refused_only_where_it_is_read():
    frame = pd.DataFrame(COLUMNS | {"mood": [object(), 1, "x", None]})
    assert read_log(frame).item.tolist() == read_log(COLUMNS).item.tolist()


def test_examples_give_what_they_print():
    failed, examples = doctest.testmod(frames)
    assert examples and not failed
