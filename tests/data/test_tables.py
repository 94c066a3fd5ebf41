"""Rows know their place in the file, whatever stands between them."""

import csv
import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.tables import read_table, record_bytes
from agenticrec_jax.errors import InputError

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
    found = [(*row, table.place(index)) for index, row in enumerate(table.frame.iter_rows())]
    assert found == expected


@pytest.mark.parametrize("rows", ['1,"a,b"\n\n2\n', '1,"a,b"\n2,\n3\n', "1\n2,b\n", "1,b\n2,c,d\n"])
def test_rows_of_another_number_of_cells_are_refused(tmp_path, rows):
    """Also where polars would fill them up, and where blank lines are left out."""
    (tmp_path / "t.csv").write_text("one,two\n" + rows)
    (line, cells) = next(
        (number, cells)
        for number, cells in enumerate(csv.reader(rows.splitlines()), start=2)
        if len(cells) not in (0, 2)
    )
    with pytest.raises(InputError, match=f"line {line}: found {len(cells)} cells, expected 2 as"):
        read_table(tmp_path / "t.csv", ("one",), {"one": "text", "two": "text"})


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
    with pytest.raises(InputError, match=r"line 1: found a quotation mark that none closes, expec"):
        read_table(tmp_path / "t.csv", ("one",), {"one": "text"})


@pytest.mark.parametrize(
    ("header", "rest"),
    [
        ("a,b\n", "1,2\n"),
        ('a,5" b\n', '1,"2"\n'),
        ('a,"b\n""c"\n', '"1\n",2\n'),
        ("\n", "a\n"),
        ("é,b", ""),
        ('a,"b\n1,2\n', ""),
        ('"' + "x" * 2**18 + "\n", ""),
    ],
)
def test_the_first_record_ends_with_its_line(header, rest):
    assert record_bytes((header + rest).encode()) == len(header.encode())


def test_the_first_record_is_found_in_linear_time():
    """Half a megabyte took seconds when every line was counted from the start."""
    piece = b'a,5" b\n' + b"1,2\n" * 2**17
    marked = b'"' + b"\n" * 2**17
    start = time.process_time()
    assert record_bytes(piece) == 7 and record_bytes(marked) == len(marked)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"one,two\n1,\xff\n", "line 2: found bytes that are not UTF-8, expected text"),
        (b'one,two\n1,5" x\n2,b\n', ": found no valid CSV (CSV malformed"),
        (b'one,two\n1,"' + b"x\n" * 2**17, "line 2: found no valid CSV (field larger"),
    ],
)
def test_what_is_no_csv_is_refused_in_one_sentence(tmp_path, data, said):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_table(tmp_path / "t.csv", ("one",), {"one": "text"})
    assert said in str(caught.value) and ", expected " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cell,parts", [("a|b", ("a", "b")), ("", ()), (" x | ", ("x",))])
def test_lists_in_text_are_split(tmp_path, cell, parts):
    (tmp_path / "t.csv").write_text(f'one,two\n1,"{cell}"\n')
    table = read_table(tmp_path / "t.csv", ("one",), {"one": "text", "two": "list"})
    assert table.optional_lists("two") == [parts]
