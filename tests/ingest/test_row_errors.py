from pathlib import Path

import numpy as np

from agenticrec_jax.data.formats.files import TableFile
from agenticrec_jax.ingest.row_errors import RowErrors, first_reason, quoted
from agenticrec_jax.testing.errors import assert_names, refused


def test_rows_are_counted_and_the_first_three_quoted():
    errors = RowErrors()
    table, columns, other = (
        TableFile(Path(name), name.split(".")[1]) for name in ("a.csv", "b.parquet", "c.csv")
    )
    for start in (2, 4, 6):  # as blocks of a file give them
        errors.add(table, "bad", [start, start + 1], lambda i, start=start: start + i)
    errors.add(columns, "bad", [9], lambda i: None)
    errors.add(columns, "never", [], lambda i: None)
    errors.add(other, "some", [4, 6], lambda i: i, count=5)  # of which two can be quoted
    assert errors.total == 12
    first, second, third = errors.records()
    assert first == {
        "file": "a.csv",
        "reason": "bad",
        "count": 6,
        "first": [{"place": f"line {n}", "found": f"'{n}'"} for n in (2, 3, 4)],
    }
    assert second["first"] == [{"place": "row 9", "found": "nothing"}]
    assert third["count"] == 5 and [each["place"] for each in third["first"]] == [
        "line 4",
        "line 6",
    ]


def test_strict_stops_with_the_first_row():
    file = TableFile(Path("a.csv"), "csv")
    sentence = refused(RowErrors(strict=True).add, file, "bad", [7, 8], lambda i: "xy"[i])
    assert_names(sentence, "a.csv", "line 7", "bad", "'x'")


def test_a_row_counts_for_the_first_check_that_it_fails():
    checks = [
        ("a", np.array([True, False, True, False])),
        ("b", np.array([True, True, False, False])),
    ]
    assert [(reason, rows.tolist()) for reason, rows in first_reason(checks, 4)] == [
        ("a", [0, 2]),
        ("b", [1]),
    ]


def test_long_values_are_cut():
    assert quoted("x" * 80) == repr("x" * 80)
    assert quoted("x" * 81) == repr("x" * 79 + "…")
