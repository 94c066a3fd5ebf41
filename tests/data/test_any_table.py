"""The same rows by every reader, in every format and at any border of pieces."""

import csv
import io
import json

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.formats import files, parquet_rows
from agenticrec_jax.data.formats.files import table_file
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.events import EventColumns, read_events
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


@pytest.mark.parametrize("value", [{"b": "5f", "a": 1}, ["u", 1], True], ids=str)
def test_an_id_of_another_json_type_is_spelled_the_same_beside_any_row(tmp_path, value):
    line = json.dumps({"user_id": value, "item_id": "a", "timestamp": 5}) + "\n"
    spelled = set()
    for text in (line, line + "{\n"):
        (tmp_path / "t.jsonl").write_text(text)
        columns = EventColumns("user_id", "item_id", "timestamp")
        events = read_events(table_file(tmp_path / "t.jsonl"), columns, RowErrors()).events
        spelled |= set(events.user_ids.decode(events.user))
    assert len(spelled) == 1


def test_an_error_about_binary_content_is_short_and_printable(tmp_path):
    path = tmp_path / "t.csv"
    for content in (b"SQLite format 3" + bytes(5000), "user_id,item_id".encode("utf-16-le")):
        path.write_bytes(content)
        (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
        sentence = refused(read_log, path, tmp_path / "items.csv")
        assert_names(sentence, path)
        assert sentence.isprintable() and len(sentence) < 3000


def test_times_written_as_whole_days_are_refused(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
    path = tmp_path / "t.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,20240331\nu,a,20240401\n")
    for read in (
        lambda: read_log(path, tmp_path / "items.csv"),
        lambda: read_events(
            table_file(path), EventColumns("user_id", "item_id", "timestamp"), RowErrors()
        ),
    ):
        with pytest.raises(InputError, match="20240331"):
            read()
