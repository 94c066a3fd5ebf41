"""Rows know their place in the file, whatever stands between them."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.tables import read_table
from agenticrec_jax.testing.errors import assert_names, refused

cells = st.text(st.sampled_from('ab, "\n|é0'), min_size=1, max_size=6).filter(str.strip)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(st.none(), st.tuples(cells, cells)), min_size=1, max_size=8))
def test_cells_and_lines_of_any_csv(tmp_path_factory, rows):
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("one", "two"))
    expected = []
    for row in rows:
        line = buffer.getvalue().count("\n") + 1
        if row is None:
            buffer.write("\n")
        else:
            writer.writerow(row)
            expected.append((*row, f"line {line}"))
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    path.write_bytes(buffer.getvalue().encode())
    table = read_table(path, ("one", "two"), {"one": "text", "two": "text"})
    result = [(*row, table.place(index)) for index, row in enumerate(table.frame.iter_rows())]
    assert result == expected


@pytest.mark.parametrize("rows", ['1,"a,b"\n\n2\n', '1,"a,b"\n2,\n3\n', "1\n2,b\n", "1,b\n2,c,d\n"])
def test_rows_of_another_number_of_cells_are_refused(tmp_path, rows):
    """Also where polars would fill them up, and where blank lines are left out."""
    (tmp_path / "t.csv").write_text("one,two\n" + rows)
    (line, cells) = next(
        (number, cells)
        for number, cells in enumerate(csv.reader(rows.splitlines()), start=2)
        if len(cells) not in (0, 2)
    )
    sentence = refused(read_table, tmp_path / "t.csv", ("one",), {"one": "text", "two": "text"})
    assert_names(sentence, tmp_path / "t.csv", f"line {line}:", f"{len(cells)} cells", "expected 2")


@pytest.mark.parametrize("separator", [",", "\n"])
def test_marked_separators_and_line_ends_are_no_cells(tmp_path, separator):
    text = f'one,"t{separator}wo"\n"1{separator}",\n2,"5"\n'
    (tmp_path / "t.csv").write_text(text)
    two = f"t{separator}wo"
    table = read_table(tmp_path / "t.csv", ("one", two), {"one": "text", two: "text"})
    assert table.frame.rows() == [(f"1{separator}", None), ("2", "5")]


@pytest.mark.parametrize("rows", ["1,\n2,b\n", '1,5" c\n2,\n'])
def test_a_mark_that_none_closes_in_the_header_is_refused(tmp_path, rows):
    (tmp_path / "t.csv").write_text('one,5" two\n' + rows)
    sentence = refused(read_table, tmp_path / "t.csv", ("one",), {"one": "text"})
    assert_names(sentence, tmp_path / "t.csv", "line 1:", "quotation mark", "names of columns")


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (b"1,\xff\n", ("line 2", "UTF-8")),
        (b'1,5" x\n2,b\n', ("line 2", "quotation mark")),
        (b'1,a\n2,5" x\n3,6" b\n', ("line 3", "quotation mark")),
        (b'1,a\n2,"x" y\n', ("line 3", "no valid CSV")),
        (b'1,a\n\n2,"x\nx\n', ("line 4", "no valid CSV")),
        (b'1,"' + b"x\n" * 2**17, ("line 2", "no valid CSV")),
    ],
)
def test_what_is_no_csv_is_refused_with_its_line(tmp_path, rows, named):
    (tmp_path / "t.csv").write_bytes(b"one,two\n" + rows)
    sentence = refused(read_table, tmp_path / "t.csv", ("one",), {"one": "text"})
    assert_names(sentence, tmp_path / "t.csv", "expected", *named)


def test_a_header_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"one,caf\xe9\n1,2\n")
    sentence = refused(read_table, tmp_path / "t.csv", ("one",), {"one": "text"})
    assert_names(sentence, tmp_path / "t.csv", "line 1", "UTF-8")


def test_the_first_broken_row_of_the_file_is_named(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"one,two\n1,a\n2\n3,\xff\n")
    sentence = refused(read_table, tmp_path / "t.csv", ("one",), {"one": "text"})
    assert_names(sentence, "line 3", "1 cells", "2 as in the header")


@pytest.mark.parametrize("cell,names", [("a|b", ("a", "b")), ("", ()), (" x | ", ("x",))])
def test_lists_in_text_are_split(tmp_path, cell, names):
    (tmp_path / "t.csv").write_text(f'one,two\n1,"{cell}"\n')
    table = read_table(tmp_path / "t.csv", ("one",), {"one": "text", "two": "list"})
    assert table.optional_lists("two") == [names]
