import csv
import gzip
import io
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.formats import files, parquet_rows
from agenticrec_jax.data.formats.blocks import read_blocks
from agenticrec_jax.data.formats.csv_rows import CELLS, NOT_UTF8, CsvParser
from agenticrec_jax.data.formats.files import TableFile, column_names, table_file
from agenticrec_jax.data.formats.json_rows import INVALID_JSON
from agenticrec_jax.testing.errors import assert_names, refused


def read(file, columns):
    """All rows with their numbers, and the broken rows as (number, text) by reason."""
    rows, row_numbers, broken = [], [], {}

    def count(row):
        broken.setdefault(row.reason, []).append((row.row_number, row.text))

    for block in read_blocks(file, dict.fromkeys(columns, "any"), count):
        rows += block.frame.rows()
        row_numbers += block.row_numbers.tolist()
    return rows, row_numbers, broken


@pytest.mark.parametrize("piece", [2**24, 50])
def test_json_lines_in_pieces_of_any_size(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(files, "PIECE_BYTES", piece)
    lines, wanted = [], []
    for n in range(200):
        if n % 37 == 5:
            lines.append('{"a": ' if n % 2 else "[1]")
        elif n % 41 == 7:
            lines.append("")
        else:
            lines.append(json.dumps({"a": f"é{n}", "b": [n, "x"], "more": n}))
            wanted.append((f"é{n}", [n, "x"], None, n + 1))
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    rows, row_numbers, broken = read(table_file(path), ["a", "b", "absent"])
    result = [(a, json.loads(b), c, n) for (a, b, c), n in zip(rows, row_numbers, strict=True)]
    assert result == wanted
    assert broken == {INVALID_JSON: [(n + 1, lines[n]) for n in range(200) if n % 37 == 5]}


@pytest.mark.parametrize("piece", [2**24, 40])
def test_csv_cells_may_hold_line_ends(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(files, "PIECE_BYTES", piece)
    path = tmp_path / "t.csv"
    text = 'a,"b"\n1,"two\nlines, ""quoted"""\n2,x\n3,y,z\n\n4\n5,'
    path.write_bytes(text.encode() + b"\xff\n6,last")
    rows, row_numbers, broken = read(table_file(path), ["b", "a"])
    assert rows == [('two\nlines, "quoted"', "1"), ("x", "2"), ("last", "6")]
    assert row_numbers == [2, 4, 9]
    assert broken[CELLS] == [(5, "3,y,z"), (7, "4")]
    assert [number for number, _ in broken[NOT_UTF8]] == [8]


cells = st.text(st.sampled_from('ab,"é0\n'), max_size=3).filter(lambda cell: cell != "\n")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(cells, min_size=1, max_size=4).filter(lambda row: row != [""]), max_size=6)
)
def test_rows_of_another_number_of_cells_are_bad_however_they_are_parsed(tmp_path_factory, rows):
    """As a whole by polars, or record by record: the others are read, and no row is lost."""
    file = TableFile(tmp_path_factory.mktemp("cells") / "t.csv", "csv")
    buffer, good, bad = io.StringIO(), [], []
    for row in rows:
        line = 2 + buffer.getvalue().count("\n")
        csv.writer(buffer, lineterminator="\n").writerow(row)
        (good if len(row) == 3 else bad).append((line, row))
    for parse in (CsvParser.by_piece, CsvParser.by_record):
        broken = []
        parser = CsvParser(file, ["a", "b", "c"], broken.append)
        block = parse(parser, buffer.getvalue().encode(), 2)
        result = [[cell or "" for cell in row] for row in block.frame.rows()]
        assert list(zip(block.row_numbers.tolist(), result, strict=True)) == good
        assert [(row.reason, row.row_number, row.text) for row in broken] == [
            (CELLS, line, ",".join(row)) for line, row in bad
        ]


def test_a_row_that_lacks_its_last_cell_is_bad_also_where_polars_would_fill_it(tmp_path):
    """No row is too long or blank, so nothing else makes the piece be taken apart."""
    path = tmp_path / "t.csv"
    path.write_text('a,b,c\n1,x,5\n2,"x,y",\n3,y\n4,z,\n')
    rows, row_numbers, broken = read(table_file(path), ["a", "c"])
    assert rows == [("1", "5"), ("2", None), ("4", None)] and row_numbers == [2, 3, 5]
    assert broken == {CELLS: [(4, "3,y")]}


def test_a_mark_inside_a_name_of_the_header_loses_no_row(tmp_path):
    (tmp_path / "t.csv").write_text('a,5" b\n1,2\n3,\n')
    rows, row_numbers, broken = read(table_file(tmp_path / "t.csv"), ["a", '5" b'])
    assert (rows, row_numbers, broken) == ([("1", "2"), ("3", None)], [2, 3], {})


def test_parquet_rows_are_text_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "BLOCK_ROWS", 2)
    frame = pl.DataFrame({"a": [1, 2, 3], "l": [["x", "y"], [], None]})
    frame = frame.with_columns(t=pl.datetime(2020, 9, 13, 12, 26, 40))
    frame.write_parquet(tmp_path / "t.parquet")
    file = table_file(tmp_path / "t.parquet")
    assert file.place(3) == "row 3" and column_names(file) == ["a", "l", "t"]
    rows, row_numbers, _ = read(file, ["a", "l", "t"])
    assert [(a, names) for a, names, _ in rows] == [("1", '["x","y"]'), ("2", "[]"), ("3", None)]
    assert {float(time) for _, _, time in rows} == {1600000000} and row_numbers == [1, 2, 3]


def test_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + np.random.default_rng(0).bytes(5000))[:-400])
    cut = TableFile(path, "csv", header=("a", "b"))
    assert_names(refused(read, cut, ["a"]), path, "cannot be read to its end")
    path.write_bytes(b"not gzip")
    assert_names(refused(read, table_file(path), ["a"]), path, "cannot be read")
    (tmp_path / "t.xlsx").write_text("a")
    assert_names(refused(table_file, tmp_path / "t.xlsx"), "t.xlsx", ".csv", ".parquet")
    (tmp_path / "t.parquet.gz").write_text("a")
    assert_names(refused(table_file, tmp_path / "t.parquet.gz"), "t.parquet.gz", ".csv")
    assert_names(refused(table_file, tmp_path / "none.csv"), tmp_path / "none.csv", "no such file")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ("line 1", "empty", "header")),
        ("\na,b\n1,2\n", ("line 1", "blank", "header")),
        ("x,y\n1,2\n", ("line 1", "x, y", "a or b")),
    ],
)
def test_a_header_without_the_columns_is_refused(tmp_path, text, named):
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert_names(refused(read, table_file(path), ["a", "b"]), path, *named)


def test_a_column_that_is_read_is_named_once(tmp_path):
    """Other names may be there twice, or be empty as under the trailing commas of a spreadsheet."""
    path = tmp_path / "t.csv"
    path.write_text("a,x,x,b,,\n1,2,2,3,,\n")
    assert read(table_file(path), ["b", "a"]) == ([("3", "1")], [2], {})
    assert_names(refused(read, table_file(path), ["b", "x"]), path, "line 1", "column x", "2 times")


@pytest.mark.parametrize("text", ["a,b\n1,x\n", '{"a": "1", "b": "x"}\n'])
def test_a_byte_order_mark_is_left_out(tmp_path, text):
    path = tmp_path / ("t.csv" if text[0] == "a" else "t.jsonl")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    rows, _, broken = read(table_file(path), ["a", "b"])
    assert (rows, broken) == ([("1", "x")], {})
