"""Quotation marks where none belong: no row between two of them is lost without a word."""

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agenticrec_jax.data.formats import files
from agenticrec_jax.data.formats.blocks import read_blocks
from agenticrec_jax.data.formats.csv_rows import MARK, ROWS
from agenticrec_jax.data.formats.files import table_file
from agenticrec_jax.data.interactions import read_log
from agenticrec_jax.errors import InputError
from agenticrec_jax.ingest.events import EventColumns, read_events
from agenticrec_jax.ingest.row_errors import RowErrors
from agenticrec_jax.testing.errors import assert_names, refused

NAMES = ("user_id", "item_id", "timestamp", "rating", "text")
HEADER = ",".join(NAMES) + "\n"
COLUMNS = EventColumns(*NAMES[:4])


def read(path):
    """Events as (line, user, item), and the lines of bad rows; of each reason all are quoted."""
    errors = RowErrors()
    events = read_events(table_file(path), COLUMNS, errors).events
    users = events.user_ids.decode(events.user)
    items = events.item_ids.decode(events.item)
    bad = [int(row["place"].split()[1]) for error in errors.records() for row in error["first"]]
    assert len(bad) == errors.total
    return list(zip(events.row_number.tolist(), users, items, strict=True)), bad


@pytest.mark.parametrize(
    ("rows", "reason", "bad"),
    [
        ('a,"pen,1,5,t\nc,x,1,1,t\nb,"ink,2,3,t\n', MARK, [2, 4]),
        ('a,"pen,1,5,t\nc,x,1,1,t\nb,ink",2,3,t\n', ROWS, [2, 4]),
        ('a,pen,1,5,"good\nc,x,1,1,t\nb,ink,2,3,bad"\n', ROWS, [2, 4]),
        ('a,pen,1,5,"good\nc,x,1,1,t\n', MARK, [2]),
        ('a,pen,1,5,"t, t\nc,x,1,1,t\nb,ink,2,3,bad"\n', ROWS, [2, 4]),
        ('"a,pen,1,5,t\nc,x,1,1,t\nb,ink,2",3,t\n', ROWS, [2, 4]),
    ],
)
def test_marks_that_would_swallow_rows_make_bad_rows(tmp_path, rows, reason, bad):
    (tmp_path / "t.csv").write_text(HEADER + rows + "d,y,3,4,t\n")
    events, lines = read(tmp_path / "t.csv")
    assert lines == bad and {"c", "d"} <= {user for _, user, _ in events}
    errors = RowErrors(strict=True)
    sentence = refused(read_events, table_file(tmp_path / "t.csv"), COLUMNS, errors)
    assert_names(sentence, tmp_path / "t.csv", f"line {bad[0]}:", reason)
    assert_names(refused(read_log, tmp_path / "t.csv"), tmp_path / "t.csv", f"line {bad[0]}:")


@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.data(), st.integers(2, 6), st.sampled_from([30, 2**24]))
def test_every_line_is_a_row_or_a_bad_one_wherever_two_marks_stand(
    tmp_path, monkeypatch, data, rows, piece
):
    monkeypatch.setattr(files, "PIECE_BYTES", piece)
    monkeypatch.setattr("agenticrec_jax.ingest.row_errors.QUOTED", 100)
    lines = [f"u{n},i{n},{n},4,t{n}" for n in range(rows)]
    first, last = sorted(
        data.draw(st.lists(st.integers(0, rows - 1), min_size=2, max_size=2, unique=True))
    )
    for n in (first, last):
        at = data.draw(st.integers(0, len(lines[n])))
        lines[n] = f'{lines[n][:at]}"{lines[n][at:]}'
    (tmp_path / "t.csv").write_text(HEADER + "\n".join([*lines, "v,j,9,4,t", "w,j,9,4,t"]) + "\n")
    events, bad = read(tmp_path / "t.csv")
    numbers = [number for number, _, _ in events]
    assert sorted([*numbers, *bad]) == list(range(2, rows + 4))
    for number, user, item in events:
        n = number - 2
        if n < rows and n not in (first, last):
            assert (user, item) == (f"u{n}", f"i{n}")


texts = st.text(st.sampled_from('ab,"é \n'), max_size=12)


@settings(max_examples=300, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(texts, min_size=1, max_size=6), st.sampled_from([30, 2**24]))
@example(["I like pens, ink, paper,\nand, as well, 2 others, really, all of them"], 2**24)
def test_cells_of_several_lines_are_read(tmp_path, monkeypatch, cells, piece):
    monkeypatch.setattr(files, "PIECE_BYTES", piece)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(NAMES)
    writer.writerows((f"u{n}", "i", n, 4, cell) for n, cell in enumerate(cells))
    (tmp_path / "t.csv").write_text(buffer.getvalue())
    events, bad = read(tmp_path / "t.csv")
    assert [user for _, user, _ in events] == [f"u{n}" for n in range(len(cells))] and not bad
    assert len(read_log(tmp_path / "t.csv")) == len(cells)

    def refuse(row):
        raise InputError(row)

    blocks = read_blocks(table_file(tmp_path / "t.csv"), {"text": "any"}, refuse)
    result = [cell or "" for block in blocks for cell in block.frame["text"]]
    assert result == cells


@pytest.mark.parametrize("name", ["user_id", "item_id"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_id_of_several_lines_is_refused(tmp_path, name, suffix):
    row = {"user_id": "u", "item_id": "i", "timestamp": "5", name: "a\nb"}
    path = tmp_path / f"t.{suffix}"
    quoted = ",".join(f'"{cell}"' for cell in row.values())
    path.write_text(f"{','.join(row)}\n{quoted}\n" if suffix == "csv" else json.dumps(row))
    assert_names(refused(read_log, path), path, f"column {name}", r"'a\nb'", "one line")
    columns = EventColumns("user_id", "item_id", "timestamp")
    sentence = refused(read_events, table_file(path), columns, RowErrors())
    assert_names(sentence, path, f"{name[:4]} id of several lines", r"'a\nb'")
    if name == "item_id":
        path.write_text(path.read_text().replace("timestamp", "title"))  # a catalog
        assert_names(
            refused(read_log, {"user_id": ["u"], "item_id": ["i"], "timestamp": [5]}, path), path
        )
