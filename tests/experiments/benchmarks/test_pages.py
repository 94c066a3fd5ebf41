"""The benchmarks of the paged cache: what the committed figures must show, and a small run."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks import rollout_pages, tpu_pages

RESULTS = Path(tpu_pages.__file__).parent / "results"


def test_committed_memory_on_slices():
    """At least 4 times the live tokens of a chip, next to the learner, and no copied cache."""
    rows = json.loads((RESULTS / "tpu_pages.json").read_text())["rows"]
    by_name = {row["name"]: row for row in rows}
    slices = {name.rsplit(": ", 1)[0] for name in by_name}
    assert "Qwen3-4B on v5e:4x4" in slices and len(slices) >= 4
    for label in slices:
        tokens = by_name[f"{label}: live tokens"]
        assert tokens["ours"] >= 4 * tokens["peer"], label
        learner = by_name[f"{label}: learner"]
        assert learner["ours"] <= learner["bound"], label
        for program in tpu_pages.PROGRAMS:
            row = by_name[f"{label}: temporaries of {program}"]
            assert row["ours"] < row["bound"] == 0.3, row["name"]
    assert by_name["Qwen3-4B on v5e:4x4: 512 rollouts"]["ours"] <= 5


def test_committed_memory_of_heavy_tailed_rows():
    record = json.loads((RESULTS / "rollout_pages.json").read_text())
    assert record["settings"] == {"rows": 64, "members": 8, "page_tokens": 16}
    rows = {f"{row['name']}, {row['unit']}": row for row in record["rows"]}
    for pool in ("pool of 35%", "pool of 15%"):
        in_use = rows[f"{pool}: cache in use, of the columns"]
        assert in_use["ours"] <= in_use["bound"] == 0.1
        assert rows[f"{pool}: rows computed again, rows"]["ours"] == 0
    assert rows["pool of 5%: rows computed again, rows"]["ours"] > 1
    assert 0.01 < rows["pool of 5%: tokens computed again, share"]["ours"] < 0.2
    differ = [row["ours"] for row in rows.values() if row["unit"] == "rollouts"]
    assert differ == [0] * 3


@pytest.mark.slow
def test_a_small_run_shows_the_memory_and_equal_rollouts():
    rows = rollout_pages.measure(count=16, members=4, turn=16.0, shares=(0.35,))
    columns = rows[1]["peer"]
    values = {f"{row['name']}, {row['unit']}": row["ours"] for row in rows}
    assert values["pool of 35%: cache, MiB"] == pytest.approx(0.35 * columns, rel=0.03)
    in_use = values["pool of 35%: cache in use, MiB"]
    assert values["pool of 35%: cache in use, of the columns"] == pytest.approx(
        in_use / columns, rel=0.03
    )
    assert 0.01 * columns < in_use < 0.1 * columns
    assert values["pool of 35%: rollouts that differ, rollouts"] <= 2
