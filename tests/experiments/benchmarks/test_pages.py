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
    shares = [row for row in record["rows"] if row["unit"] == "of the columns"]
    assert len(shares) == 2 and all(row["ours"] <= row["bound"] == 0.4 for row in shares)
    counts = [row["ours"] for row in record["rows"] if row["unit"] in ("rows", "rollouts")]
    assert counts == [0] * 4, "none is computed again, and none differs"


@pytest.mark.slow
def test_a_small_run_shows_the_memory_and_equal_rollouts():
    rows = rollout_pages.measure(count=16, members=4, turn=16.0)
    values = {row["name"]: row["ours"] for row in rows if row["unit"] != "MiB"}
    assert values["pool of 35%: cache"] == pytest.approx(0.35, abs=0.01)
    assert values["pool of 35%: rollouts that differ"] <= 2
