import numpy as np
import polars as pl

from agenticrec_jax.data.formats.files import table_file
from agenticrec_jax.ingest.events import (
    UNREADABLE_TIME,
    EventColumns,
    align_ends,
    item_mentions,
    order_in_time,
    read_events,
)
from agenticrec_jax.ingest.row_errors import RowErrors
from agenticrec_jax.testing.errors import assert_names, refused

COLUMNS = EventColumns("u", "i", "t", "r")


def read(tmp_path, *rows, header="u,i,t,r"):
    (tmp_path / "e.csv").write_text("\n".join([header, *rows]) + "\n")
    errors = RowErrors()
    table = read_events(table_file(tmp_path / "e.csv"), COLUMNS, errors)
    return table.events, table.rows, errors, table.notes


def test_mostly_milliseconds_are_converted_and_seconds_among_them_are_bad(tmp_path):
    rows = ("a,x,1600000000500,1", "a,y,1600000001000,1", "b,x,1600000002,1")
    events, count, errors, notes = read(tmp_path, *rows)
    assert count == 3 and events.time.tolist() == [1600000000.5, 1600000001]
    (note,) = notes
    assert_names(note, "column t", "milliseconds")
    (error,) = errors.records()
    assert error["reason"] == "a timestamp in seconds in a column of milliseconds"
    assert error["first"] == [{"place": "line 4", "found": "'1600000002'"}]


def test_milliseconds_in_a_column_of_seconds_are_bad(tmp_path):
    rows = ("a,x,1600000000,1", "a,y,1600000001,1", "b,x,1600000002000,1")
    events, _, errors, notes = read(tmp_path, *rows)
    assert events.time.tolist() == [1600000000, 1600000001] and not notes
    assert errors.records()[0]["first"] == [{"place": "line 4", "found": "'1600000002000'"}]


def test_dates_are_utc_and_each_kind_of_bad_time_has_its_reason(tmp_path):
    rows = ("a,x,2020-09-13T12:26:40Z,1", "a,x,soon,1", "a,x,,1", "a,x,inf,1", "a,x,1e15,1")
    events, count, errors, _ = read(tmp_path, *rows)
    assert events.time.tolist() == [1600000000] and count == 5
    assert {error["reason"]: error["count"] for error in errors.records()} == {
        UNREADABLE_TIME: 2,
        "no timestamp": 1,
        "a timestamp beyond the year 5138 even in milliseconds": 1,
    }


def test_events_of_one_time_stay_in_the_order_of_the_file(tmp_path):
    events, *_ = read(tmp_path, "a,x,7,1", "b,y,5,1", "a,y,7,2", "a,z,5,3")
    ordered = order_in_time(events)
    assert ordered.row_number.tolist() == [3, 5, 2, 4]
    assert ordered.item_ids.decode(ordered.item).to_list() == ["y", "z", "x", "y"]


def test_a_file_without_a_column_or_a_good_row_is_refused(tmp_path):
    sentence = refused(read, tmp_path, "a,x,1", header="u,i,r")
    assert_names(sentence, tmp_path / "e.csv", "line 1", "column t is missing", "u, i, r")
    sentence = refused(read, tmp_path, "a,x,-1,1", ",x,1,1")
    assert_names(sentence, tmp_path / "e.csv", "no good row among 2")
    assert_names(refused(read, tmp_path), tmp_path / "e.csv", "no good row among 0")


def test_align_ends_every_user_ends_at_one_time_and_ties_stay_in_the_files_order(tmp_path):
    times = {"a": [5, 5, 9, 7], "b": [4, 8], "c": [6]}
    rows = [f"{user},i{n},{t},1" for user, seconds in times.items() for n, t in enumerate(seconds)]
    events = align_ends(order_in_time(read(tmp_path, *rows)[0]))
    users = events.user_ids.decode(events.user).to_list()
    items = events.item_ids.decode(events.item).to_list()
    result = list(zip(events.time.tolist(), users, items, strict=True))
    assert sorted(result) == [
        *((0, "a", "i0"), (1, "a", "i1"), (2, "a", "i3"), (2, "b", "i0")),
        *((3, "a", "i2"), (3, "b", "i1"), (3, "c", "i0")),
    ]
    assert events.time.tolist() == sorted(events.time.tolist())


def test_items_named_are_counted_with_the_line_of_the_first_row(tmp_path):
    """Of an item whose only row is in the wrong unit of time none is left."""
    rows = ("a,x,5,1", "b,w,1600000002000,1", "a,y,4,1", "b,x,3,1")
    events, *_ = read(tmp_path, *rows)
    mentions = item_mentions(events)
    codes = events.item_ids.encode(pl.Series(["x", "y", "w", "another", "x"]))
    assert mentions.count(codes).tolist() == [2, 1, 0, 0, 2]
    assert mentions.first_row[codes[:3]].tolist() == [2, 4, 0]
    assert np.array_equal(mentions.count(codes[:0]), [])
