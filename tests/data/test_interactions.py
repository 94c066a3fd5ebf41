"""Reading logs: every format gives the same log, and every fault is named with its place."""

import csv
import gzip
import io
import json

import numpy as np
import polars as pl
import pytest

from agenticrec_jax.data.interactions import make_items, make_log, read_items, read_log
from agenticrec_jax.testing.errors import assert_names, refused

EVENTS = [
    ("ann", "007", 300, 5.0),
    ("bob", "7", 100, None),
    ("ann", "7", 100, 1.5),
    ("cy", "x,y", 300, 3.0),
    ("ann", "x,y", 100, 4.0),
]
ITEMS = [
    {"item_id": "007", "title": "Pen", "brand": "Acme", "price": 2.5, "categories": ["A", "B"]},
    {"item_id": "7", "title": 'Two-line\n"title"', "average_rating": 4.25},
    {"item_id": "x,y", "title": None, "description": "plain"},
]


def _csv(rows, columns):
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _events_bytes(name):
    columns = ("user_id", "item_id", "timestamp", "rating")
    if ".csv" in name:
        return _csv(EVENTS, columns)
    return "".join(
        json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in EVENTS
    ).encode()


def _items_bytes(name):
    if ".jsonl" in name:
        return "".join(json.dumps(row) + "\n" for row in ITEMS).encode()
    columns = ("item_id", "title", "categories", "price", "brand", "average_rating", "description")
    rows = [{**row, "categories": "|".join(row.get("categories", []))} for row in ITEMS]
    return _csv([[row.get(name) for name in columns] for row in rows], columns)


def _write(path, data):
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _read(tmp_path, suffix):
    if suffix == ".parquet":
        columns = ("user_id", "item_id", "timestamp", "rating")
        pl.DataFrame(EVENTS, schema=columns, orient="row").write_parquet(tmp_path / "e.parquet")
        pl.DataFrame(ITEMS, infer_schema_length=None).write_parquet(tmp_path / "i.parquet")
        return read_log(tmp_path / "e.parquet", tmp_path / "i.parquet")
    events = _write(tmp_path / f"e{suffix}", _events_bytes(suffix))
    return read_log(events, _write(tmp_path / f"i{suffix}", _items_bytes(suffix)))


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_all_formats_give_the_same_validated_log(tmp_path, suffix):
    log = _read(tmp_path, suffix)
    assert log.user_ids == ("ann", "bob", "cy")
    assert log.items.item_id == ("007", "7", "x,y")
    assert log.items.title == ("Pen", 'Two-line\n"title"', "x,y")
    assert log.items.brand == ("Acme", None, None)
    assert log.items.categories == (("A", "B"), (), ())
    assert log.items.description == (None, None, "plain")
    np.testing.assert_array_equal(log.items.price, np.float32([2.5, np.nan, np.nan]))
    np.testing.assert_array_equal(log.items.average_rating, np.float32([np.nan, 4.25, np.nan]))
    # Time order; the three events at 100 stay in the order of the file.
    pairs = zip(log.user, log.item, strict=True)
    assert [(log.user_ids[user], log.items.item_id[item]) for user, item in pairs] == [
        ("bob", "7"),
        ("ann", "7"),
        ("ann", "x,y"),
        ("ann", "007"),
        ("cy", "x,y"),
    ]
    assert log.time.tolist() == [100, 100, 100, 300, 300]
    np.testing.assert_array_equal(log.rating, np.float32([np.nan, 1.5, 4, 5, 3]))
    assert log.events_of(0).tolist() == [1, 2, 3]
    assert log.item.dtype == np.int32 and log.time.dtype == np.int64


def test_before_is_strict_about_ties(tmp_path):
    log = _read(tmp_path, ".csv")
    assert log.before(100).tolist() == []
    assert log.before(101).tolist() == log.before(300).tolist() == [0, 1, 2]
    assert log.count_before(301) == len(log) == 5


def test_events_before_a_position_are_the_users_own_without_it():
    users, items = list("abaabba"), make_items(list("xyz"), list("xyz"))
    log = make_log(users, [0, 1, 2, 0, 1, 2, 0], [1, 1, 1, 2, 2, 3, 3], items=items)
    for code, name in enumerate(log.user_ids):
        for position in range(len(log) + 2):
            positions = [p for p, user in enumerate(users) if user == name and p < position]
            assert log.events_before(code, position).tolist() == positions


def test_keep_deletes_events_and_nothing_else(tmp_path):
    log = _read(tmp_path, ".csv")
    cut = log.keep(np.arange(len(log)) < 3)
    assert cut.user_ids == log.user_ids and cut.items is log.items
    assert cut.user.tolist() == log.user[:3].tolist()
    assert cut.events_of(0).tolist() == [1, 2] and cut.events_of(2).tolist() == []
    assert cut.fingerprint != log.fingerprint


def test_rating_and_optional_item_columns_may_be_absent(tmp_path):
    events = _write(tmp_path / "e.csv", b"timestamp,item_id,user_id,note\n5,1,u,hi\n")
    items = _write(tmp_path / "i.csv", b"item_id,title\n1,One\n")
    log = read_log(events, items)
    assert np.isnan(log.rating).all() and np.isnan(log.items.price).all()
    assert log.items.categories == ((),)


def test_years_are_whole_numbers_in_any_writing(tmp_path):
    text = b"item_id,title,year\n1,One,1995\n2,Two,\n3,Three,2003.0\n"
    assert read_items(_write(tmp_path / "i.csv", text)).year == (1995, None, 2003)
    table = pl.DataFrame({"item_id": ["1", "2"], "title": ["One", "Two"], "year": [1995, None]})
    table.write_parquet(tmp_path / "i.parquet")
    assert read_items(tmp_path / "i.parquet").year == (1995, None)


HEADER = "user_id,item_id,timestamp,rating\n"
GOOD = "a,1,10,5\n"

EVENT_FAULTS = [
    (HEADER + GOOD + "a,,11,5\n", "line 3", "item_id", "nothing"),
    (HEADER + GOOD + "a, ,11,5\n", "line 3", "item_id", "nothing"),
    (HEADER + ",1,11,5\n", "line 2", "user_id", "nothing"),
    (HEADER + GOOD + GOOD + "a,1,soon,5\n", "line 4", "timestamp", "'soon'"),
    (HEADER + GOOD + "a,1,,5\n", "line 3", "timestamp", "nothing"),
    (HEADER + "a,1,inf,5\n", "line 2", "timestamp", "'inf'"),
    (HEADER + GOOD + "a,1,1578763983123,5\n", "line 3", "timestamp", "milliseconds"),
    (HEADER + GOOD + "a,1,11,nan\n", "line 3", "rating", "'nan'"),
    (HEADER + GOOD + "a,1,11,inf\n", "line 3", "rating", "'inf'"),
    (HEADER + GOOD + "a,1,11,good\n", "line 3", "rating", "'good'"),
    (HEADER + GOOD + "a,01,11,5\n", "line 3", "item_id", "'01'"),
    ("note," + HEADER + '"a\nb",a,1,10,5\n\n' + ",a,9,11,5\n", "line 5", "item_id", "'9'"),
    (HEADER + GOOD + "\n,,,\n", "line 4", "user_id", "nothing"),
    (HEADER + GOOD + "a,1,11,5,6\n", "line 3", "5 cells", "expected 4"),
    ("user_id,timestamp\na,1\n", "line 1", "item_id is missing", "user_id, timestamp"),
    ("", "line 1", "empty", "header"),
    (HEADER, "no interactions", "at least one", ""),
]


@pytest.mark.parametrize("text,where,column,what", EVENT_FAULTS)
def test_faults_of_a_csv_name_file_line_and_column(tmp_path, text, where, column, what):
    events = _write(tmp_path / "events.csv", text.encode())
    items = _write(tmp_path / "items.csv", b"item_id,title\n1,One\n")
    assert_names(refused(read_log, events, items), events, where, column, what)


JSON_FAULTS = [
    ('{"user_id":"a","item_id":"1","timestamp":1}\n\n{"user_id"\n', "line 3", "invalid JSON"),
    ('{"user_id":"a","timestamp":1}\n', "line 1, column item_id", "nothing"),
    ('{"user_id":"a","item_id":1.0,"timestamp":1}\n', "line 1, column item_id", "1.0"),
    ('{"user_id":"a","item_id":["1"],"timestamp":1}\n', "line 1, column item_id", "text"),
    ('{"user_id":"\\ud83d","item_id":"1","timestamp":1}\n', "line 1, column user_id", "text"),
    ('{"user_id":"a","item_id":"1","timestamp":true}\n', "line 1, column timestamp", "true"),
    ('{"user_id":"a","item_id":"1","timestamp":1,"rating":NaN}\n', "column rating", "finite"),
    ("[1]\n", "line 1", "object"),
    ("\n", "line 1", "empty"),
]


@pytest.mark.parametrize("text,where,what", JSON_FAULTS)
def test_faults_of_json_lines_name_file_line_and_column(tmp_path, text, where, what):
    events = _write(tmp_path / "events.jsonl", text.encode())
    items = _write(tmp_path / "items.csv", b"item_id,title\n1,One\n")
    assert_names(refused(read_log, events, items), events, where, what)


ITEM_FAULTS = [
    ("item_id,title\n1,One\n2,Two\n1,Uno\n", "line 4", "'1' again (first in line 2)"),
    ("item_id,title\n1,One\n,Two\n", "line 3", "nothing"),
    ("item_id,title,price\n1,One,$3\n", "line 2, column price", "'$3'"),
    ("item_id,title,average_rating\n1,One,inf\n", "line 2, column average_rating", "finite"),
    *(
        (
            f"item_id,title,year\n1,One,{year}\n",
            f"line 2, column year: found {float(year)}",
            "a whole year from 1 to 9999 or nothing",
        )
        for year in ("1995.5", "-4", "0", "10000", "19950302")
    ),
    ("item_id,name\n1,One\n", "line 1", "title is missing"),
]


@pytest.mark.parametrize("text,where,what", ITEM_FAULTS)
def test_faults_of_a_catalog(tmp_path, text, where, what):
    path = _write(tmp_path / "items.csv", text.encode())
    assert_names(refused(read_items, path), path, where, what)


def test_unreadable_files_are_input_errors(tmp_path):
    faults = {
        "missing.csv": (None, "no such file"),
        "table.txt": (b"item_id,title\n", "unknown suffix"),
        "broken.csv.gz": (b"not gzip", "cannot be read"),
        "broken.parquet": (b"not parquet", "no valid Parquet"),
        "latin.csv": (b"item_id,title\n1,One\n2,caf\xe9\n", "line 3"),
    }
    for name, (data, what) in faults.items():
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        assert_names(refused(read_items, path), path, what)


@pytest.mark.parametrize("value", [5, None, b"e.csv", ["e.csv"], [("a", 1, 2)], 1.5, pl.DataFrame])
def test_what_is_neither_a_path_nor_a_frame_is_named(tmp_path, value):
    assert_names(refused(read_log, value), "interactions", value, "data frame")
    assert_names(refused(read_items, value), "items", value, "data frame")
    if value is not None:
        events = _write(tmp_path / "e.csv", (HEADER + GOOD).encode())
        assert_names(refused(read_log, events, value), "items", value, "data frame")


def test_parquet_faults_name_row_and_type(tmp_path):
    items = _write(tmp_path / "items.csv", b"item_id,title\n1,One\n")
    frame = pl.DataFrame({"user_id": ["a", "a"], "item_id": ["1", None], "timestamp": [1, 2]})
    frame.write_parquet(tmp_path / "e.parquet")
    sentence = refused(read_log, tmp_path / "e.parquet", items)
    assert_names(sentence, tmp_path / "e.parquet", "row 2, column item_id", "nothing")
    frame.with_columns(item_id=pl.Series([1.0, 2.0])).write_parquet(tmp_path / "f.parquet")
    sentence = refused(read_log, tmp_path / "f.parquet", items)
    assert_names(sentence, tmp_path / "f.parquet", "column item_id", "Float64", "expected text")


def test_integer_ids_and_byte_order_mark(tmp_path):
    items = _write(tmp_path / "i.jsonl", b'\xef\xbb\xbf{"item_id": 12, "title": "Twelve"}\n')
    events = _write(tmp_path / "e.csv", b"\xef\xbb\xbfuser_id,item_id,timestamp\r\n01,12,3.75\r\n")
    log = read_log(events, items)
    assert log.user_ids == ("01",) and log.items.item_id == ("12",) and log.time.tolist() == [3]
