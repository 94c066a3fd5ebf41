"""The report in words: every count of it stands in a line or in the table."""

import pytest
from rich.table import Table

from agenticrec_jax.ingest.summary import summarize

STEP = {"name": "readable rows", "events": 12, "users": 3, "items": 4, "pairs": 6}
REPORT = {
    "format": "columns",
    "category": None,
    "interaction_rows": {
        "read": 20,
        "bad": 8,
        "bad_rows": [
            {
                "file": "e.csv",
                "reason": "no user id",
                "count": 8,
                "first": [{"place": "line 4", "found": "nothing"}],
            }
        ],
    },
    "item_rows": {"read": 9, "bad": 0, "dropped": {"too long": 5}, "kept": 4, "bad_rows": []},
    "notes": ["a note"],
    "filters": [STEP, STEP | {"name": "2-core", "events": 8, "rounds": 2}],
    "users": 3,
    "items_with_events": 4,
    "samples": 5,
    "events_per_user": {"min": 1.0, "mean": 4.0},
    "cold": {"test_samples": 7, "item": 0.25, "user": 0.5},
    "ties": 13,
    "repeated_pairs": 14,
    "duplicate_titles": 15,
    "missing": {
        "price": {"share": 0.125, "needed_by": "price bands"},
        "brand": {"share": 0.0, "needed_by": "brands"},
    },
}


def cells(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_lines_and_table():
    table, *lines = summarize(REPORT)
    assert isinstance(table, Table)
    assert cells(table) == [
        ("readable rows", "12", "3", "4", "0", "50.000%", ""),
        ("2-core", "8", "3", "4", "4", "50.000%", "2"),
    ]
    assert lines[:4] == [
        "interactions: 20 rows read, 8 bad",
        "  8 x no user id in e.csv (line 4: nothing)",
        "items: 9 rows read, 0 bad, 5 too long, 4 kept",
        "note: a note",
    ]
    text = "\n".join(lines)
    shown = (
        "min 1, mean 4",
        "7",
        "25.0% with a new item",
        "50.0% with a new user",
        "13",
        "14",
        "15",
    )
    assert all(value in text for value in shown)
    assert "price: 12.5%" in text and "price bands" in text and "brand" not in text


@pytest.mark.parametrize("layout", ["columns", "amazon2023"])
def test_the_papers_counts_stand_beside_those_of_the_same_release(layout):
    table, *_ = summarize(REPORT | {"format": layout, "category": "Video_Games"})
    names = [row[0] for row in cells(table)]
    assert ("AgenticRec's table" in names) == (layout == "amazon2023")


def test_a_log_without_a_table_of_items_or_a_split():
    report = REPORT | {"item_rows": None, "cold": {"test_samples": 0}}
    text = "\n".join(line for line in summarize(report) if isinstance(line, str))
    assert "no table" in text and "too few samples" in text
