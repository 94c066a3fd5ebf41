import csv
import gzip
import io
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest import blocks
from agenticrec_jax.ingest.blocks import TableFile, column_names, read_blocks, table_file
from agenticrec_jax.ingest.row_errors import Faults


def read(file, columns):
    """All rows with their places, and the faults."""
    faults, rows, places = Faults(), [], []
    for block in read_blocks(file, columns, faults):
        rows += block.frame.rows()
        places += block.places.tolist()
    return rows, places, {fault["reason"]: fault for fault in faults.records()}


@pytest.mark.parametrize("piece", [2**24, 50])
def test_json_lines_in_pieces_of_any_size(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(blocks, "PIECE_BYTES", piece)
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
    rows, places, faults = read(table_file(path), ["a", "b", "absent"])
    found = [(a, json.loads(b), c, n) for (a, b, c), n in zip(rows, places, strict=True)]
    assert found == wanted
    broken = [n + 1 for n in range(200) if n % 37 == 5]
    assert faults["invalid JSON"]["count"] == len(broken)
    assert [each["place"] for each in faults["invalid JSON"]["first"]] == [
        f"line {n}" for n in broken[:3]
    ]


@pytest.mark.parametrize("piece", [2**24, 40])
def test_csv_cells_may_hold_line_ends(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(blocks, "PIECE_BYTES", piece)
    path = tmp_path / "t.csv"
    text = 'a,"b"\n1,"two\nlines, ""quoted"""\n2,x\n3,y,z\n\n4\n5,'
    path.write_bytes(text.encode() + b"\xff\n6,last")
    rows, places, faults = read(table_file(path), ["b", "a"])
    assert rows == [('two\nlines, "quoted"', "1"), ("x", "2"), ("last", "6")]
    assert places == [2, 4, 9]
    assert faults[blocks.CELLS]["first"] == [
        {"place": "line 5", "found": "'3,y,z'"},
        {"place": "line 7", "found": "'4'"},
    ]
    assert faults[blocks.NOT_UTF8]["first"][0]["place"] == "line 8"


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
    piece, names = buffer.getvalue().encode(), ["a", "b", "c"]
    for parse, more in ((blocks._csv_piece, ()), (blocks._csv_records, (",", '"'))):
        faults = Faults()
        frame, places = parse(file, names, piece, 2, faults, *more)
        found = [[cell or "" for cell in row] for row in frame.rows()]
        assert list(zip(places.tolist(), found, strict=True)) == good
        assert faults.total == len(bad)
        for fault in faults.records():
            assert fault["reason"] == blocks.CELLS
            assert fault["first"][0]["place"] == f"line {bad[0][0]}"


def test_a_row_that_lacks_its_last_cell_is_bad_also_where_polars_would_fill_it(tmp_path):
    """No row is too long or blank, so nothing else makes the piece be taken apart."""
    path = tmp_path / "t.csv"
    path.write_text('a,b,c\n1,x,5\n2,"x,y",\n3,y\n4,z,\n')
    rows, places, faults = read(table_file(path), ["a", "c"])
    assert rows == [("1", "5"), ("2", None), ("4", None)] and places == [2, 3, 5]
    assert faults[blocks.CELLS]["first"] == [{"place": "line 4", "found": "'3,y'"}]


def test_a_mark_inside_a_name_of_the_header_loses_no_row(tmp_path):
    (tmp_path / "t.csv").write_text('a,5" b\n1,2\n3,\n')
    rows, places, faults = read(table_file(tmp_path / "t.csv"), ["a", '5" b'])
    assert (rows, places, faults) == ([("1", "2"), ("3", None)], [2, 3], {})


def test_parquet_rows_are_text_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "PARQUET_ROWS", 2)
    frame = pl.DataFrame({"a": [1, 2, 3], "l": [["x", "y"], [], None]})
    frame = frame.with_columns(t=pl.datetime(2020, 9, 13, 12, 26, 40))
    frame.write_parquet(tmp_path / "t.parquet")
    file = table_file(tmp_path / "t.parquet")
    assert file.unit == "row" and column_names(file) == ["a", "l", "t"]
    rows, places, _ = read(file, ["a", "l", "t"])
    assert [(a, names) for a, names, _ in rows] == [("1", "x|y"), ("2", ""), ("3", None)]
    assert {float(time) for _, _, time in rows} == {1600000000} and places == [1, 2, 3]


def test_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + np.random.default_rng(0).bytes(5000))[:-400])
    with pytest.raises(InputError, match=r"t.csv.gz: cannot be read to its end"):
        read(TableFile(path, "csv", header=("a", "b")), ["a"])
    (tmp_path / "t.xlsx").write_text("a")
    with pytest.raises(InputError, match=r"t.xlsx: unknown suffix, expected .csv"):
        table_file(tmp_path / "t.xlsx")
    with pytest.raises(InputError, match=r"none.csv: no such file"):
        table_file(tmp_path / "none.csv")
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(InputError, match="line 1: found an empty file"):
        read(table_file(tmp_path / "t.csv"), ["a"])
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="line 1: found columns x, y, expected a or b"):
        read(table_file(tmp_path / "t.csv"), ["a", "b"])
