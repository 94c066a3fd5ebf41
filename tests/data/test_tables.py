"""Rows know their place in the file, whatever stands between them."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.tables import read_table

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


@pytest.mark.parametrize("cell,parts", [("a|b", ("a", "b")), ("", ()), (" x | ", ("x",))])
def test_lists_in_text_are_split(tmp_path, cell, parts):
    (tmp_path / "t.csv").write_text(f'one,two\n1,"{cell}"\n')
    table = read_table(tmp_path / "t.csv", ("one",), {"one": "text", "two": "list"})
    assert table.optional_lists("two") == [parts]
