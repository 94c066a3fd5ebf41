"""The benchmark of preparing on a small log: its counts, and the memory that it measures."""

import json
import pathlib
import sys

import pytest

from agenticrec_jax.errors import InputError
from experiments.benchmarks import prepare_data
from experiments.benchmarks.amazon_reviews import Size

COMMITTED = pathlib.Path(prepare_data.__file__).parent / "results" / "prepare_data.json"


@pytest.mark.slow
def test_planted_rows_are_all_found_and_a_restored_state_goes_on(tmp_path):
    rows = {row["name"]: row for row in prepare_data.measure(tmp_path, Size.of(6_000))}
    bad = [row for name, row in rows.items() if name.startswith("bad rows")]
    assert len(bad) == 8 and all(row["ours"] == row["peer"] > 0 for row in bad)
    assert rows["reviews read"]["ours"] == 6_000
    assert rows["samples the same from a restored state"]["ours"] == 1.0
    assert 0.05 < rows["most memory resident while preparing"]["ours"] < 1.0


@pytest.mark.slow
def test_bad_rows_that_the_papers_rules_would_drop_are_found_all_the_same(tmp_path):
    rows = {row["name"]: row for row in prepare_data.measure(tmp_path, Size.of(60_000), True)}
    bad = [row for name, row in rows.items() if name.startswith("bad rows")]
    assert len(bad) == 8 and all(row["ours"] == row["peer"] > 0 for row in bad)
    assert 0 < rows["events kept"]["ours"] < 6_000


def test_a_reason_that_was_not_planted_is_a_row_too():
    report = {
        "interaction_rows": {"bad_rows": [{"reason": "other", "count": 3}]},
        "item_rows": {"bad_rows": [{"reason": "cut", "count": 1}]},
    }
    rows = prepare_data.fault_rows(report, prepare_data.Counter(cut=2))
    assert [(row["name"], row["ours"], row["peer"]) for row in rows] == [
        ("bad rows: cut", 1.0, 2),
        ("bad rows: other", 3.0, 0),
    ]


def test_memory_is_the_childs_at_its_highest():
    usage = [
        prepare_data.run_measured(
            [sys.executable, "-c", f"import time; b = b'1' * {size}; time.sleep(.2); del b"]
        )
        for size in (10, 200_000_000)
    ]
    assert usage[1]["peak"] - usage[0]["peak"] == pytest.approx(0.2, rel=0.05)
    with pytest.raises(InputError, match="status.* 3"):
        prepare_data.run_measured([sys.executable, "-c", "raise SystemExit(3)"])


def test_the_committed_figures_are_within_their_bounds():
    """20 million reviews in at most 4 GB; every planted row and every sample is found."""
    rows = {row["name"]: row for row in json.loads(COMMITTED.read_text())["rows"]}
    bounds = {name: row["bound"] for name, row in rows.items() if row["bound"] is not None}
    memory = "most memory resident while preparing"
    same = "samples the same from a restored state"
    assert bounds == {memory: 4, same: 1} and prepare_data.MEMORY == 4
    assert rows[memory]["unit"] == "GB" and 0 < rows[memory]["ours"] <= 4
    assert rows[same]["ours"] == 1
    assert rows["reviews read"]["ours"] >= 20e6
    bad = [row for name, row in rows.items() if name.startswith("bad rows")]
    assert len(bad) == 8 and all(row["ours"] == row["peer"] > 0 for row in bad)
