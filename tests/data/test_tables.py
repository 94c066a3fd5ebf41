"""Rows know their place in the file, whatever stands between them."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.tables import read_table
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


@pytest.mark.parametrize("cell,parts", [("a|b", ("a", "b")), ("", ()), (" x | ", ("x",))])
def test_lists_in_text_are_split(tmp_path, cell, parts):
    (tmp_path / "t.csv").write_text(f'one,two\n1,"{cell}"\n')
    table = read_table(tmp_path / "t.csv", ("one",), {"one": "text", "two": "list"})
    assert table.optional_lists("two") == [parts]
