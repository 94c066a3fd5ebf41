"""The same rows by every reader, in every format and at any border of pieces."""

import csv
import datetime
import io
import json
import math
import re
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.formats import files, parquet_rows
from agenticrec_jax.data.formats.files import table_file
from agenticrec_jax.data.formats.times import in_digits
from agenticrec_jax.data.interactions import read_items, read_log
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.catalog import ItemColumns, read_catalog
from agenticrec_jax.ingest.events import EventColumns, IdCodes, read_events
from agenticrec_jax.ingest.row_errors import RowErrors
from agenticrec_jax.testing.errors import assert_names, refused

EXAMPLES = pytest.mark.parametrize("examples", [100, pytest.param(10_000, marks=pytest.mark.slow)])
ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(
    lambda text: text.strip() == text.strip(" \t") and text.strip()
) | st.integers(-(10**18), 10**18)
TIMES = {
    "1600000000": 1600000000,
    " 1.6e9 ": 1600000000,
    "2020-09-13": 1599955200,
    "2020-09-13T12:26:40Z": 1600000000,
    "2020-09-13 14:26:40.5+02:00": 1600000000,
    "2020-09-13 12:26": 1599999960,
}
NAMES = ("user_id", "item_id", "timestamp")
HALF = re.compile("[\ud800-\udfff]")
FORMATS = ("t.csv", "t.tsv", "escaped.jsonl", "t.jsonl", "t[1].parquet")
rows_of_logs = st.lists(st.tuples(ids, ids, st.sampled_from(sorted(TIMES))), min_size=1, max_size=8)


def written(path, rows):
    """Writes rows in the format of a file's suffix; returns the path."""
    if path.suffix in (".csv", ".tsv"):
        buffer = io.StringIO()
        separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
        csv.writer(buffer, delimiter=separator, lineterminator="\n").writerows([NAMES, *rows])
        path.write_text(buffer.getvalue(), encoding="utf-8")
    elif path.suffix == ".jsonl":
        records = (dict(zip(NAMES, row, strict=True)) for row in rows)
        lines = (json.dumps(row, ensure_ascii=path.stem == "escaped") for row in records)
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        columns = [[str(cell) for cell in column] for column in zip(*rows, strict=True)]
        pl.DataFrame(dict(zip(NAMES, columns, strict=True))).write_parquet(path)
    return path


@pytest.mark.parametrize(
    "time", ["2021-01-01 ١٠:00", "2021-01-01 10:00+٠٢:00", "2021-01-01 10:00+02:99"]
)
def test_what_is_no_date_is_refused_by_every_reader(tmp_path, time):
    path = written(tmp_path / "t.csv", [("u", "a", time), ("u", "b", "2021-01-02")])
    catalog = tmp_path / "items.jsonl"
    catalog.write_text("".join(json.dumps({"item_id": i, "title": i}) + "\n" for i in "ab"))
    assert_names(refused(read_log, path, catalog), "t.csv", "line 2", "timestamp")
    errors = RowErrors()
    read_events(table_file(path), EventColumns("user_id", "item_id", "timestamp"), errors)
    assert errors.total == 1


@EXAMPLES
def test_a_row_is_the_same_by_every_reader(tmp_path, monkeypatch, examples):
    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None)
    @given(rows_of_logs, st.sampled_from(FORMATS), st.sampled_from([40, 2**24]))
    def check(rows, name, piece):
        monkeypatch.setattr(files, "PIECE_BYTES", piece)
        monkeypatch.setattr(parquet_rows, "BLOCK_ROWS", 2 if piece == 40 else 2**18)
        items = {str(item).strip(): None for _, item, _ in rows}
        catalog = tmp_path / "items.jsonl"
        lines = (json.dumps({"item_id": item, "title": item}) for item in items)
        catalog.write_text("\n".join(lines))
        wanted = sorted((str(u).strip(), str(i).strip(), TIMES[t]) for u, i, t in rows)
        path = written(tmp_path / name, rows)
        log = read_log(path, catalog)
        users = [log.user_ids[user] for user in log.user]
        read = [log.items.item_id[item] for item in log.item]
        assert sorted(zip(users, read, log.time.tolist(), strict=True)) == wanted, path
        columns = EventColumns("user_id", "item_id", "timestamp")
        events = read_events(table_file(path), columns, RowErrors()).events
        users = events.user_ids.decode(events.user).to_list()
        read = events.item_ids.decode(events.item).to_list()
        times = [int(time) for time in events.time]
        assert sorted(zip(users, read, times, strict=True)) == wanted, path

    check()


@EXAMPLES
def test_any_bytes_are_a_log_or_one_sentence(tmp_path, examples):
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n7,B\n")
    pieces = st.sampled_from(
        [b"user_id,item_id,timestamp", b"\n", b"\r", b",", b'"', b"u,a,5", b"u,7,2020-09-13"]
        + [b'{"user_id":"u","item_id":7,"timestamp":5}', b'{"user_id":"\\ud83d', b'"}', b"["]
        + [b"]", b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\xe9", b"NaN", b"1e999", b'"item_id":7.0']
    )

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.lists(pieces | st.binary(max_size=3), max_size=12), st.sampled_from(["csv", "jsonl"]))
    @example([b"x^"], "jsonl")  # how compressed data begins, for polars
    def check(parts, suffix):
        path = tmp_path / f"t.{suffix}"
        path.write_bytes(b"".join(parts))
        columns = EventColumns("user_id", "item_id", "timestamp")
        for read in (
            lambda: read_log(path, tmp_path / "items.csv"),
            lambda: read_events(table_file(path), columns, RowErrors()),
        ):
            try:
                read()
            except InputError as error:
                assert str(path) in str(error) and "\n" not in str(error)

    check()


@pytest.mark.parametrize(
    "series",
    [
        pl.Series([1, 2], dtype=pl.UInt64),
        pl.Series(["1", "2"], dtype=pl.Categorical),
        pl.Series(["1", "2"], dtype=pl.Enum(["1", "2"])),
        pl.Series([b"1", b"2"]),
        pl.Series(["1", "2"]).cast(pl.Decimal(38, 0)),
    ],
)
def test_ids_of_any_type_of_an_export_are_the_same(tmp_path, series):
    (tmp_path / "items.csv").write_text("item_id,title\n1,A\n2,B\n")
    frame = pl.DataFrame({"user_id": series, "item_id": series, "timestamp": [1, 2]})
    frame.write_parquet(tmp_path / "t.parquet")
    log = read_log(tmp_path / "t.parquet", tmp_path / "items.csv")
    assert log.user_ids == ("1", "2") and log.item.tolist() == [0, 1]


@EXAMPLES
def test_a_number_as_an_id_is_spelled_the_same_by_every_reader(tmp_path, examples):
    """polars reads the first file; the broken line of the second sends it to the other parser.

    The third is Parquet.
    """
    columns = EventColumns("user_id", "item_id", "timestamp")

    def ids_of(path):
        events = read_events(table_file(path), columns, RowErrors()).events
        return events.user_ids.decode(events.user).to_list()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.floats(allow_nan=False, allow_infinity=False))
    @example(7.0)
    @example(1e3)
    @example(1e-7)
    @example(9007199254740992.0)
    @example(1.2345678901234567e19)
    @example(2.0**49 + 0.25)
    def check(number):
        line = json.dumps({"user_id": number, "item_id": "a", "timestamp": 5}) + "\n"
        read = []
        for text in (line, line + "{\n"):
            (tmp_path / "t.jsonl").write_text(text)
            read += ids_of(tmp_path / "t.jsonl")
        frame = pl.DataFrame({"user_id": [number], "item_id": ["a"], "timestamp": [5]})
        frame.write_parquet(tmp_path / "t.parquet")
        read += ids_of(tmp_path / "t.parquet")
        assert len(read) == 3 and len(set(read)) == 1 and float(read[0]) == number
        assert ("." in read[0]) == (not number.is_integer()) and "e" not in read[0]

    check()


def test_whole_numbers_of_float32_are_the_ids_of_an_integer_column(tmp_path):
    numbers = [7, 123456792, 2**40]  # none is rounded by float32
    columns = EventColumns("user_id", "item_id", "timestamp")
    for dtype in (pl.Float32, pl.Float64, pl.Int64):
        ids = pl.Series(numbers).cast(dtype)
        frame = pl.DataFrame({"user_id": ids, "item_id": ids, "timestamp": [5, 5, 5]})
        frame.write_parquet(tmp_path / "t.parquet")
        events = read_events(table_file(tmp_path / "t.parquet"), columns, RowErrors()).events
        assert sorted(events.user_ids.decode(events.user)) == sorted(map(str, numbers))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize("time", ["9999-12-31", "5138-11-17", "1969-12-31T23:59:59Z", "-5"])
def test_times_outside_of_1970_to_5138_are_refused_by_every_reader(tmp_path, name, time):
    """The seconds of 9999-12-31, for never, were taken for milliseconds of 1978."""
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
    path = written(tmp_path / name, [("u", "a", time)] * 2)
    assert_times_refused(path)
    if name == "t.parquet" and time != "-5":
        frame = pl.read_parquet(path).with_columns(
            pl.col("timestamp").str.slice(0, 10).str.to_date()
        )
        frame.write_parquet(path)
        assert_times_refused(path)


def assert_times_refused(path):
    columns = EventColumns("user_id", "item_id", "timestamp")
    for read in (
        lambda: read_log(path, path.with_name("items.csv")),
        lambda: read_events(table_file(path), columns, RowErrors()),
    ):
        assert_names(refused(read), path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["true", "False", "[a", "{a", "nan", "inf", "\ud83d", "\udc00a", "null"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=3,
)


BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space
BLANKS += "".join(map(chr, range(0x2000, 0x200B)))


def is_id(value):
    if isinstance(value, str):
        text = value.strip(BLANKS)
        return bool(text) and not re.search(r"[\r\n]", text) and not HALF.search(value)
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


@EXAMPLES
def test_an_id_is_text_or_a_finite_number_beside_any_row(tmp_path, examples):
    """polars reads the first file; the broken line of the second sends it to the other parser."""
    columns = EventColumns("user_id", "item_id", "timestamp")
    good = json.dumps({"user_id": "u", "item_id": "a", "timestamp": 5}) + "\n"
    path = tmp_path / "t.jsonl"

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None)
    @given(json_values, st.sampled_from(["user_id", "item_id"]), st.booleans())
    @example(math.nan, "user_id", True)
    @example(-math.inf, "item_id", True)
    @example("\ud83d", "user_id", True)
    def check(value, name, ascii_only):
        row = {"user_id": "u", "item_id": "a", "timestamp": 5, name: value}
        line = json.dumps(row, ensure_ascii=ascii_only) + "\n"
        spelled = []
        for text in (good + line, good + line + "{\n"):
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            errors = RowErrors()
            events = read_events(table_file(path), columns, errors).events
            ids = events.user_ids.decode(events.user), events.item_ids.decode(events.item)
            spelled.append(ids[name == "item_id"][1:].to_list())
            assert errors.total == (text[-2] == "{") + (not is_id(value))
        assert spelled[0] == spelled[1] and len(spelled[0]) == is_id(value)
        if isinstance(value, str) and is_id(value):
            assert spelled[0] == [value.strip(BLANKS)]
        path.write_bytes((good + line).encode("utf-8", "surrogatepass"))
        if is_id(value) and not isinstance(value, float):
            assert len(read_log(path)) == 2
        else:
            assert_names(refused(read_log, path), path, "line 2", name)

    check()


@pytest.mark.parametrize(
    "series",
    [
        pl.Series([True, False]),
        pl.Series([["a"], ["b"]]),
        pl.Series([{"a": 1}, {"a": 2}]),
        pl.Series([1, 2]).cast(pl.Date),
        pl.Series([1, 2]).cast(pl.Duration("us")),
    ],
    ids=lambda series: str(series.dtype),
)
@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_a_column_of_other_values_is_none_of_ids(tmp_path, series, name):
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    frame = frame.with_columns(series.alias(name))
    assert_names(refused(read_log, frame), "data frame", f"column {name}", series.dtype)
    frame.write_parquet(tmp_path / "t.parquet")
    columns = EventColumns("user_id", "item_id", "timestamp")
    file = table_file(tmp_path / "t.parquet")
    sentence = refused(read_events, file, columns, RowErrors())
    assert_names(sentence, file.path, f"column {name}", series.dtype, "text or a finite number")


def test_decimals_are_ids_as_the_same_numbers_of_json_are(tmp_path):
    numbers = [Decimal("1.50"), Decimal("20.00"), Decimal("0.07")]
    frame = pl.DataFrame({"user_id": numbers, "item_id": ["a"] * 3, "timestamp": [1, 2, 3]})
    frame.write_parquet(tmp_path / "t.parquet")
    lines = (json.dumps(row | {"user_id": float(row["user_id"])}) for row in frame.to_dicts())
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    columns = EventColumns("user_id", "item_id", "timestamp")
    for name in ("t.parquet", "t.jsonl"):
        events = read_events(table_file(tmp_path / name), columns, RowErrors()).events
        assert events.user_ids.decode(events.user).to_list() == ["1.5", "20", "0.07"]


far_dates = st.sampled_from(["ms", "us", "ns"]).flatmap(
    lambda unit: st.tuples(
        st.integers(-(2**63) + 1, 2**63 - 1) | st.sampled_from([2**63 - 1, -(2**62)]),
        st.just(pl.Datetime(unit)) | st.just(pl.Datetime(unit, "Asia/Tokyo")),
    )
) | st.tuples(st.integers(-(2**31), 2**31 - 1), st.just(pl.Date()))
UNITS = {"ms": 10**3, "us": 10**6, "ns": 10**9}


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(far_dates)
@example((2**31 - 1, pl.Date()))
@example((-(2**31), pl.Date()))
@example((2**63 - 1, pl.Datetime("ms")))
def test_a_date_however_far_is_read_or_one_sentence(tmp_path, capfd, far):
    """polars writes a panic of its own to the terminal before it raises."""
    number, dtype = far
    series = pl.Series([number, 1]).cast(pl.Int32 if dtype == pl.Date else pl.Int64).cast(dtype)
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": series})
    frame.write_parquet(tmp_path / "t.parquet")
    time = number * 86400 if dtype == pl.Date else number / UNITS[dtype.time_unit]
    columns = EventColumns("user_id", "item_id", "timestamp")
    if 0 <= time < 10**11:
        assert int(time) in read_log(frame).time
    else:
        assert_names(refused(read_log, frame), "data frame", "row 1", "timestamp")
        assert_names(refused(read_log, tmp_path / "t.parquet"), "t.parquet", "row 1", "timestamp")
        errors = RowErrors()
        read_events(table_file(tmp_path / "t.parquet"), columns, errors)
        assert errors.total == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([[b"Pens"], [b"Ink", b"Red"]], (("Pens",), ("Ink", "Red"))),
        ([["Pens"], [None]], (("Pens",), ())),
        ([[datetime.date.max], []], None),
        ([{"a": datetime.datetime.max}, {"a": None}], None),
    ],
    ids=str,
)
def test_nested_cells_of_parquet_are_read_or_one_sentence(tmp_path, capfd, cells, names):
    frame = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "categories": cells})
    frame.write_parquet(tmp_path / "i.parquet")
    catalog = ItemColumns("item_id", ("title",), ("categories",))

    def prepared():
        file = table_file(tmp_path / "i.parquet")
        return read_catalog(file, catalog, IdCodes(), RowErrors()).items["categories"]

    if names is None:
        for read in (prepared, lambda: read_items(frame)):
            assert_names(refused(read), "column categories", frame["categories"].dtype)
    else:
        assert tuple(map(tuple, prepared())) == names == read_items(frame).categories
    assert capfd.readouterr() == ("", "")


def test_an_error_about_binary_content_is_short_and_printable(tmp_path):
    path = tmp_path / "t.csv"
    for content in (b"SQLite format 3" + bytes(5000), "user_id,item_id".encode("utf-16-le")):
        path.write_bytes(content)
        (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
        sentence = refused(read_log, path, tmp_path / "items.csv")
        assert_names(sentence, path)
        assert sentence.isprintable() and len(sentence) < 3000


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("form", ["%Y%m%d", "%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S"])
@pytest.mark.parametrize("other", [None, 0, 7, 1_600_000_000, 10_000_000])
def test_dates_in_digits_alone_are_bad_rows_beside_any_other(tmp_path, name, form, other):
    days = [datetime.datetime(2024, 3, 31), datetime.datetime(2021, 1, 1, 12, 30, 59)]
    times = [int(day.strftime(form)) for day in days] + ([] if other is None else [other])
    path = written(tmp_path / name, [("u", f"i{time}", time) for time in times])
    columns = EventColumns("user_id", "item_id", "timestamp")
    errors = RowErrors()
    if other is None:
        sentence = refused(read_events, table_file(path), columns, errors)
        assert_names(sentence, path, times[0], "2024-03-31")
    else:
        assert read_events(table_file(path), columns, errors).events.time.tolist() == [other]
        assert errors.total == 2
    place = "row 1" if path.suffix == ".parquet" else "line"
    assert_names(refused(read_log, path), path, place, "timestamp", f"{times[0]}", "2024-03-31")


def test_positions_are_no_dates():
    """Of numbers between 19000101 and 20991231 some look like a day."""
    for positions in (np.arange(19_500_000.0, 21_000_000), np.arange(20_250_000.0, 20_250_300)):
        assert not in_digits(positions).any()
    assert not in_digits(np.arange(1.6e9, 1.6e9 + 1e6)).any()
    assert not in_digits(np.array([])).any()
